"""A weight function at any depth, and its best approximation in another basis."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from companion.basis.linear_maps import apply
from companion.basis.places import Place
from companion.basis.protocol import Basis

__all__ = ["evaluate", "project"]


def evaluate(basis: Basis, coefficients: Tensor, s: Tensor) -> Tensor:
    r"""Return $\theta(s) = \sum_k \phi_k(s)\,\theta_k$, from the right at the knots.

    Depth 1 belongs to the last cell.

    Args:
        basis: the functions $\phi_k$.
        coefficients: $\theta_k$, shape ``(basis.size, *shape)``.
        s: depths in $[0, 1]$, shape ``(n,)``.

    Returns:
        Shape ``(n, *shape)``.

    Raises:
        TypeError: for coefficients that are integers.
        ValueError: for coefficients of another number than the basis has, or depths outside
            $[0, 1]$.

    Example:
        >>> from companion.basis import PiecewiseConstant
        >>> evaluate(PiecewiseConstant(2), torch.tensor([5.0, 7.0]), torch.tensor([0.0, 0.5, 1.0]))
        tensor([5., 7., 7.])
    """
    _check_size("coefficients", coefficients, basis)
    if s.ndim != 1 or not ((s >= 0) & (s <= 1)).all():
        raise ValueError(f"s: {s} is not allowed; pass a list of depths in [0, 1]")
    # The float32 nearest to 0.7 lies below it: what rounds to a knot is that knot.
    slack = max(1e-9, basis.cells * torch.finfo(s.dtype).eps) if s.is_floating_point() else 0.0
    places = [_place(depth, basis.cells, slack) for depth in s.tolist()]
    return apply(_matrix(basis, places), coefficients)


def project(coefficients: Tensor, old: Basis, new: Basis) -> Tensor:
    r"""Return the coefficients of the function of ``new`` that is nearest in $L^2(0, 1)$.

    With the Gram matrix $G_{ij} = \int \psi_i \psi_j$ of the new basis and the mixed one,
    $B_{ij} = \int \psi_i \phi_j$, they are $G^{-1} B\,\theta$. Integrals are by Gauss-Legendre
    quadrature between the knots of both bases: exact to rounding.

    From cells to fewer cells this is the mean of the merged ones; into a basis that holds the
    function, it is exact up to rounding.

    Args:
        coefficients: $\theta$, shape ``(old.size, *shape)``.
        old: the basis of the coefficients.
        new: the basis to project onto.

    Returns:
        Shape ``(new.size, *shape)``.

    Raises:
        TypeError: for coefficients that are integers.
        ValueError: for coefficients of another number than ``old`` has.

    Example:
        >>> from companion.basis import PiecewiseConstant
        >>> project(torch.tensor([1.0, 3.0, 4.0, 4.0]), PiecewiseConstant(4), PiecewiseConstant(2))
        tensor([2., 4.])
    """
    _check_size("coefficients", coefficients, old)
    pieces = math.lcm(old.cells, new.cells)
    # More nodes than polynomials need: waves take about pi of them a period.
    nodes = 4 * (old.size // old.cells + new.size // new.cells) + 16
    local, weights = np.polynomial.legendre.leggauss(nodes)
    points = [(piece, (x + 1) / 2) for piece in range(pieces) for x in local.tolist()]
    phi, psi = (
        _matrix(basis, [_inside(piece, u, pieces // basis.cells) for piece, u in points])
        for basis in (old, new)
    )
    weighted = psi.T * torch.from_numpy(np.tile(weights, pieces))
    return apply(torch.linalg.solve(weighted @ psi, weighted @ phi), coefficients)


def _inside(piece: int, local: float, pieces: int) -> Place:
    """Return the place of a point of a piece, where each cell has ``pieces`` pieces."""
    return Place(piece // pieces, (piece % pieces + local) / pieces)


def _place(s: float, cells: int, slack: float) -> Place:
    # A depth such as 0.29 of 100 cells is the knot that it rounds to.
    cell = min(math.floor(s * cells + slack), cells - 1)
    return Place(cell, min(max(s * cells - cell, 0.0), 1.0))


def _matrix(basis: Basis, places: list[Place]) -> Tensor:
    matrix = torch.zeros(len(places), basis.size, dtype=torch.float64)
    for row, place in enumerate(places):
        for k, weight in basis.at(place):
            matrix[row, k] = weight
    return matrix


def _check_size(name: str, coefficients: Tensor, basis: Basis) -> None:
    if not (coefficients.is_floating_point() or coefficients.is_complex()):
        raise TypeError(f"{name}: {coefficients.dtype} is not allowed; pass floating-point numbers")
    if coefficients.ndim == 0 or len(coefficients) != basis.size:
        raise ValueError(
            f"{name}: shape {tuple(coefficients.shape)} is not allowed; {basis!r} needs "
            f"{basis.size} along the leading axis"
        )
