"""The words that several statistics share."""

from typing import Literal

Kind = Literal["proportion", "mean", "ratio", "quantile"]
"""What one unit's score is: 0 or 1 (a proportion), any finite number (a mean), two of them (a
ratio), or one of which a quantile is sought."""

Goal = Literal["increase", "decrease"]
"""Which way of a metric is the better one."""

Sampling = Literal["thompson", "top_two", "exploration"]
"""How the chances of arms to be the best become shares of the traffic."""

Bound = Literal["exact", "asymptotic", "approximate"]
"""How a bound on false alarms holds: exactly; for large samples, after a burn-in; or, where units
come again and again, nearly."""

Method = Literal["within_epochs", "aipw"]
"""How a difference is estimated: by differences within epochs, or by AIPW scores block by block."""

Test = Literal[
    "wald", "agresti_caffo", "fisher", "score", "welch", "large_sample", "order_statistics"
]
"""Where an interval and a p-value come from."""
