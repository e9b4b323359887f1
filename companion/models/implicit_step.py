r"""One step of an implicit scheme with one stage, and its gradient.

$$k = f(x_n + c h k), \qquad x_{n+1} = x_n + h k.$$

With $c = \tfrac12$ this is the implicit midpoint rule, of order 2 and its own inverse with $-h$;
with $c = 1$ it is the backward Euler method, of order 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from companion.arguments import check_choice

__all__ = ["IMPLICIT", "implicit_step"]

IMPLICIT = {"implicit_midpoint": 0.5, "backward_euler": 1.0}
"""The implicit schemes, by name, and where in the step their stage stands."""

_ITERATIONS = 50
_ROUNDING = 500
"""How many units in the last place of the largest entry a converged iterate may still move."""


def implicit_step(f: Callable[[Tensor], Tensor], x: Tensor, h: float, method: str) -> Tensor:
    r"""Return the state one step of an implicit scheme later, differentiable in ``x`` and in ``f``.

    Newton's method solves $R(k) = k - f(x + c h k) = 0$ without a graph. One further step, with a
    graph through $R$ and a constant Jacobian $R'$, leaves the value as it is and has the gradient
    that the implicit function theorem gives:

    $$\mathrm dk = -R'^{-1} \bigl(\partial_x R\,\mathrm dx + \partial_\theta R\,
    \mathrm d\theta\bigr).$$

    Second derivatives are not those of the step.

    Args:
        f: the field; it maps every state on its own.
        x: states.
        h: the time of the step, of any sign.
        method: one of :data:`IMPLICIT`.

    Shapes:
        ``x`` of ``(..., d)``; the cost grows with ``d``, the size of a state.

    Raises:
        ValueError: an unknown method, or Newton's method does not converge.

    Example:
        >>> x = torch.tensor([1.0, 1.0], dtype=torch.float64)
        >>> implicit_step(lambda x: -x, x, 0.5, "backward_euler")  # 1 / 1.5
        tensor([0.6667, 0.6667], dtype=torch.float64)
    """
    check_choice("method", method, IMPLICIT)
    reach = IMPLICIT[method] * h
    with torch.no_grad():
        k = f(x)
        smallest = _ROUNDING * torch.finfo(x.dtype).eps * (1 + k.abs().max())
        for _ in range(_ITERATIONS):
            inverse = _inverse(f, x + reach * k, reach)
            change = _times(inverse, k - f(x + reach * k))
            k = k - change
            if change.abs().max() <= smallest:
                break
        else:
            raise ValueError(f"h: {h!r} is not allowed here; Newton's method does not converge")
    k = k - _times(inverse, k - f(x + reach * k))
    return x + h * k


def _inverse(f: Callable[[Tensor], Tensor], z: Tensor, reach: float) -> Tensor:
    """Return the inverse of R' at every state: of the identity minus ``reach`` times f's Jacobian.

    One product with the Jacobian a direction gives its columns, for all states at once.
    """
    identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    columns = [torch.func.jvp(f, (z,), (e.expand_as(z),))[1] for e in identity]
    inverse: Tensor = torch.linalg.inv(identity - reach * torch.stack(columns, dim=-1))
    return inverse


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)
