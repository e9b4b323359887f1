"""Two sets of parameters a cell, linear in between."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from companion.arguments import store_count
from companion.basis.places import Place

__all__ = ["DiscontinuousLinear"]


@dataclass(frozen=True)
class DiscontinuousLinear:
    r"""Two sets of parameters a cell, linear in between, with jumps at the knots.

    In cell $k$, at the local coordinate $u \in [0, 1]$,

    $$\theta = (1 - u)\,\theta_{2k} + u\,\theta_{2k+1}.$$

    Splitting a cell puts the mean of its two ends on both sides of the new knot, so the function
    changes by rounding only.

    Args:
        cells: number $M \ge 1$ of equal cells; there are $2M$ coefficients.

    Raises:
        ValueError: if ``cells`` is not a positive integer.

    Example:
        >>> DiscontinuousLinear(cells=1).refine(torch.tensor([1.0, 3.0]))
        tensor([1., 2., 2., 3.])
        >>> DiscontinuousLinear(cells=4).at(Place(cell=2, local=0.25))
        ((4, 0.75), (5, 0.25))
    """

    cells: int

    def __post_init__(self) -> None:
        store_count(self, "cells")

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return 2 * self.cells

    @property
    def continuity(self) -> float:
        """The weight function jumps at the knots."""
        return -1

    def at(self, place: Place) -> tuple[tuple[int, float], ...]:
        """Return the ``(index, weight)`` pairs at ``place``."""
        cell, local = place
        if local == 0.0:
            return ((2 * cell, 1.0),)
        if local == 1.0:
            return ((2 * cell + 1, 1.0),)
        return ((2 * cell, 1.0 - local), (2 * cell + 1, local))

    def refined(self) -> DiscontinuousLinear:
        """Return the basis with every cell split in two."""
        return DiscontinuousLinear(2 * self.cells)

    def refine(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients of the same function in the refined basis."""
        left, right = coefficients[::2], coefficients[1::2]
        means = (left + right) / 2
        return torch.stack([left, means, means, right], dim=1).flatten(0, 1)

    def interpolate(self, values: Tensor) -> Tensor:
        """Return the coefficients of the function with ``values`` at the cells' ends."""
        return values
