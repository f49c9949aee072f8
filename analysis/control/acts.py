"""All that hands can do, from every room: what approvals carry out, and what pages have buttons
for."""

from typing import Final

import experiments.acts
import experiments.holdout_api
import experiments.proposals.settings
from analysis.control import overrule_api, ramp_api
from experiments.proposals.acts import Acts, by_verb

ACTS: Final[Acts] = by_verb(
    experiments.acts.ACTS,
    experiments.holdout_api.ACTS,
    experiments.proposals.settings.ACTS,
    ramp_api.ACTS,
    overrule_api.ACTS,
)
