"""What the studies of order in depth share: a small random field, and right-continuous stages."""

import math

import torch
from torch import Tensor, nn

from companion.basis import Basis
from companion.block import OdeBlock
from companion.experiments.recipes import normal
from companion.ode import odeint
from companion.train import seeded

WIDTH, POINTS = 4, 8
"""Dimension of the state, and number of initial states."""


def random_block(weights: Basis, seed: int, device: torch.device) -> OdeBlock:
    r"""Return the block of $\tanh(W(t)\,x + b(t))$ with random weights, in float64.

    At the basis's nodes the entries of $W$ have variance 1/4 and those of $b$ variance 1.
    """

    def layer() -> nn.Module:
        linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        nn.init.normal_(linear.weight, std=0.5)
        nn.init.normal_(linear.bias)
        return nn.Sequential(linear, nn.Tanh())

    with seeded(seed):
        return OdeBlock(layer, weights).to(device)


def initial_states(seed: int, device: torch.device) -> Tensor:
    """Return standard normal states, shape ``(8, 4)``, in float64."""
    return normal(seed, device)(POINTS, WIDTH)


@torch.no_grad()
def solve_naively(block: OdeBlock, x: Tensor, method: str, steps: int) -> Tensor:
    """Solve a block of :func:`random_block` with jumps, every stage read from the right.

    A stage at a knot reads the cell that begins there, at the far end of a step too.
    """
    weight, bias = block.weights.parameters()
    cells = block.weights.basis.cells

    def field(t: Tensor, y: Tensor) -> Tensor:
        cell = min(math.floor(float(t) * cells + 1e-9), cells - 1)  # a knot counts, rounded or not
        return torch.tanh(nn.functional.linear(y, weight[cell], bias[cell]))

    end: Tensor = odeint(field, x, [0.0, 1.0], method=method, steps=steps)[-1]
    return end


@torch.no_grad()
def solve_block(block: OdeBlock, x: Tensor, method: str, steps: int) -> Tensor:
    """Solve a block under another graph, as it reads its weights: from inside every step."""
    end: Tensor = block.with_graph(method=method, steps=steps)(x)
    return end


def random_problem(
    basis: Basis, seed: int, finest: int, device: torch.device
) -> tuple[OdeBlock, Tensor, Tensor]:
    """Return a random block, initial states, and where ``finest`` steps of RK4 take them."""
    block, x = random_block(basis, seed, device), initial_states(seed, device)
    return block, x, solve_block(block, x, "rk4", finest)


def largest_distance(ends: Tensor, truth: Tensor) -> float:
    """Return the largest distance between the states of two batches.

    Example:
        >>> largest_distance(torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [3.0, 4.0]]))
        5.0
    """
    return float((ends - truth).norm(dim=1).max())
