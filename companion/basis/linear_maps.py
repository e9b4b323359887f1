"""Matrices that act on the leading axis of stacked coefficients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def apply(matrix: Tensor, coefficients: Tensor) -> Tensor:
    """Return the matrix times the leading axis, in double precision, as the dtype that came.

    Example:
        >>> apply(torch.tensor([[0.5, 0.5]], dtype=torch.float64), torch.tensor([1.0, 3.0]))
        tensor([2.])
    """
    wide = torch.promote_types(coefficients.dtype, torch.float64)
    matrix = matrix.to(coefficients.device, wide)
    product: Tensor = torch.tensordot(matrix, coefficients.to(wide), dims=1)
    return product.to(coefficients.dtype)


def solve(rows: Sequence[Sequence[float]]) -> Tensor:
    """Return the inverse of a square matrix: values at nodes to coefficients."""
    inverse: Tensor = torch.linalg.inv(torch.tensor(rows, dtype=torch.float64))
    return inverse
