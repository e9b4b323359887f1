"""Where a stage falls: the cell it reads, and the coordinate inside it."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

__all__ = ["Place", "locate"]


class Place(NamedTuple):
    """A point of depth: the ``cell`` it reads and the coordinate ``local`` in [0, 1] inside it."""

    cell: int
    local: float


def locate(step: int, steps: int, c: Fraction, cells: int) -> Place:
    """Say which of ``cells`` equal cells the point ``(step + c) / steps`` of [0, 1] reads.

    The arithmetic is in integers, so no rounding can move a point across a knot. A cell owns its
    left end. Both ends of a step are read from inside the step: ``c = 1`` takes the limit from
    below. Otherwise a scheme with a stage at the far end would mix the next cell's weights into
    this step, and fall to first order (Queiruga et al. 2020 evaluate it the same way).

    Args:
        step: index of the step, ``0 <= step < steps``.
        steps: number of equal steps on [0, 1].
        c: where in the step, a fraction in [0, 1].
        cells: number of equal cells on [0, 1].

    Example:
        The far end of step 0 of 2 is the knot between the two cells. It belongs to the step:

        >>> locate(0, 2, Fraction(1), cells=2)
        Place(cell=0, local=1.0)
        >>> locate(1, 2, Fraction(0), cells=2)
        Place(cell=1, local=0.0)
    """
    numerator = (step * c.denominator + c.numerator) * cells
    denominator = steps * c.denominator
    far_end = c.numerator == c.denominator
    cell = (numerator - 1) // denominator if far_end else numerator // denominator
    return Place(cell, (numerator - cell * denominator) / denominator)
