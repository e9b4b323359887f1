"""Fields and settings that several test files share."""

import pytest
import torch
from torch import nn

from companion.methods import takes

COMPILE = (2, 11)
"""The first torch whose compiler traces a block; the extra `compile` of the package asks for it."""

needs_compile = pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < COMPILE,
    reason=f"compiled solves need torch {'.'.join(map(str, COMPILE))}",
)


def knobs(method, **wanted):
    """Return those of the wanted knobs that a method has; it refuses the others."""
    return {name: value for name, value in wanted.items() if takes(name, method)}


class Tanh(nn.Module):
    """A nonlinear, time-dependent field of three components: V tanh(W y + b + c t)."""

    def __init__(self, device, dtype=torch.float64, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)

        def values(*shape):
            return nn.Parameter(torch.randn(*shape, generator=draw, dtype=dtype).to(device))

        self.w, self.b, self.c, self.v = values(4, 3), values(4), values(4), values(3, 4)

    def forward(self, t, y):
        return torch.tanh(y @ self.w.T + self.b + self.c * t) @ self.v.T


def randn(*shape, device, dtype=torch.float64, seed: int = 1):
    """Return the same normal numbers on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(device)


def gradients(loss, inputs):
    """Return the gradients of a loss, zeros where it does not depend on an input."""
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


def largest_difference(one, other) -> float:
    """Return the largest absolute difference over two lists of tensors."""
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))
