"""A report as one HTML file that stands alone: no script, nothing to load, to print and to keep."""

import base64
import hashlib
from functools import partial
from typing import Final

from markupsafe import Markup

from analysis.chronicle.kept import read_course
from analysis.reports.report import Report
from analysis.reports.sheet import Press, Sheet
from dashboard.assets import Assets
from dashboard.editor import yaml_text
from dashboard.editor.documents import sparse
from dashboard.experiment.results import results_view
from dashboard.experiment.results_words import CORRECTIONS, STANDS_ON
from dashboard.rendering import Renderer

_STYLES: Final = (
    "css/base.css",
    "css/charts.css",
    "css/experiment.css",
    "css/standalone.css",
)
"""What such a file looks like: as the pages do, with what paper asks for."""


def press_of(renderer: Renderer) -> Press:
    """What makes HTML of reports."""
    style = style_of(renderer.assets)
    return Press(course=read_course, html=partial(render, renderer, style))


def style_of(assets: Assets) -> str:
    """The styles of a file, which it carries itself."""
    return "\n".join(assets.text(name) for name in _STYLES)


def render(renderer: Renderer, style: str, sheet: Sheet) -> str:
    """A sheet as a file that stands alone.

    Its policy lets it do nothing but show this style, which it names by its hash, so that nothing
    that found its way into a text could load, run or restyle anything.
    """
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return renderer.render(
        "standalone.html",
        sheet=sheet,
        report=sheet.report,
        plan=plan_words(sheet.report),
        style=Markup(style),  # noqa: S704 - files of ours
        style_digest=digest,
        results=results_view(sheet.record.definition, sheet.report, sheet.course),
        definition=yaml_text.write(sparse(sheet.record.definition)),
    )


def plan_words(report: Report) -> str:
    """What was decided before the data came: the reading, alpha, and the correction."""
    if report.reading == "bayesian":
        return STANDS_ON["bayesian"]
    words = f"{STANDS_ON[report.reading]}; alpha {report.alpha:g}; {CORRECTIONS[report.correction]}"
    return words[:1].upper() + words[1:]
