"""Who is signed in.

A session begins with an API key and holds its id, never its secret. Every request looks the key up
beside the session, in Postgres: one that was revoked or has expired ends its sessions at once, on
every process, and its role decides what may be seen and done. The browser has a random token in an
HTTP-only cookie. Of it we keep the SHA-256, which is enough for what cannot be guessed: a token has
256 random bits, as a key has.

Against forged requests (CSRF) every form carries a second token: a random salt, and the HMAC of it
under the first. A foreign page can have the browser send the cookie, but cannot read it, and so
cannot make the other (the "HMAC based token pattern" of OWASP's cheat sheet on cross-site request
forgery). Pages are compressed and may repeat what an address says, so that a secret in them could
be felt out by the length of answers (BREACH: Gluck, Harris and Prado, 2013): it has another salt,
and no character in common, each time a page is made.
"""

import hashlib
import hmac
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Final

import msgspec

from experiments.keys import Principal
from experiments.store import Connection

LIFE: Final = timedelta(hours=12)
"""A working day: then one signs in again."""
_TOKEN_BYTES: Final = 32
_SALT_BYTES: Final = 16
_SALT_CHARACTERS: Final = 2 * _SALT_BYTES

_INSERT = """
    insert into page_session (token_hash, key_id, created_at, expires_at)
    select $1, id, $3, least($4, expires_at) from api_key
    where id = $2 and revoked_at is null and (expires_at is null or expires_at > $3)
"""
_CLEAR = """
    delete from page_session where token_hash in (
        select token_hash from page_session where expires_at <= $1 order by expires_at limit 1000
    )
"""
_FIND = """
    select s.token_hash, k.id, k.project, k.role, k.scope, k.note,
           s.expires_at
    from page_session s join api_key k on k.id = s.key_id
    where s.token_hash = any($1) and s.expires_at > $2
      and k.revoked_at is null and (k.expires_at is null or k.expires_at > $2)
"""
_END = "delete from page_session where token_hash = $1"


class Visitor(msgspec.Struct, frozen=True):
    """Who looks at a page: the key that they signed in with, and the token that the forms of this
    page have to carry."""

    principal: Principal
    name: str
    """The key's note, or its id where it has none: what a person knows it by."""
    csrf: str
    ends_at: datetime
    """When the session ends, with its key at the latest."""


async def begin(
    connection: Connection, key_id: str, now: datetime, random_bytes: Callable[[int], bytes]
) -> str | None:
    """Begin a session of this key; the token for the cookie, or None where the key has ended.

    Sessions that have ended are cleared away, a bounded number at a time.

    Args:
        random_bytes: a cryptographic source such as `secrets.token_bytes`.
    """
    token = random_bytes(_TOKEN_BYTES).hex()
    await connection.execute(_CLEAR, now)
    done = await connection.execute(_INSERT, digest_of(token), key_id, now, now + LIFE)
    return token if done == "INSERT 0 1" else None


async def find(
    connection: Connection, token: str, now: datetime, random_bytes: Callable[[int], bytes]
) -> Visitor | None:
    """Who has this token, or None where the session or its key has ended."""
    row = await connection.fetchrow(_FIND, [digest_of(token)], now)
    if row is None:
        return None
    scope = None if row["scope"] is None else tuple(row["scope"])
    principal = Principal(row["id"], row["project"], row["role"], scope)
    csrf = new_csrf(token, random_bytes(_SALT_BYTES))
    return Visitor(principal, row["note"] or row["id"], csrf, row["expires_at"])


async def alive(
    connection: Connection, digests: Collection[bytes], now: datetime
) -> frozenset[bytes]:
    """Those of these sessions, by the digests of their tokens, that have not ended."""
    rows = await connection.fetch(_FIND, list(digests), now)
    return frozenset(row["token_hash"] for row in rows)


async def end(connection: Connection, token: str) -> None:
    """End the session of this token."""
    await connection.execute(_END, digest_of(token))


def new_csrf(token: str, salt: bytes) -> str:
    """A token for the forms of a page, by a salt of 16 random bytes."""
    return salt.hex() + hmac.digest(token.encode(), salt, "sha256").hex()


def is_csrf(sent: str, token: str) -> bool:
    """Whether a form comes from a page of the session that has this token."""
    try:
        salt = bytes.fromhex(sent[:_SALT_CHARACTERS])
    except ValueError:
        return False
    expected = new_csrf(token, salt)
    return len(salt) == _SALT_BYTES and hmac.compare_digest(
        sent.encode("utf-8", "replace"), expected.encode()
    )


def digest_of(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
