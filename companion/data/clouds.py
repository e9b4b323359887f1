r"""Four data sets of the plane, with the exact densities that they are drawn from.

Since the densities are known, so is the best log-likelihood that any model can reach: the mean of
``log_prob`` over the test points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from companion.arguments import check_number, store_count
from companion.data.plane import check_points, coins, normal, uniform

__all__ = ["Checkerboard", "Circles", "Moons", "Pinwheel"]


@dataclass(frozen=True)
class Moons:
    r"""Two half circles that reach into one another, noisy, then standardised.

    With $\theta$ uniform on $[0, \pi]$ a point lies on $(\cos\theta, \sin\theta)$ or on
    $(1 - \cos\theta, \tfrac12 - \sin\theta)$, each with probability 1/2. Normal noise is added, and
    both coordinates are scaled to mean 0 and variance 1, by their exact moments. The density is an
    integral over $\theta$, taken by Gauss and Legendre to about 12 digits.

    Args:
        noise: standard deviation of the noise, before scaling, at least 0.01.

    Raises:
        TypeError: ``noise`` that is no number.
        ValueError: ``noise`` below 0.01 or not finite.

    Source:
        The shape is that of scikit-learn's ``make_moons``, which spaces the angles evenly; here
        they are independent.

    Example:
        >>> x = Moons().sample(1000, torch.Generator().manual_seed(0))
        >>> x.shape, bool(Moons().log_prob(x).mean() > -1.4)
        (torch.Size([1000, 2]), True)
    """

    noise: float = 0.06

    def __post_init__(self) -> None:
        check_number("noise", self.noise, least=0.01)

    def sample(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return independent points, shape ``(n, 2)``."""
        angle = math.pi * uniform(n, 1, generator, dtype).squeeze(1)
        arcs = torch.stack(_arcs(angle))
        points = arcs[coins(n, 2, generator), torch.arange(n, device=arcs.device)]
        points = points + self.noise * normal(n, 2, generator, dtype)
        mean, deviation = self._moments(points)
        return (points - mean) / deviation

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density, shape ``(..., 2)`` to ``(...)``."""
        check_points(x)
        mean, deviation = self._moments(x)
        points = mean + deviation * x
        nodes, weights = np.polynomial.legendre.leggauss(math.ceil(8 / self.noise))
        angle = torch.as_tensor(nodes, dtype=x.dtype, device=x.device).add(1).mul(math.pi / 2)
        weight = torch.as_tensor(weights / 4, dtype=x.dtype, device=x.device)  # all are 1 together
        places = torch.cat(_arcs(angle))
        squares = (points.unsqueeze(-2) - places).square().sum(-1)
        terms = weight.log().repeat(2) - squares / (2 * self.noise**2)
        scale = math.log(2 * math.pi * self.noise**2)
        return torch.logsumexp(terms, -1) - scale + deviation.log().sum()

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of both coordinates before scaling."""
        variance = (0.75 + self.noise**2, 0.5625 - 1 / math.pi + self.noise**2)
        return like.new_tensor([0.5, 0.25]), like.new_tensor(variance).sqrt()


def _arcs(angle: Tensor) -> tuple[Tensor, Tensor]:
    upper = torch.stack([angle.cos(), angle.sin()], dim=-1)
    return upper, upper.new_tensor([1.0, 0.5]) - upper


