"""One set of parameters a cell."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from companion.arguments import store_count
from companion.basis.places import Place

__all__ = ["PiecewiseConstant"]


@dataclass(frozen=True)
class PiecewiseConstant:
    r"""One set of parameters a cell: $\theta(s) = \theta_k$ for $k/M \le s < (k+1)/M$.

    Queiruga et al. 2020, equation 25. Splitting a cell copies its parameters, so the function
    keeps every bit.

    Args:
        cells: number $M \ge 1$ of equal cells.

    Raises:
        ValueError: if ``cells`` is not a positive integer.

    Example:
        >>> import torch
        >>> PiecewiseConstant(cells=2).refine(torch.tensor([1.0, 3.0]))
        tensor([1., 1., 3., 3.])
    """

    cells: int

    def __post_init__(self) -> None:
        store_count(self, "cells")

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return self.cells

    @property
    def continuity(self) -> float:
        """The weight function jumps at the knots."""
        return -1

    def at(self, place: Place) -> tuple[tuple[int, float], ...]:
        """Return the ``(index, weight)`` pairs at ``place``."""
        return ((place.cell, 1.0),)

    def refined(self) -> PiecewiseConstant:
        """Return the basis with every cell split in two."""
        return PiecewiseConstant(2 * self.cells)

    def refine(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients of the same function in the refined basis."""
        return coefficients.repeat_interleave(2, dim=0)

    def interpolate(self, values: Tensor) -> Tensor:
        """Return the coefficients of the function with ``values`` in the cells: the values."""
        return values
