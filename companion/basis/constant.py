"""One set of parameters for all depths."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from companion.basis.places import Place

__all__ = ["Constant"]


@dataclass(frozen=True)
class Constant:
    """One set of parameters for all depths: ``theta(s) = theta_0``, a neural ODE's or tied weights.

    Example:
        >>> Constant().size
        1
    """

    @property
    def cells(self) -> int:
        """Number of equal cells."""
        return 1

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return 1

    @property
    def continuity(self) -> float:
        """The weight function has all derivatives."""
        return math.inf

    def at(self, place: Place) -> tuple[tuple[int, float], ...]:
        """Return the ``(index, weight)`` pairs at ``place``."""
        return ((0, 1.0),)

    def refined(self) -> Constant:
        """Refuse: one constant has no cells to split.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "basis: Constant has no cells to refine; use PiecewiseConstant(cells=1) instead"
        )

    def refine(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients unchanged."""
        return coefficients

    def interpolate(self, values: Tensor) -> Tensor:
        """Return the coefficients of the function with ``values`` everywhere: the values."""
        return values
