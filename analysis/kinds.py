"""The words that several statistics share."""

from typing import Literal

Kind = Literal["proportion", "mean"]
"""What one unit's score is: 0 or 1 (a proportion), or any finite number (a mean)."""

Goal = Literal["increase", "decrease"]
"""Which way of a metric is the better one."""
