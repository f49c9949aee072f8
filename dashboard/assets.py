"""Styles, scripts and pictures: read once, sent compressed, kept by browsers for good.

The address of a file carries a hash of its content, so what a browser has kept is never out of
date.
"""

import gzip
import hashlib
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

FOLDER: Final = Path(__file__).parent / "static"
PREFIX: Final = "/assets/"
_TEXT: Final = frozenset({".css", ".js", ".svg"})
_DIGEST_CHARACTERS: Final = 12


class Asset(msgspec.Struct, frozen=True):
    """A file as it is sent: `packed` is its content by gzip, None of what would not get smaller."""

    content: bytes
    packed: bytes | None
    media_type: str
    digest: str


class Assets:
    """The files of a folder, by their paths in it."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files: Mapping[str, Asset] = {
            str(path.relative_to(folder)): _read(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def find(self, name: str) -> Asset | None:
        """The file of this name, or None."""
        return self._files.get(name)

    def url(self, name: str) -> str:
        """Where a page finds a file.

        Raises:
            KeyError: if there is none of this name: a page would lack it.
        """
        return f"{PREFIX}{name}?v={self._files[name].digest}"

    def text(self, name: str) -> str:
        """The content of a file of text, for a page that stands alone.

        Raises:
            KeyError: if there is none of this name.
        """
        return self._files[name].content.decode()


def _read(path: Path) -> Asset:
    content = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    packed = gzip.compress(content, mtime=0) if path.suffix in _TEXT else None
    digest = hashlib.sha256(content).hexdigest()[:_DIGEST_CHARACTERS]
    return Asset(content, packed, kind, digest)
