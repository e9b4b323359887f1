"""One set of parameters a node, linear in between: the hat functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from companion.arguments import store_count
from companion.basis.places import Place

__all__ = ["PiecewiseLinear"]


@dataclass(frozen=True)
class PiecewiseLinear:
    r"""One set of parameters a node, linear in between: $\theta(k/M) = \theta_k$, $k = 0..M$.

    The function is continuous; it has ``cells + 1`` coefficients. Splitting a cell inserts the mean
    of its two nodes, so the function changes by rounding only.

    Args:
        cells: number $M \ge 1$ of equal cells.

    Raises:
        ValueError: if ``cells`` is not a positive integer.

    Example:
        >>> import torch
        >>> PiecewiseLinear(cells=1).refine(torch.tensor([1.0, 3.0]))
        tensor([1., 2., 3.])
        >>> PiecewiseLinear(cells=4).at(Place(cell=2, local=0.25))
        ((2, 0.75), (3, 0.25))
    """

    cells: int

    def __post_init__(self) -> None:
        store_count(self, "cells")

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return self.cells + 1

    @property
    def continuity(self) -> float:
        """The weight function is continuous, with kinks at the nodes."""
        return 0

    def at(self, place: Place) -> tuple[tuple[int, float], ...]:
        """Return the ``(index, weight)`` pairs at ``place``."""
        cell, local = place
        if local == 0.0:
            return ((cell, 1.0),)
        if local == 1.0:
            return ((cell + 1, 1.0),)
        return ((cell, 1.0 - local), (cell + 1, local))

    def refined(self) -> PiecewiseLinear:
        """Return the basis with every cell split in two."""
        return PiecewiseLinear(2 * self.cells)

    def refine(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients of the same function in the refined basis."""
        means = (coefficients[:-1] + coefficients[1:]) / 2
        pairs = torch.stack([coefficients[:-1], means], dim=1).flatten(0, 1)
        return torch.cat([pairs, coefficients[-1:]])

    def interpolate(self, values: Tensor) -> Tensor:
        """Return the coefficients of the function with ``values`` at the nodes: the values."""
        return values
