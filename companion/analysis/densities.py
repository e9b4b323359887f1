r"""How far is one density, or one set of samples, from another?

What there is decides the measure. With a flow and the formula of its target, the Kullback-Leibler
divergence is an integral over the plane; two sets of samples have distances of their own. The
integral of a density says whether it is one at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from companion.arguments import check_count, check_number, check_type

__all__ = [
    "Integral",
    "bits_per_dimension",
    "frechet_distance",
    "integral",
    "kl_over_base",
    "sliced_wasserstein",
]

_ROWS = 16_384
"""Points of a grid that are evaluated at once."""


class Integral(NamedTuple):
    r"""The integral of a density over a square.

    Attributes:
        value: by the trapezoidal rule on the whole grid.
        error: the distance to the value on every second point of each axis. For a smooth density
            that fades before the edge, the error of ``value`` is far smaller still.
    """

    value: float
    error: float


def integral(
    log_prob: Callable[[Tensor], Tensor],
    *,
    half_width: float,
    points: int,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Integral:
    r"""Return $\int p$ over the square $[-a, a]^2$, with an estimate of its error.

    A flow whose equation is solved exactly gives 1, up to the mass outside. Steps that are too
    coarse give something else, in which case the likelihoods of the model mean nothing.

    Args:
        log_prob: the logarithm of the density, ``(n, 2)`` to ``(n,)``.
        half_width: $a$, above 0.
        points: along each axis, odd and at least 3.
        dtype: of the points.
        device: of the points.

    Raises:
        TypeError: ``half_width`` that is no number.
        ValueError: ``half_width`` or ``points`` outside their range.

    Example:
        >>> from companion.data.energies import TwoModes
        >>> value, error = integral(TwoModes().log_prob, half_width=5.0, points=201)
        >>> abs(value - 1) < 1e-9, error < 1e-9
        (True, True)
    """
    line = _line(half_width, points, dtype, device)
    if points % 2 == 0:
        raise ValueError(f"points: {points!r} is not allowed; it must be odd")
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        values = torch.cat([log_prob(part).exp() for part in torch.split(grid, _ROWS)])
    values = values.view(points, points)
    step = 2 * half_width / (points - 1)
    fine, coarse = _trapezoid(values, step), _trapezoid(values[::2, ::2], 2 * step)
    return Integral(fine, abs(fine - coarse))


def kl_over_base(
    push: Callable[[Tensor], Sequence[Tensor]],
    log_target: Callable[[Tensor], Tensor],
    *,
    half_width: float = 6.0,
    points: int = 121,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> float:
    r"""Return the divergence of a flow $q$ of the plane from its target $p$, by quadrature.

    If $q$ is the law of $\varphi(z)$ for a standard normal $z$, then

    $$\mathrm{KL}(q \,\|\, p) = \int \mathcal N(z; 0, I)
    \bigl(\log\mathcal N(z; 0, I) - \log|\det\partial\varphi(z)| - \log p(\varphi(z))\bigr)\,dz,$$

    which needs $\varphi$ in one direction only and has no noise of sampling. The weights are the
    normal density on a square grid, scaled so that they add up to 1.

    Args:
        push: $\varphi$; ``(n, 2)`` to a tuple that begins with points, ``(n, 2)``, and the
            logarithm of the determinant, ``(n,)``.
        log_target: $\log p$, ``(n, 2)`` to ``(n,)``. If its integral is not 1, the result is off
            by the logarithm of that integral.
        half_width: the grid covers the square from minus this to this, above 0.
        points: along each axis, at least 3.
        dtype: of the grid.
        device: of the grid.

    Raises:
        TypeError: ``half_width`` that is no number.
        ValueError: ``half_width`` or ``points`` outside their range.

    Source:
        The change of variables; the direction of the divergence is that of Rezende and Mohamed
        2015, section 6.1.

    Example:
        >>> def double(z):
        ...     return 2 * z, torch.full_like(z[:, 0], 2 * math.log(2))
        >>> normal = lambda x: -x.square().sum(-1) / 2 - math.log(2 * math.pi)
        >>> round(kl_over_base(double, normal), 4)  # 3 - 2 log 2
        1.6137
    """
    line = _line(half_width, points, dtype, device)
    z = torch.cartesian_prod(line, line)
    log_weights = torch.log_softmax(-0.5 * z.square().sum(-1), 0)
    total = 0.0
    with torch.no_grad():
        for part, log_weight in zip(
            *(torch.split(s, _ROWS) for s in (z, log_weights)), strict=True
        ):
            x, log_det = push(part)[:2]
            log_base = -0.5 * part.square().sum(-1) - math.log(2 * math.pi)
            total += float((log_weight.exp() * (log_base - log_det - log_target(x))).sum())
    return total


def sliced_wasserstein(
    x: Tensor, y: Tensor, generator: torch.Generator, *, directions: int = 256
) -> float:
    r"""Return the sliced 2-Wasserstein distance between two sets of as many samples.

    On a line the best coupling pairs the smallest with the smallest, and so on. With unit vectors
    $\theta_k$ that are uniform on the sphere, and $x_{(i)}$ the values in order,

    $$\mathrm{SW}_2^2 = \frac1K \sum_{k=1}^K \frac1n \sum_{i=1}^n
    \bigl|(\theta_k^\top x)_{(i)} - (\theta_k^\top y)_{(i)}\bigr|^2.$$

    Two sets from one law are not at the distance 0: report what two such sets have, as a floor.

    Args:
        x: samples, shape ``(n, d)``.
        y: as many of the same dimension.
        generator: draws the directions, in double precision on its own device; on the line there
            is only one.
        directions: $K$, at least 1.

    Raises:
        TypeError: ``generator`` of another type.
        ValueError: samples of other shapes, or ``directions`` outside its range.

    Source:
        Bonneel, Rabin, Peyré and Pfister 2015.

    Example:
        >>> x = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
        >>> round(sliced_wasserstein(x, x + 3, torch.Generator()), 4)
        3.0
    """
    check_type("generator", generator, torch.Generator)
    check_count("directions", directions)
    _check_samples("x", x)
    if y.shape != x.shape:
        raise ValueError(
            f"y: shape {tuple(y.shape)} is not allowed; it must be that of x, {tuple(x.shape)}"
        )
    shape = directions, x.shape[1]
    draws = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)
    onto = torch.nn.functional.normalize(draws, dim=1).to(x.device)
    with torch.no_grad():
        one, other = ((s.double() @ onto.T).sort(0).values for s in (x, y))
        return float((one - other).square().mean().sqrt())


def frechet_distance(x: Tensor, y: Tensor) -> float:
    r"""Return the Fréchet distance between the normal laws fitted to two sets of features.

    $$|\mu_x - \mu_y|^2
    + \operatorname{tr}\bigl(\Sigma_x + \Sigma_y - 2(\Sigma_x\Sigma_y)^{1/2}\bigr)$$

    This is a squared Wasserstein distance, and it sees means and covariances only. The features are
    yours: those of a classifier make it a judge of images.

    Args:
        x: features, shape ``(n, d)`` with $n \ge 2$.
        y: features, shape ``(m, d)`` with $m \ge 2$.

    Raises:
        ValueError: features of other shapes.

    Source:
        Dowson and Landau 1982; as a judge of images, Heusel et al. 2017.

    Example:
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(x, x + torch.tensor([3.0, 0.0, 4.0])), 3)
        25.0
    """
    for name, features in (("x", x), ("y", y)):
        _check_samples(name, features, least=2)
    if y.shape[1] != x.shape[1]:
        raise ValueError(
            f"y: shape {tuple(y.shape)} is not allowed; its last axis must be of {x.shape[1]}"
        )
    (mean, root), (other_mean, other_root) = (_mean_and_root(s.detach().double()) for s in (x, y))
    # The trace of the root of a product is the sum of the singular values of the roots' product.
    common = torch.linalg.svdvals(root @ other_root).sum()
    spread = root.square().sum() + other_root.square().sum() - 2 * common
    return float((mean - other_mean).square().sum() + spread)


def bits_per_dimension(
    log_prob: Tensor, dimension: int, *, levels: int | None = None, length: float = 1.0
) -> Tensor:
    r"""Turn log-likelihoods into bits for each dimension.

    $$b = -\frac{\log p(x)}{d \ln 2} + \log_2\frac{\text{levels}}{\text{length}}$$

    The second term is for data of so many grey levels, spread uniformly within their level
    (dequantised) over an interval of this length. With it the mean of $b$ is an upper bound on the
    bits of the best code for the grey levels themselves, by Jensen's inequality.

    Args:
        log_prob: natural logarithms, any shape.
        dimension: $d$, at least 1.
        levels: number of grey levels, at least 1; ``None`` leaves the second term out.
        length: of the interval that holds all levels, above 0.

    Raises:
        TypeError: ``log_prob`` that is no tensor, or ``length`` that is no number.
        ValueError: an argument outside its range.

    Source:
        Theis, van den Oord and Bethge 2016, section 3.1.

    Example:
        >>> uniform = torch.tensor([-64 * math.log(2.0)])  # on [-1, 1] in 64 dimensions
        >>> bits_per_dimension(uniform, 64, levels=16, length=2.0)
        tensor([4.])
    """
    check_type("log_prob", log_prob, Tensor)
    bits: Tensor = -log_prob / (check_count("dimension", dimension) * math.log(2))
    if levels is None:
        return bits
    _check_positive("length", length)
    return bits + math.log2(check_count("levels", levels) / length)


def _line(half_width: float, points: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    _check_positive("half_width", half_width)
    check_count("points", points, least=3)
    return torch.linspace(-half_width, half_width, points, dtype=dtype, device=device)


def _check_positive(name: str, value: float) -> None:
    if check_number(name, value) <= 0:
        raise ValueError(f"{name}: {value!r} is not allowed; it must be above 0")


def _trapezoid(values: Tensor, step: float) -> float:
    return float(torch.trapezoid(torch.trapezoid(values, dx=step), dx=step))


def _check_samples(name: str, samples: Tensor, least: int = 1) -> None:
    if samples.ndim != 2 or len(samples) < least:
        raise ValueError(
            f"{name}: shape {tuple(samples.shape)} is not allowed; it must be (n, d) with n of at "
            f"least {least}"
        )


def _mean_and_root(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the symmetric root of the covariance."""
    values, vectors = torch.linalg.eigh(torch.cov(samples.T).view(2 * samples.shape[1:]))
    return samples.mean(0), (vectors * values.clamp_min(0).sqrt()) @ vectors.T
