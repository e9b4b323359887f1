r"""Is a residual network an ODE? The equations through its layers, and the distance to them.

The network is $x_{n+1} = x_n + \frac1N f_n(x_n)$. An ODE $\dot x = \varphi(x, s)$ on $[0, 1]$
*interpolates* it if $\varphi(\cdot, n/N) = f_n$ for all layers; the network is then Euler's method
for this ODE. Between the layers the field is open to choice.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from companion.arguments import check_count
from companion.basis import locate
from companion.block import OdeBlock
from companion.ode import odeint
from companion.solve import time_like

__all__ = [
    "Interpolation",
    "curvature",
    "euler_bound",
    "from_block",
    "from_field",
    "network",
    "ode_distance",
    "residual_bound",
    "residual_interpolation",
    "solution",
    "speed",
    "weight_interpolation",
]

Layer = Callable[[Tensor], Tensor]
Piece = Callable[[int, "float | Tensor", Tensor], Tensor]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Interpolation:
    r"""A field $\varphi(x, s)$ on $[0, 1]$ that passes through the layers of a network.

    Call it as ``field(t, x)``, for example from :func:`companion.odeint`. Outside $[0, 1]$ the
    first and the last piece go on.

    Attributes:
        layers: number $N$ of layers.
        piece: ``piece(n, local, x)`` is $\varphi(x, (n + \mathrm{local})/N)$ for ``local`` in
            $[0, 1]$; both ends belong to the piece.

    Raises:
        ValueError: ``layers`` is no integer of at least 1.

    Example:
        >>> field = residual_interpolation([lambda x: x, lambda x: -x])
        >>> field(torch.tensor(0.25), torch.ones(3))
        tensor([0., 0., 0.])
    """

    layers: int
    piece: Piece

    def __post_init__(self) -> None:
        check_count("layers", self.layers)

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate the field at depth ``t``."""
        n = min(max(int(t * self.layers), 0), self.layers - 1)
        return self.piece(n, t * self.layers - n, x)


def residual_interpolation(functions: Sequence[Layer], last: Layer | None = None) -> Interpolation:
    r"""Interpolate the residuals: $\varphi = (1 - \lambda) f_n + \lambda f_{n+1}$.

    Here $\lambda = Ns - n$ on $[\frac nN, \frac{n+1}N]$.

    Args:
        functions: the layers' functions $f_0, \dots, f_{N-1}$, without the factor $1/N$.
        last: $f_N$, for the last interval; $f_{N-1}$ if ``None``.

    Raises:
        ValueError: no functions.

    Source:
        Sander et al. 2022, Definition 1 and below; it leaves $f_N$ open.

    Example:
        >>> field = residual_interpolation([lambda x: 0 * x, lambda x: 0 * x + 1])
        >>> field(torch.tensor(0.4), torch.zeros(2))
        tensor([0.8000, 0.8000])
    """
    ends = (*functions, *([last] if last is not None else functions[-1:]))

    def piece(n: int, local: float | Tensor, x: Tensor) -> Tensor:
        return (1 - local) * ends[n](x) + local * ends[n + 1](x)

    return Interpolation(len(functions), piece)


def weight_interpolation(
    function: Callable[[Tensor, Tensor], Tensor], weights: Tensor, last: Tensor | None = None
) -> Interpolation:
    r"""Interpolate the weights: $\varphi = f(\cdot, (1 - \lambda)\theta_n + \lambda\theta_{n+1})$.

    Here $\lambda = Ns - n$ on $[\frac nN, \frac{n+1}N]$.

    Args:
        function: ``function(x, theta)`` is $f(x, \theta)$, without the factor $1/N$.
        weights: $\theta_0, \dots, \theta_{N-1}$ along the leading axis.
        last: $\theta_N$, for the last interval; $\theta_{N-1}$ if ``None``.

    Raises:
        ValueError: no weights.

    Source:
        Sander et al. 2022, Definition 1 and below; it leaves $\theta_N$ open.

    Example:
        Between the weights 1 and −1 lies 0:

        >>> signs = torch.tensor([1.0, -1.0])
        >>> field = weight_interpolation(lambda x, theta: theta**2 + 0 * x, signs)
        >>> field(torch.tensor(0.25), torch.zeros(1))
        tensor([0.])
    """
    ends = (*weights, weights[-1] if last is None else last) if len(weights) else ()

    def piece(n: int, local: float | Tensor, x: Tensor) -> Tensor:
        return function(x, (1 - local) * ends[n] + local * ends[n + 1])

    return Interpolation(len(weights), piece)


