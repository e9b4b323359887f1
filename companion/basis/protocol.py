"""What the block asks of a basis."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from companion.basis.places import Place

__all__ = ["Basis"]


class Basis(Protocol):
    r"""What the block asks of a basis of weight functions.

    Attributes:
        cells: number of equal cells of [0, 1]; buffers hold one entry a cell.
        size: number of coefficients; parameters hold one entry a coefficient.
        continuity: the $q$ of $\theta \in C^q$: -1 with jumps, 0 with kinks, infinite if smooth.
    """

    @property
    def cells(self) -> int:
        """Number of equal cells."""

    @property
    def size(self) -> int:
        """Number of coefficients."""

    @property
    def continuity(self) -> float:
        r"""The $q$ of $\theta \in C^q$."""

    def at(self, place: Place) -> tuple[tuple[int, float], ...]:
        """Return the ``(index, weight)`` pairs whose sum is the weight function at ``place``."""

    def refined(self) -> Basis:
        """Return the basis with every cell split in two."""

    def refine(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients of the same function in the refined basis."""

    def interpolate(self, values: Tensor) -> Tensor:
        """Return the coefficients of the function with ``values`` at the ``size`` nodes."""
