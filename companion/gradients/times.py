"""The gradients of output times, for methods that hold every step fixed."""

from __future__ import annotations

import torch
from torch import Tensor

from companion.gradients.function import Given
from companion.solve import Stage

__all__ = ["time_gradients"]


def time_gradients(given: Given, a: Tensor) -> list[Tensor | None]:
    """Return ``g_i . f(t_i, y_i)`` for later outputs, ``-a(t_0) . f(t_0, y_0)`` for the first.

    The states at the outputs come first among the tensors that were kept.
    """
    t, field = given.problem.t, given.problem.field
    assert isinstance(t, Tensor)
    adjoints = [-a, *given.grad_ys[1:]]
    products = [
        (adjoint * field(Stage(time), y)).sum()
        for time, y, adjoint in zip(t.unbind(), given.tensors, adjoints, strict=False)
    ]
    return list(torch.stack(products).to(t.dtype))
