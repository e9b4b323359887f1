"""Waves in depth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.arguments import store_count
from companion.basis.linear_maps import apply, solve
from companion.basis.places import Place

__all__ = ["Fourier"]


@dataclass(frozen=True)
class Fourier:
    r"""A sum of waves, periodic in depth.

    $$\theta(s) = \theta_0 + \sum_{k=1}^{K}
    \bigl(\cos(2\pi k s)\,\theta_{2k-1} + \sin(2\pi k s)\,\theta_{2k}\bigr).$$

    Depth 0 and depth 1 have the same weights. The nodes are $s_j = j/n$, $j < n = 2K + 1$.
    Refining doubles $K$ (one wave from none) by padding with zeros; the function keeps every bit.

    Args:
        size: number $n = 2K + 1$ of coefficients, odd.
        cells: number of equal cells for what is kept one a cell: buffers, and a batch norm's weight
            and bias.

    Raises:
        ValueError: if an argument is not a positive integer, or ``size`` is even.

    Example:
        >>> Fourier(size=3).at(Place(cell=0, local=0.0))
        ((0, 1.0), (1, 1.0), (2, 0.0))
        >>> Fourier(size=3).refine(torch.tensor([1.0, 3.0, 2.0]))
        tensor([1., 3., 2., 0., 0.])
    """

    size: int
    cells: int = 1

    def __post_init__(self) -> None:
        store_count(self, "size")
        store_count(self, "cells")
        if self.size % 2 == 0:
            raise ValueError(
                f"size: {self.size} is not allowed; it must be odd: a constant, and a cosine and a "
                "sine for every wave"
            )

    @property
    def continuity(self) -> float:
        """The weight function has all derivatives."""
        return math.inf

    def at(self, place: Place) -> tuple[tuple[int, float], ...]:
        """Return the ``(index, weight)`` pairs at ``place``."""
        return tuple(enumerate(self._waves((place.cell + place.local) / self.cells)))

    def _waves(self, s: float) -> list[float]:
        angles = [2 * math.pi * k * s for k in range(1, self.size // 2 + 1)]
        return [1.0, *(wave(angle) for angle in angles for wave in (math.cos, math.sin))]

    def refined(self) -> Fourier:
        """Return the basis of twice the waves, on twice the cells."""
        return Fourier(max(3, 2 * self.size - 1), 2 * self.cells)

    def refine(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients of the same function in the refined basis."""
        waves = coefficients.new_zeros(self.refined().size - self.size, *coefficients.shape[1:])
        return torch.cat([coefficients, waves])

    def interpolate(self, values: Tensor) -> Tensor:
        """Return the coefficients of the sum of waves with ``values`` at the nodes."""
        rows = [self._waves(j / self.size) for j in range(self.size)]
        return apply(solve(rows), values)
