r"""What it takes to turn a line round: the least Lipschitz constant of a field that reverses it.

A flow that starts at $(x, 0, \dots, 0)$ and has the first coordinate $-cx$ at time 1 needs a field
whose Lipschitz constant is at least

$$\Lambda(c) = \min_{\pi/2 < b \le \pi} \sqrt{b^2 + \log^2\Bigl(\frac{c}{-\cos b}\Bigr)},$$

in any dimension. A logarithmic spiral in the plane attains it. Chapter 5 has the proof.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.arguments import check_count, check_number, not_allowed

__all__ = ["best_angle", "best_spiral", "least_lipschitz", "pair_rates"]


def best_angle(factor: float = 1.0) -> float:
    r"""Return the angle $b$ by which the best field turns, in $(\pi/2, \pi]$.

    It is the only root there of $b + \tan b\,\log(c/(-\cos b)) = 0$, found by bisection.

    Args:
        factor: the number $c$ above 0.

    Raises:
        ValueError: a factor that is not above 0, or not finite.

    Example:
        >>> round(best_angle(), 4)
        1.9924
    """
    return math.pi / 2 + _past_the_vertical(factor)


def least_lipschitz(factor: float = 1.0) -> float:
    r"""Return $\Lambda(c)$, the least Lipschitz constant of a field that takes $x$ to $-cx$.

    Args:
        factor: the number $c$ above 0.

    Example:
        >>> round(least_lipschitz(), 4)
        2.1836
    """
    past = _past_the_vertical(factor)
    return math.hypot(math.pi / 2 + past, math.log(factor) - math.log(math.sin(past)))


def _past_the_vertical(factor: float) -> float:
    """Return the best angle less a quarter turn, to all digits also where it is tiny."""
    check_number("factor", factor)
    if not factor > 0:
        raise ValueError(not_allowed("factor", factor, "it must be above 0"))
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        growth = math.log(factor) - math.log(math.sin(middle))
        # The derivative of half the square; it is below 0 before the root and above 0 behind it.
        if math.pi / 2 + middle < growth / math.tan(middle):
            low = middle
        else:
            high = middle
    return high


def best_spiral(factor: float = 1.0) -> Tensor:
    r"""Return the matrix $A$ of a linear field $\dot x = Ax$ in the plane that attains the least.

    Its exponential has the first entry $-c$, and $A = \alpha I + b J$ with the quarter turn $J$.

    Shapes: ``(2, 2)``, in double precision.

    Raises:
        ValueError: a factor that is not above 0 or not finite, or one below 1e-15, whose angle is a
            quarter turn up to rounding. The exponential is rounded to some 1e-16 of its largest
            entry too, so a tiny factor shows in its digits only in part.

    Example:
        >>> matrix = best_spiral()
        >>> float(torch.linalg.matrix_exp(matrix)[0, 0].round(decimals=9))
        -1.0
        >>> round(float(torch.linalg.matrix_norm(matrix, 2)), 4)
        2.1836
    """
    angle = best_angle(factor)
    if factor < 1e-15:
        raise ValueError(not_allowed("factor", factor, "it must be at least 1e-15"))
    growth = math.log(factor) - math.log(-math.cos(angle))
    return torch.tensor([[growth, -angle], [angle, growth]], dtype=torch.float64)


@torch.no_grad()
def pair_rates(
    field: Callable[[Any, Any], Any], times: Sequence[float], ys: Tensor, between: int = 3
) -> tuple[Tensor, Tensor]:
    r"""Measure how steep a field is between trajectories, at every time.

    Args:
        field: ``field(t, y)`` for states of shape ``(batch, dim)``.
        times: the times of the trajectories.
        ys: their states, shape ``(times, batch, dim)``.
        between: points on each segment between two states, besides its ends.

    Returns:
        The largest $\lVert f(u) - f(v)\rVert / \lVert u - v\rVert$ over all pairs of different
        states at each time, 0 if there are none, which no Lipschitz constant can be below; and the
        largest spectral norm of the Jacobian on the segments between the first state and the
        others, which none can be below
        either. Both of shape ``(times,)``.

    Raises:
        ValueError: states of another shape, fewer than two at a time, as many times as states are
            asked for, or ``between`` below 0.

    Example:
        >>> matrix = best_spiral()
        >>> ys = torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
        >>> rates, norms = pair_rates(lambda t, y: y @ matrix.T, [0.0, 0.5, 1.0], ys)
        >>> [round(float(value), 4) for value in (rates.max(), norms.max())]
        [2.1836, 2.1836]
    """
    check_count("between", between, least=0)
    if ys.ndim != 3 or ys.shape[1] < 2:
        raise ValueError(
            f"ys: shape {tuple(ys.shape)} is not allowed; it must be (times, batch, dim), with two "
            "states or more at each time"
        )
    if len(times) != len(ys):
        raise ValueError(f"times: {len(times)} are not allowed; there are states at {len(ys)}")
    rates, norms = [], []
    shares = torch.linspace(0, 1, between + 2, dtype=ys.dtype, device=ys.device)[:, None, None]
    for at, y in zip(times, ys, strict=True):
        t = torch.as_tensor(at, dtype=y.dtype, device=y.device)
        first, second = torch.triu_indices(len(y), len(y), 1, device=y.device)
        speed = field(t, y)
        apart = (y[first] - y[second]).norm(dim=1)
        quotients = (speed[first] - speed[second]).norm(dim=1) / apart
        rates.append(torch.where(apart > 0, quotients, 0.0).max())  # equal states tell nothing
        places = (y[:1] * (1 - shares) + y * shares).reshape(-1, y.shape[1])
        jacobians = torch.func.vmap(torch.func.jacrev(lambda z, t=t: field(t, z[None])[0]))(places)
        norms.append(torch.linalg.matrix_norm(jacobians, 2).max())
    return torch.stack(rates), torch.stack(norms)
