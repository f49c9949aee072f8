"""Targeting: who takes part, as JsonLogic over an evaluation context (DESIGN 5).

An expression is checked when it is defined (`expression_problems`) and compiled once into closures
(`compile_rule`); to assign a unit is then a call or two. The answers are those of flagd's Python
evaluator (`openfeature-flagd-core` 2.x), since `GET /v1/flagd` exports the same expressions and
both must agree unit by unit. This includes what is odd in it: `true` is written `True` by `cat`,
`===` compares as Python does (`1` is `true`), `%` has the sign of the divisor, `==` compares lists
by identity, `null == 0` holds, and `reduce` takes its third argument as it stands.

Where the answers differ, the difference is on purpose:

- A rule that fails at run time (`{"/": [1, {"var": "n"}]}` with an `n` of 0) raises here, which
  means "not targeted"; flagd's evaluator raises as well, and its caller gets the code's default.
- Work is bounded: an evaluation that would take more than `MAX_WORK` steps raises
  `TargetingError`. So does one that makes a whole number beyond the floating-point range, or reads
  as text or compares a value nested more than 64 deep.
- There is no clock: `$flagd.timestamp` and `$flagd.flagKey` cannot be read, so that assignment is a
  function of unit and attributes alone. A literal name is refused in the definition, one that is
  made at run time raises.

The first is seen by nobody who treats an error as "not targeted"; whatever else an expression could
say that evaluators read in different ways is refused when it is defined: `fractional` (the split is
the experiment's own), `log`, objects that are no operators, the whole context as a value, and an
operator in the third argument of `reduce`.
"""

from experiments.targeting.budget import MAX_WORK, TargetingError
from experiments.targeting.checks import expression_problems
from experiments.targeting.compiler import Rule, compile_rule
from experiments.targeting.grammar import MAX_NODES

__all__ = [
    "MAX_NODES",
    "MAX_WORK",
    "Rule",
    "TargetingError",
    "compile_rule",
    "expression_problems",
]
