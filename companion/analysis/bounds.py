r"""Bounds on what reverse Euler and reverse Heun get wrong, with every constant written out.

A network is $x_{n+1} = x_n + h\varphi_n(x_n)$ with $h = 1/N$. A memory-free sweep goes back from
$\tilde x_N = x_N$ by $\tilde x_n = \tilde x_{n+1} - h\psi_n(\tilde x_{n+1})$ and takes its
vector-Jacobian products at the $\tilde x_n$. Two numbers decide how far the sweep drifts: the
*defect*, a bound on $\lVert\psi_n(x_{n+1}) - \varphi_n(x_n)\rVert$, and a Lipschitz constant of
$\psi_n$. There is no remainder term: the bounds hold for every number of layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.arguments import check_count

__all__ = ["Bounds", "Constants", "euler_bounds", "heun_bounds", "tanh_constants"]

Curve = NDArray[np.float64]

_BEND = 4 / (3 * math.sqrt(3))
"""The largest value of the second derivative of tanh."""


@dataclass(frozen=True)
class Constants:
    r"""What the bounds need to know of the residuals $f(x, \theta_n)$ of all layers.

    Derivatives are measured in the operator norm, parameters in the Euclidean norm of all entries.

    Attributes:
        value: $C_f \ge \lVert f\rVert$.
        slope: $L_f \ge \lVert\partial_x f\rVert$, positive.
        curvature: $L_{df}$, a Lipschitz constant of $\partial_x f$ in $x$.
        weight_slope: $\Omega \ge \lVert\partial_\theta f\rVert$.
        mixed: $\Lambda$, a Lipschitz constant of $\partial_\theta f$ in $x$. It is also one of
            $\partial_x f$ in $\theta$, because both are bounds on the mixed second derivative.

    Raises:
        ValueError: for a number that is negative or not finite, or a slope of zero. A residual
            that does not depend on the state is reversed exactly and needs no bound.
    """

    value: float
    slope: float
    curvature: float
    weight_slope: float
    mixed: float

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            least = "above 0" if name == "slope" else "at least 0"
            if not math.isfinite(number) or number < 0 or (name == "slope" and number == 0):
                raise ValueError(f"{name}: {number!r} is not allowed; it must be finite, {least}")


class Bounds(NamedTuple):
    r"""Bounds for every layer of a network with $N$ layers.

    Attributes:
        states: on $\lVert\tilde x_n - x_n\rVert$, shape ``(N + 1,)``.
        adjoints: on $\lVert\tilde a_n - a_n\rVert$ with $a_n = \nabla_{x_n}L$, shape ``(N + 1,)``.
        gradients: on $\lVert\tilde\nabla_{\theta_n}L - \nabla_{\theta_n}L\rVert$, one entry for
            each set of parameters: ``(N,)`` for Euler, ``(N + 1,)`` for Heun.
    """

    states: Curve
    adjoints: Curve
    gradients: Curve


def tanh_constants(weight: Tensor, radius: float) -> Constants:
    r"""Return the constants of the layers $f(x, \theta) = \tanh(Wx + b)$, $\theta = (W, b)$.

    With $\kappa = \max|\tanh''| = \frac{4}{3\sqrt3}$ and states in the ball of radius $R$,

    $$C_f = \sqrt d, \quad L_f = \max_n\lVert W_n\rVert, \quad L_{df} = \kappa L_f^2, \quad
    \Omega = \sqrt{R^2 + 1}, \quad \Lambda = \kappa L_f\Omega + 1 .$$

    Args:
        weight: the matrices $W_n$ of all layers, shape ``(..., d, d)``.
        radius: $R$, at least the norm of every state at which the sweeps evaluate a layer.
            $\lVert x_0\rVert + 3\sqrt d$ is always enough.

    Raises:
        ValueError: if the weight is no stack of square matrices, or a radius below zero or one
            that is not finite.

    Source:
        The constants that Sander et al. 2022 assume (assumption 2, propositions 4 and 5).

    Example:
        >>> tanh_constants(2.0 * torch.eye(4), radius=0.0)
        Constants(value=2.0, slope=2.0, curvature=3.079..., weight_slope=1.0, mixed=2.539...)
    """
    if weight.ndim < 2 or weight.shape[-1] != weight.shape[-2]:
        raise ValueError(
            f"weight: shape {tuple(weight.shape)} is not allowed; pass square matrices, (..., d, d)"
        )
    if not math.isfinite(radius) or radius < 0:
        raise ValueError(f"radius: {radius!r} is not allowed; it must be finite, at least 0")
    slope = torch.linalg.matrix_norm(weight.detach(), 2).max().item()
    reach = math.hypot(radius, 1.0)
    return Constants(
        value=math.sqrt(weight.shape[-1]),
        slope=slope,
        curvature=_BEND * slope**2,
        weight_slope=reach,
        mixed=_BEND * slope * reach + 1.0,
    )


def euler_bounds(constants: Constants, steps: int, adjoint: float) -> Bounds:
    r"""Bound the errors of reverse Euler, for weights of any roughness in depth.

    With $q = 1 + L_f/N$, $\tau = 1 - n/N$ and $G = \max_{n\ge1}\lVert a_n\rVert$,

    $$\begin{aligned}
    \lVert\tilde x_n - x_n\rVert &\le \tfrac{C_f}{N}\,(q^{N-n} - 1), \\
    \lVert\tilde a_n - a_n\rVert &\le \tfrac{C_f}{N}\,L_{df}\,G\,
    \bigl(\tau q^{N-n} - \tfrac{q^{N-n} - 1}{L_f}\bigr), \\
    \lVert\tilde\nabla_{\theta_n}L - \nabla_{\theta_n}L\rVert &\le
    \tfrac1N\bigl(\Lambda G\,\lVert\tilde x_n - x_n\rVert
    + \Omega\,\lVert\tilde a_{n+1} - a_{n+1}\rVert\bigr).
    \end{aligned}$$

    Args:
        constants: of the residuals.
        steps: the number of layers $N$.
        adjoint: $G$; $e^{L_f}\lVert\nabla_{x_N}L\rVert$ is always enough.

    Raises:
        ValueError: if ``steps`` is no positive integer, or ``adjoint`` negative or not finite.

    Source:
        Propositions 3 and 4 of Sander et al. 2022, without their remainders and sharper.

    Example:
        >>> bounds = euler_bounds(tanh_constants(torch.eye(2), radius=1.0), steps=100, adjoint=1.0)
        >>> bool(bounds.states[0] < 2**0.5 / 100 * (math.e - 1)), float(bounds.states[100])
        (True, 0.0)
    """
    c = constants
    h = _step(steps, adjoint)
    states, adjoints = _drift(c.slope, c.slope * c.value * h, c.curvature * adjoint, steps)
    gradients = h * (c.mixed * adjoint * states[:-1] + c.weight_slope * adjoints[1:])
    return Bounds(states, adjoints, gradients)


def heun_bounds(constants: Constants, steps: int, adjoint: float, jump: float) -> Bounds:
    r"""Bound the errors of reverse Heun for a network with $N + 1$ sets of parameters.

    Let $\eta = \max_n\lVert\theta_{n+1} - \theta_n\rVert$. The defect is at most

    $$D = \frac{1}{4N}\Bigl(\Omega\,\eta + \frac{L_f C_f}{N}\Bigr)
    \Bigl(\Lambda\,\eta + \frac{L_{df} C_f + L_f^2}{N}\Bigr),$$

    and with $L' = L_f(1 + \frac{L_f}{2N})$, $q = 1 + L'/N$,

    $$\lVert\tilde x_n - x_n\rVert \le \tfrac{D}{L'}\,(q^{N-n} - 1).$$

    Adjoints follow as for Euler, with $D/L'$ for $C_f/N$. A gradient adds the two contributions
    that $\theta_n$ gets, from the steps before and after it.

    Args:
        constants: of the residuals, also between $\theta_n$ and $\theta_{n+1}$.
        steps: the number of steps $N$.
        adjoint: $G = \max_{n\ge1}\lVert a_n\rVert$.
        jump: $\eta$; the papers' $\Delta$ is its square.

    Raises:
        ValueError: if ``steps`` is no positive integer, or ``adjoint`` or ``jump`` negative or not
            finite.

    Source:
        Propositions 5 and 6 of Sander et al. 2022 have the term in $\eta^2$ and a remainder
        $O(N^{-2})$; the product is ours.

    Example:
        >>> constants = tanh_constants(torch.eye(2), radius=1.0)
        >>> coarse, fine = (heun_bounds(constants, n, 1.0, jump=1 / n).states[0] for n in (50, 100))
        >>> bool(7.5 < coarse / fine < 8.0)
        True
    """
    c = constants
    h = _step(steps, adjoint)
    if not math.isfinite(jump) or jump < 0:
        raise ValueError(f"jump: {jump!r} is not allowed; it must be finite, at least 0")
    defect = h / 4 * (c.weight_slope * jump + c.slope * c.value * h)
    defect *= c.mixed * jump + (c.curvature * c.value + c.slope**2) * h
    slope = c.slope * (1 + c.slope * h / 2)
    bend = c.curvature * (1 + 1.5 * c.slope * h + 0.5 * (c.slope * h) ** 2)
    states, adjoints = _drift(slope, defect, bend * adjoint, steps)
    far = 1 + c.slope * h
    mixed = far * (c.mixed + h * c.curvature * c.weight_slope)
    gradients = np.zeros(steps + 1)
    gradients[:-1] += mixed * adjoint * states[:-1] + far * c.weight_slope * adjoints[1:]
    gradients[1:] += far * c.mixed * adjoint * states[:-1] + c.weight_slope * adjoints[1:]
    return Bounds(states, adjoints, h / 2 * gradients)


def _drift(slope: float, defect: float, bend: float, steps: int) -> tuple[Curve, Curve]:
    r"""Return the bounds on states and adjoints that a defect leads to.

    They solve $r_n = q r_{n+1} + hD$ and $e_n = q e_{n+1} + hBr_n$ from zero, with $q = 1 + hL$.
    """
    left = np.arange(steps, -1, -1, dtype=np.float64)  # layers still to go back over at the start
    grown = np.expm1(left * math.log1p(slope / steps))  # q^left - 1, to full precision
    states = defect / slope * grown
    adjoints = bend * defect / slope * (left / steps * (1 + grown) - grown / slope)
    return states, np.maximum(adjoints, 0.0)  # rounding may leave -1e-17 near the end


def _step(steps: int, adjoint: float) -> float:
    check_count("steps", steps)
    if not math.isfinite(adjoint) or adjoint < 0:
        raise ValueError(f"adjoint: {adjoint!r} is not allowed; it must be finite, at least 0")
    return 1 / steps