def from_field(field: Callable[[Tensor, Tensor], Tensor], layers: int) -> Interpolation:
    r"""Return the smooth field ``field(t, x)`` as one that interpolates its own Euler steps.

    Args:
        field: any field on $[0, 1]$.
        layers: number $N$ of Euler steps.

    Raises:
        ValueError: ``layers`` is no integer of at least 1.

    Example:
        >>> ode_distance(from_field(lambda t, x: t + 0 * x, 10), torch.zeros(1, 1))[-1]
        tensor([0.0500])
    """

    def piece(n: int, local: float | Tensor, x: Tensor) -> Tensor:
        return field(time_like((n + local) / layers, x), x)

    return Interpolation(layers, piece)


def from_block(block: OdeBlock, kind: str) -> Interpolation:
    r"""Interpolate the layers of a block, such as a trained network's.

    Layer $n$ reads the weights at depth $n/N$; $\theta_N$ is their limit at depth 1 from below. For
    piecewise-constant weights that is $\theta_{N-1}$. Buffers, such as running statistics, count as
    weights. The field keeps the weights, and the mode of the residual, as they are at the time of
    this call.

    Args:
        block: an Euler block, $N$ its number of steps.
        kind: ``"residual"`` or ``"weight"``.

    Raises:
        ValueError: another kind or method, a residual that depends on time, or a block with buffers
            in training mode.

    Example:
        >>> from companion import PiecewiseConstant
        >>> block = OdeBlock(torch.nn.Linear(2, 2), PiecewiseConstant(cells=4), steps=4)
        >>> from_block(block, "weight").layers
        4
    """
    if kind not in ("residual", "weight"):
        raise ValueError(f"kind: {kind!r} is not allowed; it must be 'residual' or 'weight'")
    if block.method != "euler" or block.time:
        raise ValueError(
            f"block: method={block.method!r}, time={block.time} is not allowed; its layers must be "
            "Euler steps of a residual that depends on the state alone"
        )
    if block.training and any(True for _ in block.buffers()):
        raise ValueError("block: it has buffers that training mode changes; call eval() first")
    ends = [_weights(block, n) for n in range(block.steps + 1)]
    module, scale = copy.deepcopy(block.weights.template), block.scale

    def call(x: Tensor, weights: Weights) -> Tensor:
        value: Tensor = torch.func.functional_call(module, weights, (x,), tie_weights=False)
        return scale * value

    def residual(n: int, local: float | Tensor, x: Tensor) -> Tensor:
        return (1 - local) * call(x, ends[n]) + local * call(x, ends[n + 1])

    def weight(n: int, local: float | Tensor, x: Tensor) -> Tensor:
        return call(x, _combine([(1 - local, ends[n]), (local, ends[n + 1])]))

    return Interpolation(block.steps, residual if kind == "residual" else weight)


def network(field: Interpolation, x: Tensor) -> Tensor:
    r"""Return the states $x_0, \dots, x_N$ of the network $x_{n+1} = x_n + \frac1N f_n(x_n)$.

    Shapes:
        ``(batch, ...)`` to ``(layers + 1, batch, ...)``.

    Example:
        >>> network(residual_interpolation([lambda x: x, lambda x: x]), torch.ones(1, 1)).flatten()
        tensor([1.0000, 1.5000, 2.2500])
    """
    states = [x]
    for n in range(field.layers):
        states.append(states[-1] + field.piece(n, 0.0, states[-1]) / field.layers)
    return torch.stack(states)


@torch.no_grad()
def solution(field: Interpolation, x: Tensor, steps: int = 8) -> Tensor:
    r"""Return the solution of the interpolating ODE at the nodes, $x(n/N)$.

    Args:
        field: the interpolation.
        x: initial states, one a row.
        steps: steps of ``rk4`` in each of the ``layers`` intervals. No step crosses a node, so
            kinks there cost no accuracy.

    Shapes:
        ``(batch, ...)`` to ``(layers + 1, batch, ...)``.

    Raises:
        ValueError: ``steps`` is no integer of at least 1.

    Example:
        >>> solution(residual_interpolation([lambda x: x]), torch.ones(1, 1))[-1]
        tensor([[2.7183]])
    """
    return torch.stack([x, *(inside[-1] for inside in _pieces(field, x, steps))])


