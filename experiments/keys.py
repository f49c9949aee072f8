"""API keys: who calls, for which project, and what they may do.

A key reads `to_<id>_<secret>`. Its secret has 256 random bits and is shown once; only its SHA-256
is kept, which is enough for a secret that cannot be guessed (no salt, no slow hash), and lets every
router check a key alone.
"""

import hashlib
import hmac
from collections.abc import Callable
from datetime import datetime
from typing import Final, Literal, TypeAlias, get_args

import msgspec

Role: TypeAlias = Literal["client", "service", "analyst", "editor", "admin"]
Permission: TypeAlias = Literal["evaluate", "record", "read", "write", "administer"]

ROLES: Final[tuple[Role, ...]] = get_args(Role)
PERMISSIONS: Final[dict[Role, frozenset[Permission]]] = {
    "client": frozenset({"evaluate"}),
    "service": frozenset({"evaluate", "record"}),
    "analyst": frozenset({"read"}),
    "editor": frozenset({"read", "write"}),
    "admin": frozenset({"evaluate", "record", "read", "write", "administer"}),
}


class ApiKey(msgspec.Struct, frozen=True):
    """A key as it is kept: everything but its secret."""

    id: str
    project: str
    role: Role
    secret_hash: bytes
    note: str
    created_at: datetime
    expires_at: datetime | None = None


class Principal(msgspec.Struct, frozen=True):
    """Whoever stands at a door with a valid key."""

    key_id: str
    project: str
    role: Role

    @property
    def actor(self) -> str:
        """How this caller is named in revisions, epochs and decisions."""
        return f"key:{self.key_id}"

    def may(self, permission: Permission) -> bool:
        """Whether the caller's role has this permission."""
        return permission in PERMISSIONS[self.role]


def new_key(
    project: str,
    role: Role,
    note: str,
    now: datetime,
    random_bytes: Callable[[int], bytes],
    expires_at: datetime | None = None,
) -> tuple[str, ApiKey]:
    """A new key: the text to show once, and what is kept of it.

    Args:
        random_bytes: a cryptographic source such as `secrets.token_bytes`.
    """
    key_id = random_bytes(6).hex()
    secret = random_bytes(32).hex()
    kept = ApiKey(key_id, project, role, _digest(secret), note, now, expires_at)
    return f"to_{key_id}_{secret}", kept


def key_id_of(text: str) -> str | None:
    """The id in the text of a key, or None where the text is no key."""
    parts = text.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "to" else None


def check_key(text: str, kept: ApiKey, now: datetime) -> Principal | None:
    """Who holds this key, or None where the secret is wrong or the key has expired."""
    secret = text.split("_", 2)[2]
    if not hmac.compare_digest(_digest(secret), kept.secret_hash):
        return None
    if kept.expires_at is not None and kept.expires_at <= now:
        return None
    return Principal(kept.id, kept.project, kept.role)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