@dataclass(frozen=True)
class Circles:
    r"""Two circles about the origin, with noise.

    The radii are $R_1 = 1$ and $R_2$ = ``factor``, each with probability 1/2; the noise has the
    standard deviation $s$, and in the end everything is multiplied by ``scale``. Before that,

    $$p(x) = \sum_{k=1}^2 \frac1{4\pi s^2} \exp\Bigl(-\frac{|x|^2 + R_k^2}{2s^2}\Bigr)\,
    I_0\Bigl(\frac{|x| R_k}{s^2}\Bigr)$$

    with the modified Bessel function $I_0$.

    Args:
        noise: the standard deviation $s$, at least 0.01.
        factor: the inner radius, 0 to 1.
        scale: what points are multiplied by, at least 0.01.

    Raises:
        TypeError: an argument that is no number.
        ValueError: an argument outside its range.

    Source:
        The shape is that of scikit-learn's ``make_circles``, which spaces the angles evenly; here
        they are independent.

    Example:
        >>> x = Circles(noise=0.01).sample(100, torch.Generator().manual_seed(0))
        >>> (x.norm(dim=1) / 1.8).round(decimals=1).unique()
        tensor([0.5000, 1.0000])
    """

    noise: float = 0.06
    factor: float = 0.5
    scale: float = 1.8

    def __post_init__(self) -> None:
        check_number("noise", self.noise, least=0.01)
        check_number("scale", self.scale, least=0.01)
        if check_number("factor", self.factor, least=0) > 1:
            raise ValueError(f"factor: {self.factor!r} is not allowed; it must be at most 1")

    def sample(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return independent points, shape ``(n, 2)``."""
        angle = 2 * math.pi * uniform(n, 1, generator, dtype).squeeze(1)
        radius = angle.new_tensor([1.0, self.factor])[coins(n, 2, generator)]
        points = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], dim=1)
        return self.scale * (points + self.noise * normal(n, 2, generator, dtype))

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density, shape ``(..., 2)`` to ``(...)``."""
        check_points(x)
        r, variance = x.norm(dim=-1) / self.scale, self.noise**2

        def circle(radius: float) -> Tensor:  # i0e(z) is I_0(z) exp(-z), so that nothing overflows
            bessel = torch.special.i0e(r * radius / variance)
            value: Tensor = bessel.log() - (r - radius).square() / (2 * variance)
            return value

        both = torch.logaddexp(circle(1.0), circle(self.factor))
        return both - math.log(4 * math.pi * variance * self.scale**2)


@dataclass(frozen=True)
class Pinwheel:
    r"""Arms about the origin that a rotation has bent.

    A point $(1 + 0.3\,\xi, 0.1\,\eta)$ with $\xi, \eta$ normal is turned by
    $2\pi k/\text{arms} + \tfrac14 e^r$, where the arm $k$ is random and $r$ is the distance from
    the origin, and then multiplied by 1.3. Turning by an angle that depends on the distance alone
    keeps areas, and so the density is a sum of one normal density for each arm.

    Args:
        arms: their number, at least 1.

    Raises:
        ValueError: ``arms`` that is no integer of at least 1.

    Source:
        Johnson et al. 2016, figure 1, who turn by the first coordinate in place of the distance:
        the pictures are alike, but that map folds, and its density has no closed form.

    Example:
        >>> Pinwheel(arms=3).sample(5, torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2])
    """

    arms: int = 5

    def __post_init__(self) -> None:
        store_count(self, "arms")

    def sample(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return independent points, shape ``(n, 2)``."""
        straight = normal(n, 2, generator, dtype)
        straight = straight * straight.new_tensor([0.3, 0.1]) + straight.new_tensor([1.0, 0.0])
        arm = coins(n, self.arms, generator).to(dtype) * (2 * math.pi / self.arms)
        return 1.3 * _turned(straight, arm + straight.norm(dim=1).exp() / 4)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density, shape ``(..., 2)`` to ``(...)``."""
        check_points(x)
        points = (x / 1.3).unsqueeze(-2)
        arm = torch.arange(self.arms, dtype=x.dtype, device=x.device) * (2 * math.pi / self.arms)
        straight = _turned(points, -(arm + points.norm(dim=-1).exp() / 4))
        along, across = (straight - straight.new_tensor([1.0, 0.0])).unbind(-1)
        terms = -0.5 * ((along / 0.3) ** 2 + (across / 0.1) ** 2)
        area = 2 * math.pi * 0.3 * 0.1 * 1.3**2
        return torch.logsumexp(terms, -1) - math.log(self.arms * area)


def _turned(points: Tensor, angle: Tensor) -> Tensor:
    x, y = points.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)


@dataclass(frozen=True)
class Checkerboard:
    r"""Eight of the sixteen unit squares of $[-2, 2]^2$, uniformly.

    Those whose lower left corner has coordinates of an even sum. The density is 1/8 on them and 0
    elsewhere, so that no model has a mean negative log-likelihood below $\ln 8$, and only a density
    that jumps attains it.

    Example:
        >>> board = Checkerboard()
        >>> board.log_prob(torch.tensor([[0.5, 0.5], [0.5, 1.5]]))
        tensor([-2.0794,    -inf])
        >>> bool(board.log_prob(board.sample(100, torch.Generator())).isfinite().all())
        True
    """

    def sample(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return independent points, shape ``(n, 2)``."""
        square = coins(n, 8, generator)
        column, pair = square // 2 - 2, square % 2
        corner = torch.stack([column, 2 * pair - 2 + column % 2], dim=1).to(dtype)
        # A sum such as 1 + 0.99999999 is rounded up, into the next square.
        beyond = torch.nextafter(corner + 1, corner)
        return torch.minimum(corner + uniform(n, 2, generator, dtype), beyond)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density, shape ``(..., 2)`` to ``(...)``."""
        check_points(x)
        corner = x.floor()
        inside = ((corner >= -2) & (corner <= 1)).all(-1) & (corner.sum(-1) % 2 == 0)
        return x.new_full(inside.shape, -math.log(8)).masked_fill(~inside, -math.inf)