@torch.no_grad()
def curvature(field: Interpolation, x: Tensor, steps: int = 8) -> Tensor:
    r"""Return $C_N$, the largest $\lVert \ddot x \rVert$ along the solution from each state.

    $$\ddot x = \partial_s \varphi + \partial_x \varphi\,[\varphi]$$

    The maximum is over the points of the solver's grid, with both one-sided values at a node. It
    can lie slightly below the supremum.

    Args:
        field: the interpolation.
        x: initial states, one a row.
        steps: as for :func:`solution`.

    Returns:
        Shape ``(batch,)``.

    Raises:
        ValueError: as :func:`solution`.

    Example:
        >>> curvature(residual_interpolation([lambda x: x]), torch.ones(1, 1))
        tensor([2.7183])
    """
    largest = x.new_zeros(len(x))
    for n, inside in enumerate(_pieces(field, x, steps)):
        for k, state in enumerate(inside):
            largest = torch.maximum(largest, _norm(_acceleration(field, n, k / steps, state)))
    return largest


@torch.no_grad()
def speed(field: Interpolation, x: Tensor, steps: int = 8) -> Tensor:
    r"""Return $C_f$, the largest $\lVert f_n \rVert$ or $\lVert f_{n+1} \rVert$ along piece $n$.

    The maximum is over all pieces of the solution from each state, at the points of the solver's
    grid.

    Args:
        field: the interpolation.
        x: initial states, one a row.
        steps: as for :func:`solution`.

    Returns:
        Shape ``(batch,)``.

    Raises:
        ValueError: as :func:`solution`.

    Example:
        >>> speed(residual_interpolation([lambda x: 0 * x + 2, lambda x: -x]), torch.zeros(1, 1))
        tensor([2.])
    """
    largest = x.new_zeros(len(x))
    for n, inside in enumerate(_pieces(field, x, steps)):
        for state in inside:
            for end in (0.0, 1.0):
                largest = torch.maximum(largest, _norm(field.piece(n, end, state)))
    return largest


@torch.no_grad()
def ode_distance(field: Interpolation, x: Tensor, steps: int = 8) -> Tensor:
    r"""Return how far the network is from its ODE at every node: $\lVert x_n - x(n/N) \rVert$.

    Args:
        field: the interpolation.
        x: initial states, one a row.
        steps: ``rk4`` steps in each interval of the reference solution.

    Returns:
        Shape ``(layers + 1, batch)``; the ODE distance of the paper is the maximum over the nodes.

    Raises:
        ValueError: as :func:`solution`.

    Source:
        Sander et al. 2022, Proposition 1.

    Example:
        >>> step = residual_interpolation([torch.zeros_like, torch.ones_like])
        >>> ode_distance(step, torch.zeros(1, 1)).flatten()
        tensor([0.0000, 0.2500, 0.2500])
    """
    gap = network(field, x) - solution(field, x, steps)
    return torch.stack([_norm(difference) for difference in gap])


def euler_bound(curvature: float, lipschitz: float, layers: int) -> Tensor:
    r"""Return the bound of Proposition 1 at every node.

    $$\lVert x_n - x(\tfrac nN) \rVert \le \frac{C_N}{2N} \cdot \frac{e^{L n/N} - 1}{L},$$

    with $n/N$ in place of the last fraction if $L = 0$.

    Args:
        curvature: $C_N$, the largest $\lVert \ddot x \rVert$ along the solution.
        lipschitz: $L \ge 0$, a Lipschitz constant of $\varphi$ in $x$ that serves for all depths.
        layers: $N$.

    Returns:
        Shape ``(layers + 1,)``, float64.

    Raises:
        ValueError: a negative constant, or ``layers`` no integer of at least 1.

    Source:
        Sander et al. 2022, Proposition 1 (there for $n = N$).

    Example:
        >>> euler_bound(curvature=1.0, lipschitz=0.0, layers=2)
        tensor([0.0000, 0.1250, 0.2500], dtype=torch.float64)
    """
    return _growth(curvature, lipschitz, layers) * curvature / (2 * layers)


