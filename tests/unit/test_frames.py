"""What a journal's file gives back, whatever became of its bytes."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.frames import HEADER_SIZE, MAX_PAYLOAD, begun_at, frame, header, intact, scan

AT = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
PAYLOADS = [b"first", b"\x00" * 40, b"third record", bytes(range(256)), b"last"]


def file_of(payloads: list[bytes]) -> bytes:
    """A file with these payloads."""
    return header(AT) + b"".join(map(frame, payloads))


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    """The same with one bit changed."""
    return data[:at] + bytes((data[at] ^ (1 << bit),)) + data[at + 1 :]


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=30))
def test_what_was_written_is_read(payloads: list[bytes]) -> None:
    data = file_of(payloads)
    found = scan(data)
    assert (found.payloads, found.damaged, found.end) == (payloads, [], len(data))
    assert begun_at(data) == AT


@pytest.mark.parametrize("size", [0, MAX_PAYLOAD + 1])
def test_a_payload_of_no_or_too_many_bytes_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="a journal takes"):
        frame(bytes(size))


def test_a_torn_tail_ends_at_the_last_whole_frame() -> None:
    whole = file_of(PAYLOADS[:-1])
    data = file_of(PAYLOADS)
    for end in range(len(whole) + 1, len(data)):
        found = scan(data[:end])
        assert (found.payloads, found.damaged, found.end) == (PAYLOADS[:-1], [], len(whole))


def test_a_torn_header_is_no_record() -> None:
    for end in range(HEADER_SIZE):
        found = scan(file_of(PAYLOADS)[:end])
        assert (found.payloads, found.damaged, found.end) == ([], [], 0)


@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_costs_one_record_and_is_named(bit: int) -> None:
    data = file_of(PAYLOADS)
    ends = [len(file_of(PAYLOADS[:count])) for count in range(len(PAYLOADS) + 1)]
    for at in range(len(data)):
        found = scan(flipped(data, at, bit))
        broken = next(n for n, end in enumerate(ends) if at < end) - 1  # -1: the header
        assert found.payloads == [
            payload for number, payload in enumerate(PAYLOADS) if number != broken
        ]
        if found.damaged:
            start = 0 if broken < 0 else ends[broken]
            assert found.damaged == [(start, ends[broken + 1])]
            assert found.end == len(data)
        else:  # the header's time is not guarded; a wrong length of the last looks torn
            assert broken in {-1, len(PAYLOADS) - 1}
            assert found.end == (len(data) if broken < 0 else ends[-2])


@given(st.binary(max_size=400))
def test_anything_can_be_read(noise: bytes) -> None:
    for data in (noise, file_of(PAYLOADS) + noise, header(AT) + noise + frame(b"after")):
        found = scan(data)
        assert 0 <= found.end <= len(data)
    assert scan(header(AT) + noise + frame(b"after")).payloads[-1:] == [b"after"]


def test_zeros_after_a_power_cut_are_no_records() -> None:
    data = file_of(PAYLOADS)
    found = scan(data + bytes(4096))
    assert (found.payloads, found.damaged, found.end) == (PAYLOADS, [], len(data))


def taken(data: bytes) -> list[bytes] | None:
    """What `intact` gives in the end."""
    steps = intact(data)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            payloads: list[bytes] | None = end.value
            return payloads


def test_a_file_without_damage_is_read_as_it_is_and_another_is_not() -> None:
    data = file_of(PAYLOADS * 200)
    assert taken(data) == scan(data).payloads == PAYLOADS * 200
    assert sum(1 for _ in intact(data)) == len(PAYLOADS) * 200 // 250
    assert taken(header(AT)) == []
    short = file_of(PAYLOADS)
    for at in range(len(short)):
        damaged = flipped(short, at, 1)
        if scan(damaged) != scan(short):
            assert taken(damaged) is None
        assert taken(short[:at]) in (None, scan(short[:at]).payloads)
