"""A memory of ids that stays bounded and forgets the oldest first."""

from router.recent import RecentIds


def ids(first: int, last: int) -> set[bytes]:
    """Ids that differ."""
    return {number.to_bytes(16, "big") for number in range(first, last)}


def test_what_was_added_is_remembered() -> None:
    recent = RecentIds()
    recent.add(ids(0, 10))
    assert recent.among(ids(5, 15)) == ids(5, 10)
    assert all(one in recent for one in ids(0, 10))
    assert not any(one in recent for one in ids(10, 20))


def test_the_last_half_of_the_limit_is_always_remembered_and_never_more_than_it() -> None:
    recent = RecentIds(limit=100)
    for end in range(7, 1_000, 7):
        recent.add(ids(end - 7, end))
        assert ids(max(0, end - 50), end) <= recent.among(ids(0, end))
        assert len(recent.among(ids(0, end))) <= 100
