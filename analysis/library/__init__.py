"""Reports without a service, by the code that the service uses.

From columns, with a row for each unit:

>>> from analysis.library import Cell, Epoch, Mean, Proportion, analyse, analyse_cells, moments
>>> table = {"arm": ["old", "new"] * 500, "bought": [0, 1, 1, 0, 0, 1, 0, 1] * 125}
>>> report = analyse(table, [Proportion("bought")], variant="arm", control="old")
>>> report.metrics[0].comparisons[0].fixed.difference
0.5

From moments, as a `group by` gives them:

>>> cells = [
...     Cell("spent", "old", moments(10_000, 3.10, 25.0)),
...     Cell("spent", "new", moments(10_050, 3.35, 26.1)),
... ]
>>> even = {1: Epoch(propensities={"old": 0.5, "new": 0.5})}
>>> report = analyse_cells(cells, [Mean("spent")], control="old", epochs=even)
>>> report.verdict.action, report.verdict.variant
('ship', 'new')
>>> report.sample_ratio.mismatch
False

`analysis.reports.markdown.render` writes a report as text, `analysis.reports.table.to_csv` as a
table, and `msgspec.json.encode` as JSON.
"""

from analysis.library.analyse import (
    analyse,
    analyse_cells,
    report_from_cells,
    report_from_columns,
)
from analysis.library.cells import Cell, Epoch, moments
from analysis.library.columns import DataError
from analysis.library.layout import Layout
from analysis.library.measures import Mean, Proportion, Quantile, Ratio
from experiments.model import AnalysisPlan, Margin, Prior, QuantileCap

__all__ = [
    "AnalysisPlan",
    "Cell",
    "DataError",
    "Epoch",
    "Layout",
    "Margin",
    "Mean",
    "Prior",
    "Proportion",
    "Quantile",
    "QuantileCap",
    "Ratio",
    "analyse",
    "analyse_cells",
    "moments",
    "report_from_cells",
    "report_from_columns",
]
