r"""Three densities of the plane to be matched: given by a formula, and sampled exactly.

A flow is fitted to such a density from the formula alone, without any data. The samples serve to
judge it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from companion.arguments import check_count, check_number
from companion.data.plane import check_points, coins, normal, uniform

__all__ = ["Ring", "TwoModes", "Wave"]


@dataclass(frozen=True)
class Ring:
    r"""A ring of radius 2 that is dense at its left and right ends only: two bent modes.

    $$p(x) = \frac1Z \exp\Bigl(-\tfrac12\bigl(\tfrac{|x| - 2}{0.4}\bigr)^2\Bigr)
    \Bigl(e^{-\frac12(\frac{x_1 - 2}{0.6})^2} + e^{-\frac12(\frac{x_1 + 2}{0.6})^2}\Bigr)$$

    The constant $Z$ has no closed form; a quadrature in polar coordinates gives it to 13 digits.

    Source:
        Rezende and Mohamed 2015, table 1, potential $U_1$.

    Example:
        >>> Ring().log_prob(torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.float64))
        tensor([-1.8775, -6.7399], dtype=torch.float64)
    """

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density, shape ``(..., 2)`` to ``(...)``."""
        check_points(x)
        right, left = (-0.5 * ((x[..., 0] - place) / 0.6) ** 2 for place in (2, -2))
        ring: Tensor = -0.5 * ((x.norm(dim=-1) - 2) / 0.4) ** 2
        return ring + torch.logaddexp(right, left) - _log_normaliser_of_the_ring()

    def sample(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        r"""Return independent points, shape ``(n, 2)``, by rejection.

        Proposals are $x_1 \sim \mathcal N(\pm 2, 0.6^2)$ and $x_2 \sim \mathcal N(0, 1.6^2)$. The
        ratio of the densities is largest on the second axis, where
        $-\frac12(\frac{r - 2}{0.4})^2 + \frac12(\frac r{1.6})^2$ has the maximum
        $2/(1.6^2 - 0.4^2)$.
        """
        check_count("n", n)
        kept: list[Tensor] = []
        while sum(map(len, kept)) < n:
            points = normal(max(n, 64), 2, generator, dtype)
            points = points * points.new_tensor([0.6, 1.6])
            points[:, 0] += 4 * coins(len(points), 2, generator) - 2
            ratio = (points[:, 1] / 1.6) ** 2 / 2 - ((points.norm(dim=1) - 2) / 0.4) ** 2 / 2
            bound = 2 / (1.6**2 - 0.4**2)
            draws = uniform(len(points), 1, generator, dtype).squeeze(1)
            kept.append(points[draws.log() < ratio - bound])
        return torch.cat(kept)[:n]


@lru_cache(maxsize=1)
def _log_normaliser_of_the_ring() -> float:
    """Integrate in polar coordinates, where the integrand is smooth up to the origin."""
    nodes, weights = np.polynomial.legendre.leggauss(160)
    radius, weights = 4 * (nodes + 1), 4 * weights  # at 8 the density is exp(-112)
    angle = 2 * np.pi * np.arange(400) / 400
    first = np.outer(radius, np.cos(angle))
    modes = sum(np.exp(-0.5 * ((first - place) / 0.6) ** 2) for place in (2, -2))
    around = np.mean(modes, axis=1) * 2 * np.pi
    return float(
        np.log(np.sum(weights * radius * np.exp(-0.5 * ((radius - 2) / 0.4) ** 2) * around))
    )


@dataclass(frozen=True)
class Wave:
    r"""One mode that follows a sine.

    $$p(x) = \frac1{2\pi \cdot 0.8} \exp\Bigl(-\tfrac12\bigl(\tfrac{x_1}2\bigr)^2
    - \tfrac12\bigl(\tfrac{x_2 - \sin(\pi x_1/2)}{0.4}\bigr)^2\Bigr)$$

    Source:
        The wave of Rezende and Mohamed 2015, table 1, potential $U_2$, with a first coordinate that
        is normal, so that its integral is finite.

    Example:
        >>> Wave().log_prob(torch.tensor([1.0, 1.0], dtype=torch.float64))  # -log(1.6 pi) - 1/8
        tensor(-1.7397, dtype=torch.float64)
    """

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density, shape ``(..., 2)`` to ``(...)``."""
        check_points(x)
        first, second = x.unbind(-1)
        off = (second - torch.sin(math.pi / 2 * first)) / 0.4
        return -0.5 * ((first / 2) ** 2 + off**2) - math.log(2 * math.pi * 0.8)

    def sample(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return independent points, shape ``(n, 2)``."""
        first, second = normal(n, 2, generator, dtype).unbind(1)
        first = 2 * first
        return torch.stack([first, torch.sin(math.pi / 2 * first) + 0.4 * second], dim=1)


@dataclass(frozen=True)
class TwoModes:
    r"""Two normal densities beside each other, with equal weights.

    $$p = \tfrac12 \mathcal N\bigl((-\tfrac\delta2, 0), s^2 I\bigr)
    + \tfrac12 \mathcal N\bigl((\tfrac\delta2, 0), s^2 I\bigr)$$

    Args:
        distance: $\delta$ between the two means, at least 0.
        deviation: their standard deviation $s$, at least 0.001.

    Raises:
        TypeError: an argument that is no number.
        ValueError: an argument outside its range.

    Example:
        >>> TwoModes(distance=0.0, deviation=1.0).log_prob(torch.zeros(2))  # -log(2 pi)
        tensor(-1.8379)
    """

    distance: float = 4.0
    deviation: float = 0.4

    def __post_init__(self) -> None:
        check_number("distance", self.distance, least=0)
        check_number("deviation", self.deviation, least=0.001)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density, shape ``(..., 2)`` to ``(...)``."""
        check_points(x)
        half = x.new_tensor([self.distance / 2, 0.0])
        squares = [(x + half).square().sum(-1), (x - half).square().sum(-1)]
        left, right = (-square / (2 * self.deviation**2) for square in squares)
        return torch.logaddexp(left, right) - math.log(4 * math.pi * self.deviation**2)

    def sample(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return independent points, shape ``(n, 2)``."""
        points = self.deviation * normal(n, 2, generator, dtype)
        points[:, 0] += self.distance * (coins(n, 2, generator) - 0.5)
        return points