def residual_bound(speed: float, lipschitz: float, layers: int) -> Tensor:
    r"""Return a bound for the residual interpolation that asks for no smoothness in depth.

    $$\lVert x_n - x(\tfrac nN) \rVert \le \frac{C_f}{N} \bigl(2 e^{L n/N} - 1\bigr)
    \quad (n \ge 1).$$

    Args:
        speed: $C_f$, the largest $\lVert f_n \rVert$ or $\lVert f_{n+1} \rVert$ along piece $n$ of
            the solution, over all $n$.
        lipschitz: $L \ge 0$, a Lipschitz constant of every layer.
        layers: $N$.

    Returns:
        Shape ``(layers + 1,)``, float64; 0 at the start, where both curves begin.

    Raises:
        ValueError: a negative constant, or ``layers`` no integer of at least 1.

    Example:
        >>> residual_bound(speed=1.0, lipschitz=0.0, layers=2)
        tensor([0.0000, 0.5000, 0.5000], dtype=torch.float64)
    """
    bound = (1 + 2 * lipschitz * _growth(speed, lipschitz, layers)) * speed / layers
    bound[0] = 0
    return bound


def _growth(constant: float, lipschitz: float, layers: int) -> Tensor:
    """Return (exp(L s) - 1) / L at all nodes s, and s if L is 0; check the arguments."""
    if not (constant >= 0 and lipschitz >= 0):
        raise ValueError(
            f"constants: {constant!r} and {lipschitz!r} are not allowed; they must be at least 0"
        )
    check_count("layers", layers)
    depth = torch.arange(layers + 1, dtype=torch.float64) / layers
    return torch.expm1(lipschitz * depth) / lipschitz if lipschitz > 0 else depth


def _weights(block: OdeBlock, n: int) -> Weights:
    """Return the weights and buffers of layer ``n``; past the last layer, those at depth 1."""
    weights, basis = block.weights, block.weights.basis
    step, c = (n, 0) if n < block.steps else (n - 1, 1)
    place = locate(step, block.steps, Fraction(c), basis.cells)
    return {name: value.detach().clone() for name, value in weights.at(place).items()}


def _combine(terms: Sequence[tuple[float | Tensor, Weights]]) -> Weights:
    """Return a sum of multiples; what is not floating-point, such as a count, is the first's."""
    first = terms[0][1]
    return {
        name: sum((factor * weights[name] for factor, weights in terms), torch.zeros_like(value))
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }


def _pieces(field: Interpolation, x: Tensor, steps: int) -> Iterator[Tensor]:
    """Yield the solution on the solver's grid in each interval, both ends included."""
    check_count("steps", steps)
    grid = [k / steps for k in range(steps + 1)]
    for n in range(field.layers):
        # In local time: the piece is known by its index, whatever the rounding of the depth.
        def velocity(local: Tensor, x: Tensor, n: int = n) -> Tensor:
            return field.piece(n, local, x) / field.layers

        inside = odeint(velocity, x, grid, method="rk4")
        yield inside
        x = inside[-1]


@torch.enable_grad()
def _acceleration(field: Interpolation, n: int, local: float, x: Tensor) -> Tensor:
    """Return the second derivative of the solution at a state, from inside piece ``n``.

    It is a Jacobian-vector product, taken as the derivative of a vector-Jacobian product, which is
    linear in its vector: forward-mode differentiation is far slower on fields this small.
    """
    x = x.detach().requires_grad_()
    depth = x.new_full((), local).requires_grad_()
    velocity = field.piece(n, depth, x) + 0 * x  # a constant field needs a graph too
    vector = torch.zeros_like(velocity, requires_grad=True)
    to_depth, to_state = torch.autograd.grad(
        velocity, (depth, x), vector, create_graph=True, materialize_grads=True
    )
    along = field.layers * to_depth + (to_state * velocity.detach()).sum()
    (acceleration,) = torch.autograd.grad(along, vector)
    return acceleration


def _norm(x: Tensor) -> Tensor:
    """Return the norm of each row."""
    norms: Tensor = torch.linalg.vector_norm(x.reshape(len(x), math.prod(x.shape[1:])), dim=1)
    return norms
