"""`turnout report --from`: the report of a table that came from elsewhere."""

import csv
import gzip
import io
import sys
from importlib import resources
from pathlib import Path

import msgspec
import pytest

from analysis.library import Mean, Proportion, Quantile, QuantileCap, Ratio
from analysis.library.measures import Measurable
from analysis.reports.report import Report
from turnout.cli import main
from turnout.client import ClientError
from turnout.from_file import parse_metric

POLITICIANS = Path(str(resources.files("turnout.demo"))) / "black_politicians.csv.gz"
AUDIT = ["--variant", "treat_out", "--control", "0", "--metric", "proportion:responded"]

TABLE = """user,arm,bought,spent,country
1,old,0,0,DE
2,new,1,2.50,AT
3,old,1,1.25,DE
4,new,0,,AT
"""
SHOP = ["--variant", "arm", "--control", "old"]
BOUGHT = ["--metric", "proportion:bought"]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    file = tmp_path / "shop.csv"
    file.write_text(TABLE, encoding="utf-8")
    return file


def printed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What the command prints, when all goes well."""
    status = main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Why the command could not run: one line."""
    assert main(["report", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_the_report_of_a_packed_file(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(
        capsys, "--from", POLITICIANS, *AUDIT, "--weights", "0=0.5,1=0.5", "--reading", "fixed"
    )
    assert "Keep the control" in text
    assert "-0.2661 [-0.2911, -0.2412]" in text
    assert "2.934e-97" in text


def test_the_report_as_json_and_as_csv(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--from", str(POLITICIANS), *AUDIT, "--reading", "fixed", "--alpha", "0.01"]
    report = msgspec.json.decode(printed(capsys, *options, "--json"), type=Report)
    fixed = report.metrics[0].comparisons[0].fixed
    assert report.alpha == 0.01
    assert report.experiment == "black_politicians.csv.gz"
    rows = list(csv.DictReader(io.StringIO(printed(capsys, *options, "--csv"))))
    assert {row["reading"] for row in rows} == {"fixed", "continuous"}
    assert float(rows[0]["difference"]) == fixed.difference


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_table_may_come_by_standard_input(
    pack: type[bytes], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = io.TextIOWrapper(io.BytesIO(pack(TABLE.encode())))
    monkeypatch.setattr(sys, "stdin", piped)
    text = printed(capsys, "--from", "-", *SHOP, *BOUGHT)
    assert "# standard input" in text


def test_empty_lines_before_the_header_and_spaces_in_it_do_not_matter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, rest = TABLE.split("\n", 1)
    file = tmp_path / "shop.csv"
    file.write_text("\n \n" + header.replace(",", " , ") + "\n" + rest, encoding="utf-8")
    assert "4 units" in printed(capsys, "--from", file, *SHOP, *BOUGHT)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_columns_may_be_divided_otherwise(
    delimiter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "shop.csv"
    file.write_text("\ufeff" + TABLE.replace(",", delimiter), encoding="utf-8")
    assert "4 units" in printed(capsys, "--from", file, *SHOP, *BOUGHT)


def test_options_reach_the_report(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--from", str(shop), *SHOP, *BOUGHT, "--metric", "mean:spent,role=secondary"]
    options += ["--by", "country", "--unit", "user", "--leave-out-missing", "--time", "user"]
    options += ["--reading", "planned", "--units", "100", "--looks", "0.5,1", "--effect", "5%"]
    options += ["--correction", "none"]
    report = msgspec.json.decode(printed(capsys, *options, "--json"), type=Report)
    assert (report.reading, report.correction) == ("planned", "none")
    assert [metric.role for metric in report.metrics] == ["primary", "secondary"]
    assert sum(arm.units for arm in report.metrics[1].arms.values()) == 3
    assert {breakdown.attribute for breakdown in report.breakdowns} == {"country"}


def test_a_definition_says_what_is_what(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    definition = tmp_path / "shop.yaml"
    definition.write_text(
        """
key: shop
variants:
  - {key: old, control: true, weight: 0.5, value: 1}
  - {key: new, weight: 0.5, value: 2}
record: [country, plan]
metrics:
  - {key: buyers, role: primary, kind: proportion, event: bought, window: 7d}
""",
        encoding="utf-8",
    )
    options = ["--from", str(shop), "--variant", "arm", "--definition", str(definition)]
    report = msgspec.json.decode(printed(capsys, *options, "--json"), type=Report)
    assert report.experiment == "shop"
    assert report.metrics[0].window == "7d"
    assert {breakdown.attribute for breakdown in report.breakdowns} == {"country"}
    assert "leave out --alpha" in refused(capsys, *options, "--alpha", "0.01")
    definition.write_text("key: shop", encoding="utf-8")
    assert "variants: " in refused(capsys, *options)


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("proportion:bought", Proportion("bought")),
        (
            "buyers=proportion:bought,goal=decrease",
            Proportion("bought", key="buyers", goal="decrease"),
        ),
        ("mean:spent", Mean("spent")),
        ("mean:spent,covariate=before,cap=500", Mean("spent", "before", 500.0)),
        ("mean:spent,cap=p99.5", Mean("spent", cap=QuantileCap(quantile=0.995))),
        ("ratio:clicks/views,role=secondary", Ratio("clicks", "views", role="secondary")),
        ("ratio:a/b,covariate=c/d", Ratio("a", "b", ("c", "d"))),
        ("quantile:latency,at=0.95", Quantile("latency", 0.95)),
    ],
)
def test_a_metric_in_one_word(text: str, metric: Measurable) -> None:
    assert parse_metric(text) == metric


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("bought", "write it as KIND:COLUMN"),
        ("proportion:", "write it as KIND:COLUMN"),
        ("mean:spent,cap", "write it as KIND:COLUMN"),
        ("median:spent", "'median' is none of proportion, mean, ratio, quantile"),
        ("ratio:clicks", "a ratio has two columns"),
        ("mean:a/b", "a ratio has two columns, A/B, and any other kind one"),
        ("mean:spent,cap=much", "'much' is no number"),
        ("mean:spent,cap=0", "a cap is above 0"),
        ("mean:spent,cap=nan", "a cap is above 0 and finite"),
        ("mean:spent,cap=inf", "a cap is above 0 and finite"),
        ("mean:spent,cap=p100", "a cap at a quantile, such as p99, is at none of 1"),
        ("proportion:bought,cap=5", "a proportion has no cap"),
        ("proportion:bought,goal=up", "goal is one of increase, decrease"),
        ("ratio:a/b,covariate=c", "the covariate of a ratio has two columns"),
        ("quantile:latency,at=95", "a quantile lies strictly between 0 and 1"),
    ],
)
def test_a_metric_that_is_written_otherwise_is_refused(text: str, why: str) -> None:
    with pytest.raises(ClientError, match=why):
        parse_metric(text)


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("", "it is empty"),
        ("user,arm,bought\n", "there are no rows"),
        ("user,arm,bought\n1,old,0\n2,new\n", "row 2 has 2 fields, and the header 3"),
        ("arm,arm,bought\n", "two columns are named 'arm'"),
        ("user,group,bought\n1,old,0\n", "there is no column 'arm'; there are user, group, bought"),
        ("user,arm,bought\n1,old,0\n2,new,maybe\n", "column 'bought', row 2: 'maybe' is no number"),
        ("user,arm,bought\n1,old,0\n2,new,\n", "column 'bought', row 2: there is no value"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(
    table: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text(table, encoding="utf-8")
    assert f"turnout: wrong.csv: {why}" in refused(capsys, "--from", file, *SHOP, *BOUGHT)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "report takes the key of an experiment, or --from FILE"),
        (["key", "--from", "shop.csv"], "report takes the key of an experiment, or --from FILE"),
        (["--from", "nowhere.csv", *SHOP, *BOUGHT], "cannot read nowhere.csv"),
        (["--from", "FILE", *SHOP], "--from needs --variant, --control and a --metric"),
        (["--from", "FILE", *SHOP, *BOUGHT, "--weights", "half"], "write it as VARIANT=WEIGHT"),
        (["--from", "FILE", *SHOP, *BOUGHT, "--weights", "old=x"], "'x' is no number"),
        (["--from", "FILE", *SHOP, *BOUGHT, "--alpha", "5"], "--alpha lies strictly between"),
        (["--from", "FILE", *SHOP, *BOUGHT, "--units", "1"], "--units is at least 2"),
        (["--from", "FILE", *SHOP, *BOUGHT, "--looks", "1,0.5"], "analysis.looks"),
        (["--from", "FILE", *SHOP, *BOUGHT, "--effect", "much"], "'much' is no number"),
        (["--from", "FILE", "--definition", "FILE"], "--from needs --variant"),
        (["--from", "FILE", *SHOP, "--control", "mid", *BOUGHT], "the control 'mid' is not in"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    options: list[str], why: str, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(shop) if option == "FILE" else option for option in options]
    assert why in refused(capsys, *given)


def test_a_file_that_is_cut_short_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cut.csv.gz"
    file.write_bytes(gzip.compress(TABLE.encode())[:-9])
    assert "cannot read cut.csv.gz" in refused(capsys, "--from", file, *SHOP, *BOUGHT)
    file.write_bytes(b"arm,bought\nold,\xff\n")
    assert "cannot read cut.csv.gz" in refused(capsys, "--from", file, *SHOP, *BOUGHT)
