"""The chain of a project's entries: how they are hashed, and what is wrong with some. Pure.

The hash of an entry is SHA-256 over its fields in this order, each as a netstring (its length in
bytes, a colon, its bytes as UTF-8, a comma: D. J. Bernstein, "Netstrings", 1997), so that no two
entries have one text: the hash of the entry before (in hexadecimal), project, number, at (UTC, to
the microsecond), kind, action, target, actor, request_id, detail (as it is written, to the letter).
What stands before a project's first entry is the SHA-256 of "turnout audit of " and its key.
"""

import hashlib
from collections.abc import Iterator, Mapping

import msgspec


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """An entry in its place: all that its hash is made of, as it is exported. `detail` is a JSON
    object in the very text that was hashed; hashes are in hexadecimal."""

    project: str
    number: int
    at: str
    kind: str
    action: str
    target: str
    actor: str
    request_id: str
    detail: str
    previous: str
    hash: str


class Mark(msgspec.Struct, frozen=True):
    """A place in a chain: the number of an entry and its hash. Number 0 is the beginning."""

    number: int
    hash: str

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


class Finding(msgspec.Struct, frozen=True):
    """Something that is wrong, at an entry of a project."""

    project: str
    number: int
    what: str

    def __str__(self) -> str:
        return f"{self.project} {self.number}: {self.what}"


def genesis(project: str) -> Mark:
    """What stands before a project's first entry."""
    return Mark(0, hashlib.sha256(f"turnout audit of {project}".encode()).hexdigest())


def hash_of(link: Link) -> str:
    """What the hash of an entry has to be."""
    fields = (
        link.previous,
        link.project,
        str(link.number),
        link.at,
        link.kind,
        link.action,
        link.target,
        link.actor,
        link.request_id,
        link.detail,
    )
    encoded = (field.encode("utf-8", "surrogatepass") for field in fields)
    return hashlib.sha256(b"".join(b"%d:%b," % (len(f), f) for f in encoded)).hexdigest()


class Walk:
    """Goes along the chain of one project, entry by entry, and keeps no more than the last."""

    def __init__(self, project: str, start: Mark | None, expected: Mapping[int, str]) -> None:
        """`start` is the entry before the first, None to take the first as it comes: an export may
        begin in the midst. `expected` are hashes that are known from elsewhere, by number."""
        self._project = project
        self._last = start
        self._expected = dict(expected)
        self.entries = 0

    @property
    def last(self) -> Mark | None:
        """The last entry; None before the first."""
        return self._last

    def take(self, link: Link) -> Iterator[Finding]:
        """What is wrong with the next entry, or between it and the one before."""
        self.entries += 1
        last = self._last or Mark(link.number - 1, link.previous)
        wanted = self._expected.pop(last.number, None) if self.entries == 1 else None
        if wanted is not None and wanted != last.hash:
            yield self._finding(last.number, "its hash is not the one that was expected")
        number, after = link.number, last.number + 1
        if number > after:
            gone = f"entry {after} is" if number == after + 1 else f"{after} to {number - 1} are"
            yield self._finding(after, f"{gone} missing")
        elif number < after:
            yield self._finding(number, f"stands after {last.number}: out of order, or twice")
        elif link.previous != last.hash:
            yield self._finding(number, f"does not follow from {last.number}: one of them changed")
        if link.project != self._project:
            yield self._finding(number, f"is of the project {link.project!r}")
        if hash_of(link) != link.hash:
            yield self._finding(number, "was changed: its hash is not that of its fields")
        wanted = self._expected.pop(number, None)
        if wanted is not None and wanted != link.hash:
            yield self._finding(number, "its hash is not the one that was expected")
        self._last = Mark(number, link.hash)

    def finish(self, head: Mark | None = None) -> Iterator[Finding]:
        """What is wrong with where the chain ends: at `head`, if that is known."""
        last = self._last or genesis(self._project)
        if head is not None and last.number < head.number:
            yield self._finding(last.number, f"the chain is cut off: it went on to {head.number}")
        elif head is not None and last.number > head.number:
            yield self._finding(head.number + 1, f"was appended past the head, {head.number}")
        elif head is not None and last.hash != head.hash:
            yield self._finding(last.number, "its hash is not that of the head")
        for number in sorted(self._expected):
            if number or self._expected[0] != genesis(self._project).hash:
                yield self._finding(number, "was expected, and is not there")

    def _finding(self, number: int, what: str) -> Finding:
        return Finding(self._project, number, what)
