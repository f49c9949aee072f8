"""Secrets of webhooks, of which none is stored in the clear: what signs is derived from one key of
the installation, and addresses are sealed under it.

The form of signatures is that of Standard Webhooks 1.0.0 (symmetric, `v1`):
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SHORTEST_KEY: Final = 32
"""Characters of a signing key, at least: as many hexadecimal digits are 128 bits."""
OVERLAP: Final = timedelta(hours=24)
"""For how long the secret before a rotation signs, too."""
_NONCE_BYTES: Final = 12


class SealError(Exception):
    """What is sealed was not sealed with this key, or was changed since."""


class SigningKey:
    """The key of an installation, from which the secrets of all its webhooks follow.

    Each use has a key of its own, so that what one gives away says nothing of the others.
    """

    def __init__(self, text: str) -> None:
        """`text` is at least `SHORTEST_KEY` characters that nobody can guess."""
        self._key = text.encode()
        self.id: Final = self._derived("id", "").hex()[:16]
        """Which key this is; it does not help to find the key."""

    def secret(self, webhook: str, generation: int) -> bytes:
        """What signs the messages of a webhook, 32 bytes."""
        return self._derived("webhook", f"{webhook}.{generation}")

    def secrets(
        self, webhook: str, generation: int, rotated_at: datetime | None, now: datetime
    ) -> list[bytes]:
        """All that sign now: the secret, and for a while after a rotation the one before it."""
        overlaps = rotated_at is not None and now - rotated_at < OVERLAP
        return [
            self.secret(webhook, number)
            for number in ([generation, generation - 1] if overlaps else [generation])
        ]

    def seal(self, text: str, webhook: str, random_bytes: Callable[[int], bytes]) -> bytes:
        """A text that only this key can open, and only as that of the same webhook (AES-256-GCM;
        the nonce comes first)."""
        nonce = random_bytes(_NONCE_BYTES)
        return nonce + self._cipher().encrypt(nonce, text.encode(), webhook.encode())

    def unseal(self, sealed: bytes, webhook: str) -> str:
        """What was sealed.

        Raises:
            SealError: if it was not, with this key and for this webhook.
        """
        nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._cipher().decrypt(nonce, rest, webhook.encode()).decode()
        except InvalidTag as error:
            raise SealError(f"the address of webhook {webhook} cannot be opened") from error

    def _cipher(self) -> AESGCM:
        return AESGCM(self._derived("address", ""))

    def _derived(self, use: str, of: str) -> bytes:
        return hmac.digest(self._key, f"turnout\0{use}\0{of}".encode(), hashlib.sha256)


def shown(secret: bytes) -> str:
    """A secret as receivers are given it."""
    return f"whsec_{base64.b64encode(secret).decode()}"


def signed_headers(
    secrets: Sequence[bytes], message: str, at: datetime, body: bytes
) -> dict[str, str]:
    """The headers of a message: its id, the time of this attempt in whole seconds, and a signature
    with each of the secrets, of which a receiver needs one."""
    seconds = str(int(at.timestamp()))
    content = b".".join((message.encode(), seconds.encode(), body))
    signatures = (hmac.digest(secret, content, hashlib.sha256) for secret in secrets)
    return {
        "webhook-id": message,
        "webhook-timestamp": seconds,
        "webhook-signature": " ".join(f"v1,{base64.b64encode(s).decode()}" for s in signatures),
    }
