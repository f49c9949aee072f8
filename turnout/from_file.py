"""`turnout report --from FILE`: the report of a table from elsewhere, without a service."""

import argparse
import csv
import gzip
import io
import itertools
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import msgspec

from analysis.library import (
    AnalysisPlan,
    DataError,
    Layout,
    Margin,
    Mean,
    Proportion,
    Quantile,
    QuantileCap,
    Ratio,
    analyse,
    report_from_columns,
)
from analysis.library.measures import Measurable, measure_of
from analysis.reports.markdown import render
from analysis.reports.report import Report
from analysis.reports.table import to_csv
from experiments.definition import parse_definition
from experiments.model import Experiment
from experiments.problems import ProblemError
from turnout.client import ClientError, read_definitions

_GZIP: Final = b"\x1f\x8b"
_DELIMITERS: Final = ",;\t|"
"""The header has one of them most often, and that is the file's."""
_BY_THE_DEFINITION: Final = (
    *("control", "metric", "weights"),
    *("reading", "correction", "alpha", "units", "looks", "effect"),
)
"""Options that a definition leaves nothing to say of."""


def report_from_file(options: argparse.Namespace) -> Report:
    """The report of the file that the options name.

    Raises:
        ClientError: where options, definition or data are wrong, in one line.
    """
    try:
        return _by_definition(options) if options.definition else _by_options(options)
    except ProblemError as error:
        fields = "; ".join(f"{p.path}: {p.detail}" for p in error.errors) or error.detail
        raise ClientError(f"{options.definition}: {fields}") from error
    except (DataError, ValueError) as error:
        raise ClientError(f"{_name(options.source)}: {error}") from error


def _by_options(options: argparse.Namespace) -> Report:
    if options.variant is None or options.control is None or not options.metric:
        raise ClientError("--from needs --variant, --control and a --metric, or a --definition")
    metrics = [parse_metric(text) for text in options.metric]
    layout = _layout(options)
    wanted = {name for metric in metrics for name in metric.measure().columns}
    return analyse(
        read_table(options.source, wanted | _named(layout)),
        metrics,
        variant=layout.variant,
        control=options.control,
        weights=None if options.weights is None else _weights(options.weights),
        segments=layout.segments,
        unit=layout.unit,
        time=layout.time,
        epoch=layout.epoch,
        propensity=layout.propensity,
        missing=layout.missing,
        plan=_plan(options),
        name=_name(options.source),
    )


def _by_definition(options: argparse.Namespace) -> Report:
    said = [name for name in _BY_THE_DEFINITION if getattr(options, name)]
    if said:
        raise ClientError(f"--definition says it already: leave out --{said[0]}")
    if options.variant is None:
        raise ClientError("--from needs --variant: the column with the variant of each unit")
    documents = read_definitions(options.definition)
    if len(documents) > 1:
        raise ClientError(f"{options.definition} has {len(documents)} definitions; give one")
    definition: Experiment = parse_definition(documents[0])
    layout = _layout(options)
    wanted = {name for metric in definition.metrics for name in measure_of(metric).columns}
    table = read_table(options.source, wanted | _named(layout), definition.record)
    return report_from_columns(definition, table, layout)


def parse_metric(text: str) -> Measurable:
    """A metric as it is written after `--metric`: `[KEY=]KIND:COLUMN[/COLUMN][,NAME=VALUE]...`.

    Raises:
        ClientError: where it is written otherwise.
    """
    head, colon, rest = text.partition(":")
    key, _, kind = head.rpartition("=")
    columns, *said = rest.split(",")
    options = dict(part.partition("=")[::2] for part in said)
    first, _, second = columns.partition("/")
    if not colon or not first or any("" in pair for pair in options.items()):
        raise ClientError(f"--metric {text}: write it as KIND:COLUMN, such as proportion:bought")
    common: dict[str, Any] = {"key": key or None}
    for name, allowed in (
        ("goal", ("increase", "decrease")),
        ("role", ("primary", "secondary", "guardrail")),
    ):
        if name in options:
            value = options.pop(name)
            if value not in allowed:
                raise ClientError(f"--metric {text}: {name} is one of {', '.join(allowed)}")
            common[name] = value
    try:
        metric = _metric(kind, first, second, options, common)
        metric.measure()
    except ValueError as error:
        raise ClientError(f"--metric {text}: {error}") from error
    if options:
        raise ClientError(f"--metric {text}: a {kind} has no {', '.join(options)}")
    return metric


def _metric(
    kind: str, first: str, second: str, options: dict[str, str], common: Mapping[str, Any]
) -> Measurable:
    """The metric; what it takes of the options is taken out of them."""
    if bool(second) is not (kind == "ratio"):
        raise ValueError("a ratio has two columns, A/B, and any other kind one")
    covariate = options.pop("covariate", None) if kind in {"mean", "ratio"} else None
    match kind:
        case "proportion":
            return Proportion(first, **common)
        case "mean":
            cap = options.pop("cap", None)
            return Mean(first, covariate, None if cap is None else _cap(cap), **common)
        case "ratio":
            before = None
            if covariate is not None:
                numerator, _, denominator = covariate.partition("/")
                if not denominator:
                    raise ValueError("the covariate of a ratio has two columns, A/B")
                before = (numerator, denominator)
            return Ratio(first, second, before, **common)
        case "quantile":
            return Quantile(first, _number(options.pop("at", "")), **common)
    raise ValueError(f"{kind!r} is none of proportion, mean, ratio, quantile")


