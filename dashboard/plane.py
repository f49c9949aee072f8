"""What the pages work with, handed in."""

from typing import TypeAlias

import msgspec
from litestar.di import NamedDependency
from litestar.params import SkipValidation

from analysis.planning.api import PlanningPlane
from analysis.reports.api import AnalysisPlane
from dashboard.rendering import Renderer
from dashboard.streams import Live
from experiments.doors import Gate
from experiments.writes import ControlPlane


class PagesPlane(msgspec.Struct, frozen=True):
    """What the pages work with. `gate` lets in who signs in; `live` tells pages of changes."""

    control: ControlPlane
    analysis: AnalysisPlane
    planning: PlanningPlane
    gate: Gate
    renderer: Renderer
    live: Live


Pages: TypeAlias = NamedDependency[SkipValidation[PagesPlane]]
"""How a handler asks for it: by the name `pages`."""
