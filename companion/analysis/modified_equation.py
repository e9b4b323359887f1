r"""The field that a perfectly trained one-step net learns: not $f$, but $f$ and a correction.

A net that fits exact data at the step $h$ satisfies $\Phi^G_h = \varphi_h$, with $\Phi^G_h$ one
step of its scheme and $\varphi_h$ the exact flow of $f$. For a scheme of order $p$ this gives the
*inverse modified equation*

$$G = f + h^p e_p + O(h^{p+1}).$$

Smaller steps solve $\dot x = G(x)$ better and better, and end at the error of order $h^p$ of $G$
itself. The error at $h$ is that of the optimisation alone: hence the dip.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from companion.arguments import check_count
from companion.schemes import get_scheme

__all__ = ["leading_correction", "learnt_field", "perfect_field"]

Function = Callable[[Tensor], Tensor]


def leading_correction(f: Function, method: str) -> Function:
    r"""Return $e_p$, the first correction to the field that a net of this scheme learns.

    $$e_1 = \bigl(\tfrac12 - \textstyle\sum_i b_i c_i\bigr) f'f, \qquad
    e_2 = \tfrac12 \bigl(\tfrac13 - \textstyle\sum_i b_i c_i^2\bigr) f''(f, f)
    + \bigl(\tfrac16 - \textstyle\sum_{ij} b_i a_{ij} c_j\bigr) f'f'f.$$

    This is $\frac12 f'f$ for Euler's method and $\frac1{24} f''(f, f) + \frac16 f'f'f$ for the
    midpoint method. Products with derivatives are taken in forward mode; no Jacobian is formed.

    Args:
        f: the field; it maps every state on its own, and torch can differentiate it twice.
        method: a scheme of order 1 or 2.

    Returns:
        A function of states, shaped as ``f`` is.

    Raises:
        ValueError: an unknown scheme, or one of higher order.

    Source:
        After E. Hairer, C. Lubich and G. Wanner, Geometric Numerical Integration, 2006, chapter
        IX, where the modified equation goes the other way.

    Example:
        >>> leading_correction(lambda x: x**2, "euler")(torch.tensor([1.0, 2.0]))  # x^3
        tensor([1., 8.])
    """
    scheme = get_scheme(method)
    a, b, c = scheme.a, scheme.b, scheme.c
    if scheme.order == 1:
        first = float(Fraction(1, 2) - _sum(b, c))
        return lambda x: first * _product(f, x, f(x))
    if scheme.order == 2:
        curved = float((Fraction(1, 3) - _sum(b, c, c)) / 2)
        nested = float(Fraction(1, 6) - _sum(b, [_sum(row, c) for row in a]))

        def correction(x: Tensor) -> Tensor:
            v = f(x)
            second = _product(lambda z: _product(f, z, v), x, v)
            return curved * second + nested * _product(f, x, _product(f, x, v))

        return correction
    raise ValueError(f"method: {method!r} has order {scheme.order}; 1 and 2 are allowed")


def learnt_field(f: Function, method: str, h: float) -> Function:
    r"""Return $f + h^p e_p$: to first order, what a net of this scheme learns at the step ``h``.

    The arguments and errors are those of :func:`leading_correction`.

    Example:
        >>> learnt_field(lambda x: x, "euler", 0.1)(torch.ones(1))  # near (e^0.1 - 1) / 0.1
        tensor([1.0500])
    """
    correction, order = leading_correction(f, method), get_scheme(method).order
    return lambda x: f(x) + h**order * correction(x)


def perfect_field(f: Function, flow: Function, method: str, h: float, sweeps: int = 2) -> Function:
    r"""Return the field whose step of ``h`` is the flow itself, up to $O(h^{p + k})$.

    Deferred correction: from $G_0 = f$, the defect of the step is given back $k$ times,

    $$G_{j+1} = G_j + \tfrac1h \bigl(\varphi_h - \Phi^{G_j}_h\bigr).$$

    For Euler's method one sweep is exact, $G = (\varphi_h - \mathrm{id})/h$. The cost grows like
    $(s + 1)^k$ for a scheme of $s$ stages.

    Args:
        f: the field; it maps every state on its own.
        flow: the exact flow $\varphi_h$ over the time ``h``.
        method: an explicit scheme.
        h: the time of a step.
        sweeps: the number $k$ of corrections.

    Raises:
        ValueError: an unknown scheme, or ``sweeps`` no integer of at least 0.

    Example:
        >>> import math
        >>> grow = perfect_field(lambda x: x, lambda x: math.e**0.1 * x, "midpoint", 0.1, sweeps=4)
        >>> x = grow(torch.ones(1))  # one midpoint step with it is the factor e^0.1
        >>> round(float(1 + 0.1 * x + 0.005 * x**2), 5) == round(math.e**0.1, 5)
        True
    """
    check_count("sweeps", sweeps, least=0)
    scheme = get_scheme(method)

    def corrected(g: Function) -> Function:
        return lambda x: g(x) + (flow(x) - scheme.step(lambda i, y: g(y), x, h)) / h

    for _ in range(sweeps):
        f = corrected(f)
    return f


def _product(f: Function, x: Tensor, v: Tensor) -> Tensor:
    """Return the product of the Jacobian of ``f`` at ``x`` with ``v``."""
    product: Tensor = torch.func.jvp(f, (x,), (v,))[1]
    return product


def _sum(*factors: tuple[Fraction, ...] | list[Fraction]) -> Fraction:
    """Return the sum over stages of products of coefficients, one from each sequence."""
    total = Fraction(0)
    for terms in zip(*factors, strict=False):  # a row of A ends where its zeros begin
        product = Fraction(1)
        for term in terms:
            product *= term
        total += product
    return total
