"""An exposure has one form in the journal, however it is made."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from router.records import ExposureForm, ExposureRecord, decode, encode, encode_times, exposure_id

KEYS = st.text("abcdefghijklmnopqrstuvwxyz0123456789_.-", min_size=1, max_size=64)
NUMBERS = st.integers(1, 2**31 - 1)
TEXTS = st.text(min_size=1, max_size=300)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1)).map(  # noqa: DTZ001 - it is made aware
    lambda time: time.replace(tzinfo=UTC)
)


@given(KEYS, st.integers(1, 2**63 - 1), NUMBERS, NUMBERS, KEYS, KEYS, TEXTS, TIMES)
def test_a_form_gives_the_bytes_of_the_whole_record(
    project: str,
    experiment: int,
    run: int,
    epoch: int,
    variant: str,
    unit_type: str,
    unit: str,
    now: datetime,
) -> None:
    form = ExposureForm(project, experiment, run, epoch, variant, unit_type)
    name = exposure_id(experiment, run, epoch, variant, unit)
    assert form.id(unit) == name
    record = ExposureRecord(
        name, project, experiment, run, epoch, variant, unit_type, unit, now, now
    )
    written = form.encode(name, unit, encode_times(now))
    assert written == encode(record)
    assert decode(written) == record
