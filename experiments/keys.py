"""API keys: who calls, for which project, and what they may do.

A key reads `to_<id>_<secret>`. Its secret has 256 random bits and is shown once; only its SHA-256
is kept, which is enough for a secret that cannot be guessed (no salt, no slow hash), and lets every
router check a key alone.
"""

import hashlib
import hmac
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Annotated, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from experiments.model import Duration, Text

Role: TypeAlias = Literal["client", "service", "analyst", "editor", "admin"]
Permission: TypeAlias = Literal["evaluate", "record", "read", "write", "administer"]

ROLES: Final[tuple[Role, ...]] = get_args(Role)
EVERY_PERMISSION: Final[tuple[Permission, ...]] = get_args(Permission)
PERMISSIONS: Final[dict[Role, frozenset[Permission]]] = {
    "client": frozenset({"evaluate"}),
    "service": frozenset({"evaluate", "record"}),
    "analyst": frozenset({"read"}),
    "editor": frozenset({"read", "write"}),
    "admin": frozenset({"evaluate", "record", "read", "write", "administer"}),
}


MOST_A_SECOND: Final = 10_000_000
"""The highest rate limit of a key."""
RateLimit: TypeAlias = Annotated[int, Meta(ge=1, le=MOST_A_SECOND)]


class KeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/keys`. `scope` is what the key may do of what its role may, all of it
    unless told; `rate_limit` how many requests a second it may send, to all processes together."""

    role: Role
    note: Text = ""
    expires_in: Duration | None = None
    scope: list[Permission] | None = None
    rate_limit: RateLimit | None = None


class ApiKey(msgspec.Struct, frozen=True):
    """A key as it is kept: everything but its secret.

    `scope` is what it may do of what its role may, None for all of it. `rate_limit` is how many
    requests a second it may send, to all processes together; None for the setting of the operator.
    `created_by` is the actor who made it, None where no record was kept of that yet.
    `last_used_at` is true to the minute; a router's snapshot has it as it was at its last change.
    """

    id: str
    project: str
    role: Role
    secret_hash: bytes
    note: str
    created_at: datetime
    expires_at: datetime | None = None
    scope: tuple[Permission, ...] | None = None
    rate_limit: int | None = None
    created_by: str | None = None
    last_used_at: datetime | None = None

    @property
    def permissions(self) -> frozenset[Permission]:
        """What its holder may do: never more than the role, whatever the scope says."""
        return permissions_of(self.role, self.scope)

    def has_expired(self, now: datetime) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= now


class Principal(msgspec.Struct, frozen=True):
    """Whoever stands at a door with a valid key."""

    key_id: str
    project: str
    role: Role
    scope: tuple[Permission, ...] | None = None

    @property
    def actor(self) -> str:
        """How this caller is named in revisions, epochs and decisions."""
        return f"key:{self.key_id}"

    def may(self, permission: Permission) -> bool:
        """Whether the caller's role has this permission, and the key's scope leaves it."""
        return permission in PERMISSIONS[self.role] and (
            self.scope is None or permission in self.scope
        )


def permissions_of(role: Role, scope: Collection[Permission] | None) -> frozenset[Permission]:
    """What a key of this role and scope may do."""
    return PERMISSIONS[role] if scope is None else PERMISSIONS[role].intersection(scope)


def wrong_scope(role: Role, scope: Collection[Permission] | None) -> str | None:
    """What is wrong with the scope of a new key of this role, in words; None if nothing is."""
    if scope is None or (scope and PERMISSIONS[role].issuperset(scope)):
        return None
    words = [each for each in EVERY_PERMISSION if each in PERMISSIONS[role]]
    text = " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
    return f"a key of role {role} may {text}: name some of that, or leave `scope` out for all"


def new_key(
    project: str,
    role: Role,
    note: str,
    now: datetime,
    random_bytes: Callable[[int], bytes],
    expires_at: datetime | None = None,
    *,
    scope: Collection[Permission] | None = None,
    rate_limit: int | None = None,
    created_by: str | None = None,
) -> tuple[str, ApiKey]:
    """A new key: the text to show once, and what is kept of it.

    Args:
        random_bytes: a cryptographic source such as `secrets.token_bytes`.
        scope: what it may do of what its role may, as `wrong_scope` has found it right.
        created_by: the actor who makes it.
    """
    key_id = random_bytes(6).hex()
    secret = random_bytes(32).hex()
    kept = ApiKey(
        key_id,
        project,
        role,
        digest_of(secret),
        note,
        now,
        expires_at,
        None if scope is None else tuple(each for each in EVERY_PERMISSION if each in scope),
        rate_limit,
        created_by,
    )
    return f"to_{key_id}_{secret}", kept


def key_id_of(text: str) -> str | None:
    """The id in the text of a key, or None where the text is no key."""
    parts = text.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "to" else None


def secret_of(text: str) -> str:
    """The secret in the text of a key, which has an id."""
    return text.split("_", 2)[2]


def check_key(text: str, kept: ApiKey, now: datetime) -> Principal | None:
    """Who holds this key, or None where the secret is wrong or the key has expired."""
    if not is_secret(digest_of(secret_of(text)), kept.secret_hash) or kept.has_expired(now):
        return None
    return holder_of(kept)


def holder_of(key: ApiKey) -> Principal:
    """Whoever has shown this key."""
    return Principal(key.id, key.project, key.role, key.scope)


def is_secret(digest: bytes, kept: bytes) -> bool:
    """Whether a digest is the kept one, in a time that tells nothing of how much of it is."""
    return hmac.compare_digest(digest, kept)


def digest_of(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
