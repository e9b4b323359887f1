r"""Paths from noise to data, the velocities along them, and the scores that belong to these.

Time runs from noise, $t = 0$, to data, $t = 1$. Diffusion papers run the other way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Coefficients",
    "Interpolant",
    "linear",
    "matching_errors",
    "times_like",
    "trigonometric",
]


class Coefficients(NamedTuple):
    r"""The numbers of a path at one time, or at a time for each point.

    Attributes:
        alpha: $\alpha_t$, which multiplies the data.
        sigma: $\sigma_t$, which multiplies the noise.
        alpha_rate: $\dot\alpha_t$.
        sigma_rate: $\dot\sigma_t$.
    """

    alpha: Tensor
    sigma: Tensor
    alpha_rate: Tensor
    sigma_rate: Tensor


@dataclass(frozen=True)
class Interpolant:
    r"""A path from noise $X_0$ to data $X_1$.

    $$X_t = \alpha_t X_1 + \sigma_t X_0, \qquad \dot X_t = \dot\alpha_t X_1 + \dot\sigma_t X_0.$$

    The velocity of a single pair is known, and a field $v(t, x)$ that is fitted to it by least
    squares tends to the mean $u_t(x) = \mathbb E[\dot X_t \mid X_t = x]$, which carries the law of
    the noise to that of the data. If the noise is standard normal and independent of the data, the
    *score* $\nabla\log p_t$ of the law of $X_t$ says the same as $u_t$:

    $$\alpha u_t(x) = \dot\alpha\, x
    + \sigma\,(\dot\alpha \sigma - \dot\sigma \alpha)\, \nabla\log p_t(x).$$

    Times are numbers, tensors without axes, or one for each point, of shape ``(n,)`` or ready to
    broadcast, ``(n, 1, ...)``; points are ``(n, ...)``.

    Args:
        alpha: $\alpha$ as a function of tensors of times, made of torch's operations.
        sigma: $\sigma$, likewise. Their derivatives are taken by autograd.

    Source:
        Albergo and Vanden-Eijnden 2023; Lipman et al. 2023, section 4; Song et al. 2021, section
        4.3, for the relation to the score.

    Example:
        >>> path = Interpolant(lambda t: t**2, lambda t: 1 - t)
        >>> x0, x1 = torch.tensor([[1.0]]), torch.tensor([[4.0]])
        >>> path.point(0.5, x0, x1), path.velocity(0.5, x0, x1)
        (tensor([[1.5000]]), tensor([[3.]]))
    """

    alpha: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]

    def coefficients(self, t: float | Tensor, like: Tensor) -> Coefficients:
        """Return the coefficients and their rates, so that they broadcast against ``like``.

        Raises:
            ValueError: times that are neither one nor one for each point.
        """
        time = times_like(t, like)
        (alpha, alpha_rate), (sigma, sigma_rate) = (
            _value_and_rate(func, time) for func in (self.alpha, self.sigma)
        )
        return Coefficients(alpha, sigma, alpha_rate, sigma_rate)

    def point(self, t: float | Tensor, x0: Tensor, x1: Tensor) -> Tensor:
        """Return where the path from ``x0`` to ``x1`` is at ``t``."""
        at = self.coefficients(t, x1)
        return at.alpha * x1 + at.sigma * x0

    def velocity(self, t: float | Tensor, x0: Tensor, x1: Tensor) -> Tensor:
        """Return the velocity on the path from ``x0`` to ``x1`` at ``t``."""
        at = self.coefficients(t, x1)
        return at.alpha_rate * x1 + at.sigma_rate * x0

    def score_from_velocity(self, t: float | Tensor, x: Tensor, velocity: Tensor) -> Tensor:
        r"""Return $\nabla\log p_t(x)$ from $u_t(x)$; for independent standard normal noise.

        Raises:
            ValueError: at a time where $\sigma = 0$ or $\dot\alpha\sigma = \dot\sigma\alpha$, say
                at the end of the path.

        Example:
            >>> x = torch.tensor([[3.0]])
            >>> linear().score_from_velocity(0.0, x, 5 - x)  # that of the noise, whatever the data
            tensor([[-3.]])
        """
        at = self.coefficients(t, x)
        share = at.sigma * (at.alpha_rate * at.sigma - at.sigma_rate * at.alpha)
        _check_nonzero(share, t, "the noise has left the path")
        return (at.alpha * velocity - at.alpha_rate * x) / share

    def velocity_from_score(self, t: float | Tensor, x: Tensor, score: Tensor) -> Tensor:
        r"""Return $u_t(x)$ from $\nabla\log p_t(x)$; for independent standard normal noise.

        Raises:
            ValueError: at a time where $\alpha = 0$, say at the start of the path: the score of
                pure noise knows nothing of the data.
        """
        at = self.coefficients(t, x)
        _check_nonzero(at.alpha, t, "the data have not entered the path")
        share = at.sigma * (at.alpha_rate * at.sigma - at.sigma_rate * at.alpha)
        return (at.alpha_rate * x + share * score) / at.alpha


def linear() -> Interpolant:
    r"""Return the straight path, $\alpha = t$ and $\sigma = 1 - t$.

    Source:
        Liu, Gong and Liu 2023; Lipman et al. 2023.

    Example:
        >>> linear().velocity(0.3, torch.tensor([[1.0]]), torch.tensor([[5.0]]))
        tensor([[4.]])
    """
    return Interpolant(lambda t: t, lambda t: 1 - t)


def trigonometric() -> Interpolant:
    r"""Return the path of constant variance.

    $$\alpha = \sin\frac{\pi t}2, \qquad \sigma = \cos\frac{\pi t}2$$

    Source:
        Albergo and Vanden-Eijnden 2023, section 2; the variance-preserving diffusion of Song et al.
        2021 in another time.

    Example:
        >>> trigonometric().point(0.5, torch.tensor([[1.0]]), torch.tensor([[1.0]]))
        tensor([[1.4142]])
    """
    return Interpolant(lambda t: torch.sin(math.pi / 2 * t), lambda t: torch.cos(math.pi / 2 * t))


def matching_errors(
    field: Callable[[Tensor, Tensor], Tensor],
    path: Interpolant,
    t: Tensor,
    x0: Tensor,
    x1: Tensor,
) -> Tensor:
    r"""Return $|v(t, X_t) - \dot X_t|^2$ for each pair: their mean is the loss of flow matching.

    The mean does not go to 0. It has the gradient of $\mathbb E|v - u_t|^2$, but exceeds that by
    the variance of $\dot X_t$ given $X_t$.

    Args:
        field: $v$, called with times of shape ``(n, 1, ...)`` that broadcast against the points.
        path: from noise to data.
        t: times, shape ``(n,)``.
        x0: noise, shape ``(n, ...)``.
        x1: data, of the same shape.

    Returns:
        Shape ``(n,)``: sums over all coordinates.

    Raises:
        ValueError: as many times as pairs are asked for, and a field that keeps the shape.

    Source:
        Lipman et al. 2023, theorem 2.

    Example:
        >>> x0, x1 = torch.zeros(2, 3), torch.ones(2, 3)
        >>> matching_errors(lambda t, x: 0 * x, linear(), torch.rand(2), x0, x1)
        tensor([3., 3.])
    """
    if t.shape != x1.shape[:1]:
        raise ValueError(
            f"t: shape {tuple(t.shape)} is not allowed; it must be {tuple(x1.shape[:1])}"
        )
    x, target = path.point(t, x0, x1), path.velocity(t, x0, x1)
    found = field(times_like(t, x), x)
    if found.shape != target.shape:
        raise ValueError(
            f"field: a value of shape {tuple(found.shape)} is not allowed; it must be "
            f"{tuple(target.shape)}"
        )
    return (found - target).square().flatten(1).sum(1)


def times_like(t: float | Tensor, x: Tensor) -> Tensor:
    """Return times as a tensor that broadcasts against points, of their type and device.

    Raises:
        ValueError: times that are neither one nor one for each point.

    Example:
        >>> times_like(torch.tensor([0.0, 1.0]), torch.zeros(2, 5, 5)).shape
        torch.Size([2, 1, 1])
    """
    time = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    if time.ndim == 0:
        return time
    if time.numel() != len(x) or time.shape[0] != len(x):
        raise ValueError(
            f"t: shape {tuple(time.shape)} is not allowed; it must be one time, or one for each of "
            f"{len(x)} points"
        )
    return time.reshape(-1, *[1] * (x.ndim - 1))


def _value_and_rate(func: Callable[[Tensor], Tensor], time: Tensor) -> tuple[Tensor, Tensor]:
    value, pull = torch.func.vjp(func, time)[:2]
    (rate,) = pull(torch.ones_like(value))  # every value depends on its own time alone
    return value, rate


def _check_nonzero(value: Tensor, t: float | Tensor, why: str) -> None:
    if not bool((value != 0).all()):
        raise ValueError(f"t: {t!r} is not allowed; there, {why}")
