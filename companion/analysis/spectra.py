r"""How fast does a field change its state? The eigenvalues of its Jacobian along a trajectory.

An explicit method must take steps of about the inverse of the *spectral radius*, the largest
modulus of an eigenvalue, however smooth the solution is. The radius can be had from products with
the Jacobian alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion.arguments import check_count

__all__ = ["Leading", "leading_eigenvalue", "spectral_radius_along"]

Func = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Leading:
    r"""The eigenvalue of the largest modulus, for each row of a batch.

    Attributes:
        radius: its modulus $\rho$, shape ``(batch,)``.
        value: the eigenvalue itself, complex, of non-negative imaginary part: its conjugate is one
            too. Of $\pm\rho$ together, one of the two.
        residual: how far the last products are from a combination of two eigenvectors, relative to
            their size. Where it is not small the iteration has not converged: there are more than
            two eigenvalues of almost this modulus, or too few iterations were taken. Rounding
            alone leaves some 1e-6 of it in single precision, and some 1e-2 in bfloat16.
    """

    radius: Tensor
    value: Tensor
    residual: Tensor


def leading_eigenvalue(
    func: Func, t: float | Tensor, y: Tensor, *, generator: torch.Generator, iterations: int = 50
) -> Leading:
    r"""Find the largest eigenvalue of $\partial_y f(t, y)$ in every row by power iteration.

    Plain power iteration, $v \leftarrow J^\top v / \lVert J^\top v\rVert$, looks at the growth of
    one step, which never settles where the largest eigenvalues are a complex pair, as in a
    rotation. Here the last three iterates are fitted by $v_{k+2} = a v_{k+1} + b v_k$, and the
    eigenvalues are the roots of $z^2 = az + b$: exact as soon as no more than two eigenvalues are
    left in the iterates, be they a real one, a complex pair, or $\pm\rho$.

    Args:
        func: ``func(t, y)``, whose rows must not depend on each other.
        t: the time.
        y: the states, shape ``(batch, ...)``.
        generator: draws the first vectors.
        iterations: how many products with the transposed Jacobian, at least 3.

    Raises:
        ValueError: a state without an axis of rows, or fewer than 3 iterations.

    Source:
        Wilkinson 1965, chapter 9 (the pair of roots from three iterates).

    Example:
        >>> turn = torch.tensor([[0.0, -3.0], [3.0, 0.0]], dtype=torch.float64)
        >>> y, generator = torch.ones(1, 2, dtype=torch.float64), torch.Generator().manual_seed(0)
        >>> found = leading_eigenvalue(lambda t, y: y @ turn.T, 0.0, y, generator=generator)
        >>> found.radius, found.value.imag
        (tensor([3.], dtype=torch.float64), tensor([3.], dtype=torch.float64))
    """
    check_count("iterations", iterations)
    if iterations < 3:
        raise ValueError(f"iterations: {iterations} is not allowed; it must be at least 3")
    if y.ndim < 2:
        raise ValueError(f"y: shape {tuple(y.shape)} is not allowed; it must be (batch, ...)")
    time = torch.as_tensor(t, dtype=y.dtype, device=y.device)  # as odeint passes it
    pull = torch.func.vjp(lambda y: func(time, y), y.detach())[1]
    start = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
    u = _unit(start)
    for _ in range(iterations):
        (pulled,) = pull(u)
        u = _unit(pulled.detach())
    # The last three again. Their sizes are kept apart, so that none overflows.
    v, first = _sized(pull(u)[0].detach())
    w, second = _sized(pull(v.to(y.dtype))[0].detach())
    flat = u.flatten(1).double(), v.flatten(1), w.flatten(1) * (second / first)[:, None]
    return _roots(*flat, first, torch.finfo(y.dtype).eps)


def spectral_radius_along(
    func: Func, t: Iterable[float], ys: Tensor, *, generator: torch.Generator, iterations: int = 50
) -> Tensor:
    """Return the spectral radius of the field's Jacobian at every time and in every row.

    Args:
        func: the field.
        t: the times of the trajectory.
        ys: the states at these times, shape ``(times, batch, ...)``.
        generator: draws the first vectors.
        iterations: of each power iteration.

    Shapes: ``(times, batch)``.

    Raises:
        ValueError: as many times as states are asked for.

    Example:
        >>> ys, generator = torch.ones(2, 1, 1), torch.Generator().manual_seed(0)
        >>> field = lambda t, y: -(1 + t) * y
        >>> spectral_radius_along(field, [0.0, 1.0], ys, generator=generator).tolist()
        [[1.0], [2.0]]
    """
    times = [float(x) for x in t]
    if len(times) != len(ys):
        raise ValueError(f"t: {len(times)} times are not allowed; there are {len(ys)} states")
    knobs: dict[str, Any] = {"generator": generator, "iterations": iterations}
    found = [
        leading_eigenvalue(func, at, y, **knobs).radius for at, y in zip(times, ys, strict=True)
    ]
    return torch.stack(found)


def _sized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Divide every row by a power of two near its largest entry, and return these powers too."""
    wide = x.double()
    _, exponent = torch.frexp(wide.flatten(1).abs().amax(1))
    power = torch.exp2(exponent.double())
    return wide / power.reshape(-1, *[1] * (x.ndim - 1)), power


def _unit(x: Tensor) -> Tensor:
    """Scale every row to length 1, whatever its size; a row of zeros stays."""
    sized, _ = _sized(x)
    length = sized.flatten(1).norm(dim=1).clamp_min(torch.finfo(sized.dtype).tiny)
    scaled: Tensor = sized / length.reshape(-1, *[1] * (x.ndim - 1))
    return scaled.to(x.dtype)


def _roots(u: Tensor, v: Tensor, w: Tensor, size: Tensor, eps: float) -> Leading:
    """Fit w = a v + b u row by row, and return the larger root of z^2 = a z + b, times a size.

    The products were rounded to ``eps``. A second vector of that size in them is no more than
    rounding, and then the fit has a root that means nothing.
    """
    tiny = torch.finfo(u.dtype).tiny
    uu = (u * u).sum(1).clamp_min(tiny)
    quotient = (u * v).sum(1) / uu
    across = v - quotient[:, None] * u  # zero where u is an eigenvector
    single = across.norm(dim=1) <= max(1e-6, 8 * eps) * v.norm(dim=1)
    a = (across * w).sum(1) / (across * across).sum(1).clamp_min(tiny)
    a = torch.where(single, quotient, a)
    b = torch.where(single, 0.0, (u * w).sum(1) / uu - a * quotient)
    root = torch.sqrt((a**2 / 4 + b).to(torch.complex128))
    above, below = a / 2 + root, a / 2 - root
    larger = above.abs() >= below.abs()
    value, other = torch.where(larger, above, below), torch.where(larger, below, above)
    # How much of each eigenvector is left: products let the one of the larger root outgrow all.
    of_value, of_other = ((v - z[:, None] * u).norm(dim=1) for z in (other, value))
    value = torch.where(of_value < min(1000 * eps, 0.5) * of_other, other, value)
    fitted = torch.where(
        single[:, None], quotient[:, None] ** 2 * u, a[:, None] * v + b[:, None] * u
    )
    length = w.norm(dim=1).clamp_min(tiny)
    value = value * size
    return Leading(value.abs(), value, (w - fitted).norm(dim=1) / length)
