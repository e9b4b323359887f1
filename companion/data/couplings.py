"""Which noise goes with which sample? Pairs that cost least, batch by batch."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from companion.arguments import check_count, check_type

__all__ = ["optimal_pairs"]


def optimal_pairs(x0: Tensor, x1: Tensor, *, block: int = 128) -> Tensor:
    r"""Return the order of ``x1`` in which it is closest to ``x0``, block by block.

    Of all permutations $\pi$ that keep each block of rows within itself, this is the one with the
    least cost

    $$\sum_i |x_{0,i} - x_{1,\pi(i)}|^2.$$

    If the rows of both are drawn independently, then a random pair has the same two marginal laws
    as before. The pairs are not those of the optimal coupling of these laws, which needs infinite
    blocks. Where samples have classes that a model is told, match within each class: the best
    pairing of all classes together ties the noise to the class.

    The work grows with the cube of ``block``, and is done on the CPU.

    Args:
        x0: noise, shape ``(n, ...)``.
        x1: samples, of the same shape.
        block: rows that are matched together, at least 1. The last block may be smaller.

    Returns:
        Indices of shape ``(n,)``, on the device of ``x1``: ``x1[order]`` goes with ``x0``, and so
        do ``labels[order]``.

    Raises:
        TypeError: for what is no tensor.
        ValueError: other shapes or no rows, a ``block`` outside its range, or values that are not
            finite.

    Source:
        Pooladian et al. 2023; Tong et al. 2024. The assignment is SciPy's.

    Example:
        >>> x0, x1 = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[2.1], [0.1], [1.1]])
        >>> optimal_pairs(x0, x1)
        tensor([1, 2, 0])
    """
    check_type("x0", x0, Tensor)
    check_type("x1", x1, Tensor)
    check_count("block", block)
    if x0.ndim < 2 or not x0.numel():
        raise ValueError(
            f"x0: shape {tuple(x0.shape)} is not allowed; it must be (n, ...) with no empty axis"
        )
    if x0.shape != x1.shape:
        raise ValueError(
            f"x1: shape {tuple(x1.shape)} is not allowed; it must be that of x0, {tuple(x0.shape)}"
        )
    noise, samples = (x.detach().flatten(1).cpu().double() for x in (x0, x1))
    order = [
        first + _best(noise[first : first + block], samples[first : first + block])
        for first in range(0, len(noise), block)
    ]
    return torch.cat(order).to(x1.device)


def _best(noise: Tensor, samples: Tensor) -> Tensor:
    cost = torch.cdist(noise, samples, compute_mode="donot_use_mm_for_euclid_dist").square()
    if not cost.isfinite().all():
        raise ValueError("x0, x1: values that are not finite are not allowed")
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])
