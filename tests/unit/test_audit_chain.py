"""The chain of the audit: one text for one entry, and whatever is changed is found."""

import json
from collections.abc import Sequence
from hashlib import sha256

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.audit.chain import Finding, Link, Mark, Walk, genesis, hash_of
from experiments.audit.verify import AuditVerifyError, Lines, verify_export

FIELDS = (
    *("previous", "project", "number", "at", "kind"),
    *("action", "target", "actor", "request_id", "detail"),
)
_texts = st.text(st.sampled_from("1:,a é"), max_size=6)
_links = st.builds(
    Link,
    **{name: _texts for name in FIELDS if name != "number"},
    number=st.integers(0, 30),
    hash=st.just(""),
)


def chain(length: int, project: str = "shop") -> list[Link]:
    """Entries that follow from each other."""
    links, last = [], genesis(project)
    for number in range(1, length + 1):
        link = Link(
            project=project,
            number=number,
            at=f"2026-07-01T12:00:{number:02}.000000Z",
            kind="write",
            action="experiment.start",
            target="experiments/ranker",
            actor="key:a",
            request_id=f"r{number}",
            detail='{"é":1}',
            previous=last.hash,
            hash="",
        )
        links.append(msgspec.structs.replace(link, hash=hash_of(link)))
        last = Mark(number, links[-1].hash)
    return links


def found_in(
    links: Sequence[Link], head: Mark | None = None, expected: dict[int, str] | None = None
) -> list[str]:
    """What is wrong with these, in words."""
    walk = Walk("shop", genesis("shop"), expected or {})
    findings: list[Finding] = [finding for link in links for finding in walk.take(link)]
    return [str(finding) for finding in [*findings, *walk.finish(head)]]


def end_of(links: Sequence[Link]) -> Mark:
    """Where a chain ends."""
    return Mark(links[-1].number, links[-1].hash)


@given(_links, _links)
def test_two_entries_have_one_hash_only_if_they_are_the_same(one: Link, other: Link) -> None:
    assert (hash_of(one) == hash_of(other)) == (one == other)


def test_an_auditor_needs_ten_lines() -> None:
    export = b"".join(msgspec.json.encode(link) + b"\n" for link in chain(3))
    previous = sha256(b"turnout audit of shop").hexdigest()
    for line in export.splitlines():
        entry = json.loads(line)
        fields = [str(entry[name]).encode() for name in FIELDS]
        text = b"".join(b"%d:%b," % (len(field), field) for field in fields)
        assert entry["previous"] == previous
        assert entry["hash"] == sha256(text).hexdigest()
        previous = entry["hash"]


def test_a_whole_chain_has_no_finding() -> None:
    links = chain(5)
    assert found_in(links, end_of(links), {0: genesis("shop").hash, 3: links[2].hash}) == []
    assert found_in([], genesis("shop")) == []


@pytest.mark.parametrize("field", [*FIELDS, "hash"])
def test_a_change_of_any_field_is_found_where_it_is(field: str) -> None:
    links = chain(5)
    value = 9 if field == "number" else f"{getattr(links[2], field)}0"
    links[2] = msgspec.structs.replace(links[2], **{field: value})
    found = found_in(links, end_of(links))
    assert found
    assert all(line.split(":")[0] in {"shop 3", "shop 4", "shop 9"} for line in found), found


def test_a_change_with_a_hash_of_its_own_breaks_the_next_link() -> None:
    links = chain(5)
    forged = msgspec.structs.replace(links[2], actor="key:b")
    links[2] = msgspec.structs.replace(forged, hash=hash_of(forged))
    assert found_in(links, end_of(links)) == ["shop 4: does not follow from 3: one of them changed"]


def test_missing_swapped_and_repeated_entries_are_found() -> None:
    links = chain(6)
    head = end_of(links)
    assert found_in(links[:2] + links[3:], head) == ["shop 3: entry 3 is missing"]
    assert found_in(links[:1] + links[4:], head) == ["shop 2: 2 to 4 are missing"]
    assert found_in(links[3:], head) == ["shop 1: 1 to 3 are missing"]
    swapped = [links[0], links[2], links[1], *links[3:]]
    assert "shop 2: stands after 3: out of order, or twice" in found_in(swapped, head)
    assert "shop 2: stands after 2: out of order, or twice" in found_in(
        [*links[:2], *links[1:]], head
    )


def test_a_tail_that_was_cut_off_is_found_against_the_head_and_against_what_was_known() -> None:
    links = chain(6)
    short = links[:4]
    assert found_in(short, end_of(links)) == ["shop 4: the chain is cut off: it went on to 6"]
    assert found_in(short, end_of(short)) == []  # who moves the head, too, is found only by:
    assert found_in(short, end_of(short), {6: links[5].hash}) == [
        "shop 6: was expected, and is not there"
    ]


def test_a_chain_written_anew_is_found_by_an_entry_that_was_known() -> None:
    links = chain(4)
    first = msgspec.structs.replace(links[0], actor="key:b")
    anew = [msgspec.structs.replace(first, hash=hash_of(first))]
    for link in links[1:]:
        moved = msgspec.structs.replace(link, previous=anew[-1].hash)
        anew.append(msgspec.structs.replace(moved, hash=hash_of(moved)))
    assert found_in(anew, end_of(anew)) == []
    known = {2: links[1].hash}
    assert found_in(anew, end_of(anew), known) == [
        "shop 2: its hash is not the one that was expected"
    ]


def verified(
    export: Sequence[bytes], expected: dict[int, str] | None = None, project: str | None = None
) -> tuple[list[str], list[str]]:
    """The findings in an export, and what was verified."""
    findings: list[str] = []
    done: list[str] = []
    lines = Lines(lambda f: findings.append(str(f)), lambda v: done.append(str(v)), lambda _: None)
    verify_export(export, project, expected or {}, lines)
    return findings, done


def test_an_export_of_several_projects_is_verified_without_a_database() -> None:
    links = [*chain(3), *chain(2, "bank")]
    export = [msgspec.json.encode(link) for link in links]
    findings, done = verified(export)
    assert findings == []
    assert done == [
        f"bank: 2 entries, to {end_of(links)}",
        f"shop: 3 entries, to {end_of(links[:3])}",
    ]
    assert verified(export, project="bank")[1] == done[:1]
    assert verified([export[0], export[2]])[0] == ["shop 2: entry 2 is missing"]


def test_an_export_that_begins_in_the_midst_is_tied_to_an_earlier_one_by_its_end() -> None:
    links = chain(5)
    later = [msgspec.json.encode(link) for link in links[3:]]
    assert verified(later)[0] == []
    assert verified(later, {3: links[2].hash})[0] == []
    assert verified(later, {3: "0" * 64})[0] == [
        "shop 3: its hash is not the one that was expected"
    ]


def test_what_is_no_export_cannot_be_verified() -> None:
    with pytest.raises(AuditVerifyError, match="line 2 is no entry"):
        verified([msgspec.json.encode(chain(1)[0]), b"{}"])
    with pytest.raises(AuditVerifyError, match="no entry to verify"):
        verified([])
