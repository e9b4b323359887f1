"""Polynomials in depth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.arguments import store_count
from companion.basis.linear_maps import apply, solve
from companion.basis.places import Place

__all__ = ["Chebyshev"]


@dataclass(frozen=True)
class Chebyshev:
    r"""A polynomial of depth: $\theta(s) = \sum_{k<n} T_k(2s - 1)\,\theta_k$.

    $T_0 = 1$, $T_1(x) = x$, $T_{k+1} = 2x\,T_k - T_{k-1}$ are the Chebyshev polynomials. The
    nodes are their zeros, $s_j = \tfrac12 - \tfrac12\cos\bigl(\pi(j + \tfrac12)/n\bigr)$. Refining
    doubles ``size`` by padding with zeros; the function keeps every bit.

    Args:
        size: number $n \ge 1$ of coefficients; the degree is $n - 1$.
        cells: number of equal cells for what is kept one a cell: buffers, and a batch norm's weight
            and bias.

    Raises:
        ValueError: if an argument is not a positive integer.

    Example:
        >>> Chebyshev(size=3).at(Place(cell=0, local=1.0))
        ((0, 1.0), (1, 1.0), (2, 1.0))
        >>> Chebyshev(size=2).refine(torch.tensor([1.0, 3.0]))
        tensor([1., 3., 0., 0.])
    """

    size: int
    cells: int = 1

    def __post_init__(self) -> None:
        store_count(self, "size")
        store_count(self, "cells")

    @property
    def continuity(self) -> float:
        """The weight function has all derivatives."""
        return math.inf

    def at(self, place: Place) -> tuple[tuple[int, float], ...]:
        """Return the ``(index, weight)`` pairs at ``place``."""
        return tuple(enumerate(self._polynomials(2 * (place.cell + place.local) / self.cells - 1)))

    def _polynomials(self, x: float) -> list[float]:
        values = [1.0, x]
        while len(values) < self.size:
            values.append(2 * x * values[-1] - values[-2])
        return values[: self.size]

    def refined(self) -> Chebyshev:
        """Return the basis of twice the size, on twice the cells."""
        return Chebyshev(2 * self.size, 2 * self.cells)

    def refine(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients of the same function in the refined basis."""
        return torch.cat([coefficients, torch.zeros_like(coefficients)])

    def interpolate(self, values: Tensor) -> Tensor:
        """Return the coefficients of the polynomial with ``values`` at the nodes."""
        nodes = [-math.cos(math.pi * (j + 0.5) / self.size) for j in range(self.size)]
        rows = [self._polynomials(x) for x in nodes]
        return apply(solve(rows), values)
