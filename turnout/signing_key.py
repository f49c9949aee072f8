"""The signing key of an installation: from the settings, from a file that they name, or, for
`turnout up`, from one that it makes in its data folder."""

import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from experiments.webhooks.signing import SHORTEST_KEY, SigningKey
from turnout.backends import CannotRunError
from turnout.settings import LONGEST_KEY, Process, Settings

FILE: Final = "signing.key"
_KEY_BYTES: Final = 32


def signing_key(settings: Settings, process: Process) -> SigningKey | None:
    """The key, or None for a part of a Turnout whose operator has set none: parts must share one,
    and none of them can know which.

    Raises:
        CannotRunError: if a file cannot be read or made, or what is in it is no key.
    """
    if settings.signing_key:
        return SigningKey(settings.signing_key)
    if settings.signing_key_file:
        path = Path(settings.signing_key_file)
        return _checked(path, _told, f"it needs {SHORTEST_KEY} to {LONGEST_KEY} characters")
    if process == "up":
        mend = "put the old one back, or remove the file, which ends the secrets of all webhooks"
        return _checked(settings.data_path / FILE, _kept, mend)
    return None


def _checked(path: Path, text_in: Callable[[Path], str], mend: str) -> SigningKey:
    """The key in a file.

    Raises:
        CannotRunError: if it cannot be read, or there is none in it; `mend` says what to do.
    """
    try:
        text = text_in(path)
    except (OSError, UnicodeDecodeError) as error:
        # What cannot be decoded is a part of a secret: it is not for a log.
        why = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise CannotRunError(f"cannot use the signing key in {path}: {why}") from error
    if not SHORTEST_KEY <= len(text) <= LONGEST_KEY:
        raise CannotRunError(f"{path} holds no signing key: {mend}")
    return SigningKey(text)


def _told(path: Path) -> str:
    """The text in a file that an operator names, such as a mounted secret."""
    with path.open(encoding="ascii") as file:
        return file.read(LONGEST_KEY + 2).strip()


def _kept(path: Path) -> str:
    """The text in the file, which is made where there is none; readable by its owner alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two that start at once must not make two keys
        text = file.read().strip()
        if not text:
            text = secrets.token_hex(_KEY_BYTES)
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
    return text
