"""Small tanh networks, several at a time, and what a memory-free sweep through them gets wrong."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from companion.analysis.bounds import Bounds, euler_bounds, heun_bounds, tanh_constants
from companion.analysis.reconstruction import reconstruction
from companion.basis import Constant, PiecewiseConstant, PiecewiseLinear
from companion.block import OdeBlock
from companion.experiments.recipes import normal
from companion.gradients import Reconstruct
from companion.observe import Slope, fit_slope, geometric_mean

DEEP = 16
"""Rates are fitted from this number of layers on; fewer are not yet asymptotic."""

FAMILIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "tied": lambda n, steps: torch.zeros_like(n),
    "smooth": lambda n, steps: torch.sin(2 * math.pi * n / steps),
    "zigzag_1_over_n": lambda n, steps: (1 - 2 * (n % 2)) / steps,
    "zigzag_1_over_root_n": lambda n, steps: (1 - 2 * (n % 2)) / steps**0.5,
    "zigzag_1": lambda n, steps: 1 - 2 * (n % 2),
    "iid": lambda n, steps: torch.ones_like(n),
}
r"""How weights vary with depth: layer $n$ of $N$ has $\theta_n = A + c_n B$ with these $c_n$.

In ``iid`` every layer draws its own $B$.
"""


class TanhLayer(nn.Module):
    r"""One layer of several independent networks: $x \mapsto \tanh(Wx + b)$ for each of them.

    Shapes: ``(networks, dim)`` to the same; ``weight`` is ``(networks, dim, dim)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the layer of every network at that network's state."""
        return torch.tanh((self.weight @ x.unsqueeze(-1)).squeeze(-1) + self.bias)


@dataclass(frozen=True)
class Networks:
    """Networks of one depth and one method, in double precision, alone and as a block.

    Inputs and targets have shape ``(networks, dim)``; the loss is half the squared distance.
    """

    layers: list[TanhLayer]
    block: OdeBlock
    x0: Tensor
    target: Tensor

    def gradients(self, gradient: str | Reconstruct) -> Tensor:
        """Return dL/dtheta as ``(sets, networks, dim + 1, dim)``: the matrices, then the biases."""
        y = self.block.with_graph(gradient=gradient)(self.x0)
        loss = 0.5 * (y - self.target).square().sum()
        by_weight, by_bias = torch.autograd.grad(loss, tuple(self.block.parameters()))
        return torch.cat([by_weight, by_bias.unsqueeze(-2)], dim=-2)

    def states(self) -> list[Tensor]:
        """Return all states, computed layer by layer without the block, with their graph."""
        steps, heun = self.block.steps, self.block.method == "heun"
        states = [self.x0.clone().requires_grad_()]
        for n in range(steps):
            x = states[-1]
            slope = self.layers[n](x)
            if heun:
                slope = (slope + self.layers[n + 1](x + slope / steps)) / 2
            states.append(x + slope / steps)
        return states


@dataclass(frozen=True)
class Draw:
    """Which networks to draw: the same for all depths and methods, but for independent layers."""

    count: int
    dim: int
    seed: int
    device: torch.device


def draw_networks(family: str, method: str, steps: int, of: Draw) -> Networks:
    r"""Draw the networks of a family from :data:`FAMILIES`.

    The matrices in $A$ and $B$ have operator norms 1 and 0.4.

    Example:
        >>> four = Draw(count=4, dim=3, seed=0, device=torch.device("cpu"))
        >>> draw_networks("smooth", "heun", 10, four).gradients("backprop").shape
        torch.Size([11, 4, 4, 3])
    """
    count, dim = of.count, of.dim
    draw = normal(of.seed, of.device)

    def matrices(norm: float, *shape: int) -> Tensor:
        drawn = draw(*shape, count, dim, dim)
        sizes: Tensor = torch.linalg.matrix_norm(drawn, 2, keepdim=True)
        return norm * drawn / sizes

    sets = steps + (method == "heun")
    own = (sets,) if family == "iid" else ()
    x0, target, bias, weight = *draw(3, count, dim), matrices(1.0)
    n = torch.arange(sets, dtype=torch.float64, device=of.device)
    c = FAMILIES[family](n, steps)
    weights = weight + c[:, None, None, None] * matrices(0.4, *own)
    biases = bias + c[:, None, None] * 0.5 * draw(*own, count, dim)
    layers = [TanhLayer(w, b) for w, b in zip(weights, biases, strict=True)]
    basis = PiecewiseLinear(steps) if method == "heun" else PiecewiseConstant(steps)
    block = OdeBlock.from_modules(layers, basis, method=method, steps=steps)
    return Networks(layers, block, x0, target)


