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
            two eigenvalues of almost this modulus, or too few iterations were taken.
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
    vectors = [_unit(start)]
    for _ in range(iterations):
        (pulled,) = pull(vectors[-1])
        vectors.append(_unit(pulled.detach()))
    # The last three again, without scaling in between.
    u = vectors[-1]
    (v,) = pull(u)
    (w,) = pull(v.detach())
    return _roots(*(x.detach().flatten(1).double() for x in (u, v, w)))


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


def _unit(x: Tensor) -> Tensor:
    """Scale every row to length 1; a row of zeros stays."""
    length = x.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    scaled: Tensor = x / length.reshape(-1, *[1] * (x.ndim - 1))
    return scaled


def _roots(u: Tensor, v: Tensor, w: Tensor) -> Leading:
    """Fit w = a v + b u row by row, and return the larger root of z^2 = a z + b."""
    uu, uv, vv, uw, vw = ((x * y).sum(1) for x, y in ((u, u), (u, v), (v, v), (u, w), (v, w)))
    apart = uu * vv - uv**2  # zero where u is an eigenvector: then z is the quotient of two norms
    single = apart <= 1e-12 * uu * vv
    safe = torch.where(single, torch.ones_like(apart), apart)
    quotient = uv / uu.clamp_min(torch.finfo(uu.dtype).tiny)
    a = torch.where(single, quotient, (uu * vw - uv * uw) / safe)
    b = torch.where(single, torch.zeros_like(a), (vv * uw - uv * vw) / safe)
    root = torch.sqrt((a**2 / 4 + b).to(torch.complex128))
    above, below = a / 2 + root, a / 2 - root
    value = torch.where(above.abs() >= below.abs(), above, below)
    fitted = torch.where(
        single[:, None], quotient[:, None] ** 2 * u, a[:, None] * v + b[:, None] * u
    )
    size = w.norm(dim=1).clamp_min(torch.finfo(w.dtype).tiny)
    return Leading(value.abs(), value, (w - fitted).norm(dim=1) / size)
