"""What the studies of order in depth share: a small random field, and right-continuous stages."""

import math

import torch
from torch import Tensor, nn

from companion.basis import Basis
from companion.block import OdeBlock
from companion.ode import odeint
from companion.train import seeded

WIDTH = 4
"""Dimension of the state."""

POINTS = 8
"""Number of initial states."""


def random_block(weights: Basis, seed: int, device: torch.device) -> OdeBlock:
    r"""Return the block of $\tanh(W(t)\,x + b(t))$ with random weights, in float64.

    At the basis's nodes the entries of $W$ have variance 1/4 and those of $b$ variance 1.

    Example:
        >>> from companion.basis import Chebyshev
        >>> random_block(Chebyshev(3), 0, torch.device("cpu")).weights.basis
        Chebyshev(size=3, cells=1)
    """

    def layer() -> nn.Module:
        linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        nn.init.normal_(linear.weight, std=0.5)
        nn.init.normal_(linear.bias)
        return nn.Sequential(linear, nn.Tanh())

    with seeded(seed):
        return OdeBlock(layer, weights).to(device)


def initial_states(seed: int, device: torch.device) -> Tensor:
    """Return standard normal states, shape ``(8, 4)``, in float64.

    Example:
        >>> initial_states(0, torch.device("cpu")).shape
        torch.Size([8, 4])
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(POINTS, WIDTH, generator=generator, dtype=torch.float64).to(device)


@torch.no_grad()
def solve_naively(block: OdeBlock, x: Tensor, method: str, steps: int) -> Tensor:
    """Solve a block of :func:`random_block` with jumps, every stage read from the right.

    A stage at a knot reads the cell that begins there, at the far end of a step too.

    Example:
        >>> from companion.basis import PiecewiseConstant
        >>> device = torch.device("cpu")
        >>> block, x = random_block(PiecewiseConstant(2), 0, device), initial_states(0, device)
        >>> same = torch.equal(solve_naively(block, x, "euler", 6), block.with_graph(steps=6)(x))
        >>> heun = block.with_graph(method="heun", steps=6)
        >>> same, torch.equal(solve_naively(block, x, "heun", 6), heun(x))
        (True, False)
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
    """Solve a block under another graph, as it reads its weights: from inside every step.

    Example:
        >>> from companion.basis import Constant
        >>> device = torch.device("cpu")
        >>> block = random_block(Constant(), 0, device)
        >>> solve_block(block, initial_states(0, device), "rk4", 2).shape
        torch.Size([8, 4])
    """
    end: Tensor = block.with_graph(method=method, steps=steps)(x)
    return end


def random_problem(
    basis: Basis, seed: int, finest: int, device: torch.device
) -> tuple[OdeBlock, Tensor, Tensor]:
    """Return a random block, initial states, and where ``finest`` steps of RK4 take them.

    Example:
        >>> from companion.basis import Constant
        >>> block, x, truth = random_problem(Constant(), 0, 8, torch.device("cpu"))
        >>> torch.equal(truth, solve_block(block, x, "rk4", 8))
        True
    """
    block, x = random_block(basis, seed, device), initial_states(seed, device)
    return block, x, solve_block(block, x, "rk4", finest)


def largest_distance(ends: Tensor, truth: Tensor) -> float:
    """Return the largest distance between the states of two batches.

    Example:
        >>> largest_distance(torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [3.0, 4.0]]))
        5.0
    """
    return float((ends - truth).norm(dim=1).max())