class Errors(NamedTuple):
    """What reverse sweeps through networks get wrong, against exact states and backprop.

    Attributes:
        states: distances of the states, shape ``(steps + 1, networks)``.
        gradients: distances of the gradients of each set of weights, ``(sets, networks)``.
        relative: distance of all gradients over the norm of all, ``(networks,)``.
        state_ratio: largest state error over its bound, ``(networks,)``.
        gradient_ratio: largest gradient error over its bound, ``(networks,)``.
    """

    states: Tensor
    gradients: Tensor
    relative: Tensor
    state_ratio: list[float]
    gradient_ratio: list[float]

    def largest(self) -> dict[str, list[float]]:
        """Return the largest error of a state, and so on, of every network."""
        return {
            "states": self.states.amax(0).tolist(), "gradients": self.gradients.amax(0).tolist(),
            "relative": self.relative.tolist(), "state_ratio": self.state_ratio,
            "gradient_ratio": self.gradient_ratio,
        }  # fmt: skip


ERRORS = ("states", "gradients", "relative")
"""Of these, those whose rates are fitted."""


def measure(networks: Networks) -> Errors:
    """Sweep back by the paper's rule and compare with the truth and with the bounds."""
    rule = Reconstruct()
    states = networks.states()
    true = torch.stack(states).detach()
    rebuilt = reconstruction(networks.block, true[-1], rule)
    exact, got = (networks.gradients(gradient) for gradient in ("backprop", rule))
    state_errors = torch.linalg.vector_norm(rebuilt - true, dim=-1)
    errors = torch.linalg.vector_norm(got - exact, dim=(-2, -1))
    size = torch.linalg.vector_norm(exact, dim=(0, 2, 3))
    relative = torch.linalg.vector_norm(got - exact, dim=(0, 2, 3)) / size
    bounds = _bounds(networks, states, rebuilt)
    ratios = (
        [_ratio(e, b.states) for e, b in zip(state_errors.T, bounds, strict=True)],
        [_ratio(e, b.gradients) for e, b in zip(errors.T, bounds, strict=True)],
    )
    return Errors(state_errors, errors, relative, *ratios)


def _bounds(networks: Networks, states: list[Tensor], rebuilt: Tensor) -> list[Bounds]:
    """Return the bounds of every network, with constants from its weights and states."""
    steps = networks.block.steps
    loss = 0.5 * (states[-1] - networks.target).square().sum()
    adjoints = torch.stack(torch.autograd.grad(loss, states[1:])).norm(dim=-1).amax(dim=0)
    true = torch.stack(states).detach()
    reach = torch.maximum(true.norm(dim=-1).amax(dim=0), rebuilt.norm(dim=-1).amax(dim=0))
    weight = torch.stack([layer.weight.detach() for layer in networks.layers])
    bias = torch.stack([layer.bias.detach() for layer in networks.layers])
    both = torch.cat([weight, bias.unsqueeze(-2)], dim=-2)
    jumps = torch.linalg.vector_norm(both.diff(dim=0), dim=(-2, -1))
    bounds = []
    for k, (radius, adjoint) in enumerate(zip(reach.tolist(), adjoints.tolist(), strict=True)):
        inner = true.shape[-1] ** 0.5 / steps  # Heun also evaluates one step further
        constants = tanh_constants(weight[:, k], radius + inner)
        if networks.block.method == "heun":
            jump = jumps[:, k].max().item()
            bounds.append(heun_bounds(constants, steps, adjoint, jump))
        else:
            bounds.append(euler_bounds(constants, steps, adjoint))
    return bounds


def _ratio(errors: Tensor, bound: NDArray[np.float64]) -> float:
    """Return the largest error over its bound, where the bound is not zero; nan if an error is."""
    measured = errors.detach().cpu().numpy()
    if (measured[bound == 0] != 0).any():
        return math.inf
    positive = bound > 0
    return float((measured[positive] / bound[positive]).max())


def fit_rate(steps: tuple[int, ...], errors: NDArray[np.float64]) -> Slope:
    """Fit the slope of the geometric mean over networks, ``errors`` of shape (steps, networks)."""
    return fit_slope(steps, geometric_mean(errors, 1).tolist())


@torch.no_grad()
def round_trip(method: str, rate: float, steps: int) -> float:
    """Return where a tied linear network on the line, swept back from its output, ends from 1."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(layer.weight, rate)
    block = OdeBlock(layer, Constant(), method=method, steps=steps)
    return reconstruction(block, block(torch.ones(1, 1).double()), Reconstruct())[0].item()
