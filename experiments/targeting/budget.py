"""How much one evaluation may do. Nested loops over short lists, or a `reduce` that doubles what it
has, would else run for years or fill the memory: the rule comes from one side, the attributes from
another, and neither can be trusted to be small in the other's eyes."""

from typing import Final

MAX_WORK: Final = 100_000
"""Steps of one evaluation: a few hundredths of a second at worst."""

CHARACTERS_PER_STEP: Final = 64
"""Text is read and copied so much faster than expressions are evaluated."""


class TargetingError(Exception):
    """A rule cannot be evaluated for this context: the unit is not targeted."""


class Budget:
    """What is left of `MAX_WORK` in one evaluation."""

    left = MAX_WORK  # of the class: making a budget costs less than a call of `__init__`

    def spend(self, steps: int) -> None:
        """Take `steps` from what is left, before doing the work.

        Raises:
            TargetingError: if there is less.
        """
        self.left -= steps
        if self.left < 0:
            raise TargetingError(f"the rule would take more than {MAX_WORK} steps")

    def spend_on_text(self, characters: int) -> None:
        """As `spend`, for reading or making a text of so many characters."""
        if characters >= CHARACTERS_PER_STEP:
            self.spend(characters // CHARACTERS_PER_STEP)
