"""How parameters vary with depth: basis functions on the unit interval, and where a stage falls.

A weight function is ``theta(s) = sum_k phi_k(s) theta_k`` on ``s`` in [0, 1]. A basis says which
coefficients a point of depth reads, with which weights, and how to double its cells without
changing the function.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Basis", "Constant", "PiecewiseConstant", "PiecewiseLinear", "Place", "locate"]


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


class Basis(Protocol):
    """What the block asks of a basis of weight functions.

    Attributes:
        cells: number of equal cells of [0, 1]; buffers hold one entry a cell.
        size: number of coefficients; parameters hold one entry a coefficient.
    """

    @property
    def cells(self) -> int:
        """Number of equal cells."""

    @property
    def size(self) -> int:
        """Number of coefficients."""

    def at(self, place: Place) -> tuple[tuple[int, float], ...]:
        """Return the ``(index, weight)`` pairs whose sum is the weight function at ``place``."""

    def refined(self) -> Basis:
        """Return the basis with every cell split in two."""

    def refine(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients of the same function in the refined basis."""


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

    def at(self, place: Place) -> tuple[tuple[int, float], ...]:
        """Return the ``(index, weight)`` pairs at ``place``."""
        return ((0, 1.0),)

    def refined(self) -> Basis:
        """Refuse: one constant has no cells to split.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "weights: Constant has no cells to refine; use PiecewiseConstant(cells=1) instead"
        )

    def refine(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients unchanged."""
        return coefficients


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
        >>> PiecewiseConstant(cells=2).refine(torch.tensor([1.0, 3.0]))
        tensor([1., 1., 3., 3.])
    """

    cells: int

    def __post_init__(self) -> None:
        _check_cells(self.cells)

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return self.cells

    def at(self, place: Place) -> tuple[tuple[int, float], ...]:
        """Return the ``(index, weight)`` pairs at ``place``."""
        return ((place.cell, 1.0),)

    def refined(self) -> PiecewiseConstant:
        """Return the basis with every cell split in two."""
        return PiecewiseConstant(2 * self.cells)

    def refine(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients of the same function in the refined basis."""
        return coefficients.repeat_interleave(2, dim=0)


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
        >>> PiecewiseLinear(cells=1).refine(torch.tensor([1.0, 3.0]))
        tensor([1., 2., 3.])
        >>> PiecewiseLinear(cells=4).at(Place(cell=2, local=0.25))
        ((2, 0.75), (3, 0.25))
    """

    cells: int

    def __post_init__(self) -> None:
        _check_cells(self.cells)

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return self.cells + 1

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


def _check_cells(cells: int) -> None:
    if isinstance(cells, bool) or not isinstance(cells, int) or cells < 1:
        raise ValueError(f"cells: {cells!r} is not allowed; it must be an integer of at least 1")