def _cap(text: str) -> float | QuantileCap:
    """`500`, or `p99` for the quantile 0.99."""
    if not text.startswith("p"):
        return _number(text)
    return QuantileCap(quantile=_number(text[1:]) / 100.0)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


def _layout(options: argparse.Namespace) -> Layout:
    return Layout(
        variant=options.variant,
        unit=options.unit,
        time=options.time,
        epoch=options.epoch,
        propensity=options.propensity,
        segments=tuple(options.by or ()),
        missing="leave_out" if options.leave_out_missing else "refuse",
    )


def _named(layout: Layout) -> set[str]:
    """The columns that a layout names."""
    single = (layout.variant, layout.unit, layout.time, layout.epoch, layout.propensity)
    return {name for name in (*single, *layout.segments) if isinstance(name, str)}


def _weights(text: str) -> dict[str, float]:
    """`old=0.5,new=0.5`."""
    weights = {}
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        if not equals:
            raise ClientError(f"--weights {text}: write it as VARIANT=WEIGHT,VARIANT=WEIGHT")
        weights[name] = _number(value)
    return weights


def _plan(options: argparse.Namespace) -> AnalysisPlan:
    said: dict[str, Any] = {}
    if options.reading is not None:
        said["reading"] = options.reading
    if options.correction is not None:
        said["correction"] = options.correction
    if options.alpha is not None:
        if not 0.0 < options.alpha < 1.0:
            raise ClientError("--alpha lies strictly between 0 and 1")
        said["alpha"] = options.alpha
    if options.units is not None:
        if options.units < 2:
            raise ClientError("--units is at least 2")
        said["units"] = options.units
    if options.looks is not None:
        said["looks"] = tuple(_number(share) for share in options.looks.split(","))
    if options.effect is not None:
        text = options.effect
        size = _number(text.removesuffix("%"))
        relative = text.endswith("%")
        said["effect"] = Margin(relative=size / 100) if relative else Margin(absolute=size)
    return AnalysisPlan(**said)


def read_table(
    source: str, wanted: Iterable[str], welcome: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Columns of a CSV file with a header, by name; packed by gzip or not.

    Arguments:
        source: the file, or `-` for standard input.
        wanted: the columns that have to be there.
        welcome: those that are read if they are there.

    Raises:
        ClientError: if it cannot be read.
        DataError: for what is wrong with it.
    """
    try:
        with _opened(source) as packed:
            is_packed = packed.peek(len(_GZIP)).startswith(_GZIP)
            plain = gzip.GzipFile(fileobj=packed) if is_packed else packed
            with io.TextIOWrapper(plain, encoding="utf-8-sig", newline="") as lines:
                return _columns(lines, wanted, welcome)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise ClientError(f"cannot read {_name(source)}: {error}") from error


def _opened(source: str) -> io.BufferedReader:
    if source == "-":
        return io.BufferedReader(io.BytesIO(sys.stdin.buffer.read()))
    return Path(source).open("rb")


def _columns(
    lines: Iterator[str], wanted: Iterable[str], welcome: Sequence[str]
) -> dict[str, list[str]]:
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise DataError("it is empty")
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter)
    header = [name.strip() for name in next(reader)]
    for name in header:
        if header.count(name) > 1:
            raise DataError(f"two columns are named {name!r}")
    missing = sorted(set(wanted) - set(header))
    if missing:
        raise DataError(f"there is no column {missing[0]!r}; there are {', '.join(header)}")
    kept = [name for name in header if name in {*wanted, *welcome}]
    places = [header.index(name) for name in kept]
    pick = itemgetter(*places, places[0])  # twice, so that it gives a tuple of one, too
    rows = [pick(row) for row in _whole(reader, len(header))]
    return {name: [row[place] for row in rows] for place, name in enumerate(kept)}


def _whole(reader: Iterator[list[str]], width: int) -> Iterator[list[str]]:
    """The rows, all of them as wide as the header; empty lines are none."""
    for number, row in enumerate(reader, start=1):
        if len(row) == width:
            yield row
        elif row:
            raise DataError(f"row {number} has {len(row)} fields, and the header {width}")


def _name(source: str) -> str:
    return "standard input" if source == "-" else Path(source).name


def written(report: Report, accept: str) -> str:
    """The report as the media type that is asked for: JSON, CSV or Markdown."""
    match accept:
        case "application/json":
            return msgspec.json.encode(report).decode() + "\n"
        case "text/csv":
            return to_csv(report)
        case _:
            return render(report)
