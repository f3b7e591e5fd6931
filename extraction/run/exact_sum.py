"""Sums of floats that are rounded once, whatever the order and number of the parts."""

import math
from array import array

HELD = 256
"""Numbers that are held before they are replaced by few of the same sum."""


class ExactSum:
    """Adds up floats exactly; two kilobytes hold any number of them."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts = array("d")

    def add(self, part: float) -> None:
        """Add a number.

        Raises:
            OverflowError: the sum is beyond what a float holds.
        """
        self._parts.append(part)
        if len(self._parts) > HELD:
            self._shorten()

    def total(self) -> float:
        """Return the sum, rounded once."""
        return math.fsum(self._parts)

    def _shorten(self) -> None:
        """Replace the numbers by their rounded sum, what that lacks, what both lack, and so on."""
        shorter = array("d")
        while rest := math.fsum((*self._parts, *(-part for part in shorter))):
            shorter.append(rest)
        self._parts = shorter
