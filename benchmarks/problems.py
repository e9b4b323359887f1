"""The work that several benchmarks share, and the loops one would write by hand."""

from collections.abc import Callable, Iterable

import torch
from scipy.integrate import RK45
from torch import Tensor, nn

State = Callable[[Tensor], Tensor]


class TanhField(nn.Module):
    """dy/dt = W2 tanh(W1 y + b1) + b2 with 2 inputs and 50 hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))

    def forward(self, t: Tensor | float, y: Tensor) -> Tensor:
        return self.net(y)


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Return ``make()``, initialised from one fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().to(dtype)


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return the same normal numbers at every call."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def rk4_loop(
    func: Callable[[float, Tensor], Tensor], y: Tensor, steps: int, t1: float = 1.0
) -> Tensor:
    """The classic scheme from 0 to ``t1``, written as in a textbook."""
    h = t1 / steps
    for n in range(steps):
        t = n * h
        k1 = func(t, y)
        k2 = func(t + h / 2, y + h / 2 * k1)
        k3 = func(t + h / 2, y + h / 2 * k2)
        k4 = func(t + h, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y


def forward(solve: State, y0: Tensor) -> tuple[Tensor, ...]:
    """Run a solve without gradients."""
    with torch.no_grad():
        return (solve(y0),)


def forward_backward(solve: State, y0: Tensor, params: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Run a solve and differentiate the mean square of all it returns; results and gradients."""
    y0 = y0.clone().requires_grad_()
    y = solve(y0)
    gradients = torch.autograd.grad(y.square().mean(), [y0, *params])
    return (y.detach(), *gradients)


def dopri5_loop(
    func: Callable[[float, Tensor], Tensor], y: Tensor, t1: float, tol: float
) -> Tensor:
    """Dormand and Prince's pair from 0 to ``t1``, as in a textbook: autograd records it all."""
    rows, weights, error = RK45.A.tolist(), RK45.B.tolist(), RK45.E.tolist()
    t, h, k1 = 0.0, 0.01 * t1, func(0.0, y)
    while t < t1:
        h = min(h, t1 - t)
        ks = [k1]
        for row, c in zip(rows[1:], RK45.C[1:].tolist(), strict=True):
            ks.append(func(t + c * h, y + h * sum(a * k for a, k in zip(row, ks, strict=False))))
        new = y + h * sum(b * k for b, k in zip(weights, ks, strict=True))
        ks.append(func(t + h, new))
        wrong = h * sum(e * k for e, k in zip(error, ks, strict=True))
        scale = tol + tol * torch.maximum(y.abs(), new.abs())
        ratio = float((wrong / scale).detach().square().mean().sqrt())
        if ratio <= 1:
            t, y, k1 = t + h, new, ks[-1]
        h *= min(10.0, max(0.2, 0.9 * ratio**-0.2)) if ratio else 10.0
    return y
