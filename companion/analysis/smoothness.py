r"""How smooth in depth are a network's weights?

Weights $\theta_0, \theta_1, \dots$ on a grid of $N$ cells are smooth in depth if neighbours differ
by $O(1/N)$, as samples of one Lipschitz function do. Weights drawn independently differ by $O(1)$.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from companion.arguments import check_count
from companion.basis import Constant, PiecewiseConstant, PiecewiseLinear, evaluate
from companion.block import OdeBlock

__all__ = ["DepthSmoothness", "Smoothness", "smoothness", "smoothness_of", "total_variation"]


class Smoothness(NamedTuple):
    r"""Three measures of the steps $\lVert\theta_{n+1} - \theta_n\rVert$ between neighbours.

    Attributes:
        slope: $N \max_n \lVert\theta_{n+1} - \theta_n\rVert$, bounded in $N$ for smooth weights.
        variation: $\sum_n \lVert\theta_{n+1} - \theta_n\rVert$; one jump does not spoil it.
        delta: $\Delta = \max_n \lVert\theta_{n+1} - \theta_n\rVert^2$, squared.
    """

    slope: float
    variation: float
    delta: float


@dataclass(frozen=True)
class DepthSmoothness:
    """The measures of all weights together and of each parameter.

    Attributes:
        total: of the weights of a layer as one vector.
        parameters: of each parameter, by its name.
    """

    total: Smoothness
    parameters: dict[str, Smoothness]


def smoothness(block: OdeBlock) -> DepthSmoothness:
    """Measure how smooth the weights of a block are in depth.

    For piecewise-linear weights, the slope and the variation are those of the function of depth.

    Raises:
        TypeError: a basis whose coefficients are not values at neighbouring depths.
        ValueError: a block without parameters, or one with norms beside piecewise-linear weights,
            which have another number of entries.

    Example:
        >>> from companion import PiecewiseConstant
        >>> block = OdeBlock(torch.nn.Linear(2, 2), PiecewiseConstant(cells=4))
        >>> smoothness(block).total  # one module, copied into every cell
        Smoothness(slope=0.0, variation=0.0, delta=0.0)
    """
    basis = block.weights.basis
    if not isinstance(basis, Constant | PiecewiseConstant | PiecewiseLinear):
        raise TypeError(
            f"block: the coefficients of {basis!r} are not values at neighbouring depths; measure "
            "block.project(PiecewiseConstant(cells=64)) instead"
        )
    return smoothness_of(dict(block.weights.stacks.named_parameters()), basis.cells)


@torch.no_grad()
def smoothness_of(weights: Mapping[str, Tensor], cells: int) -> DepthSmoothness:
    r"""Measure how smooth stacked weights are in depth.

    Args:
        weights: by name, tensors with the same number of entries along the leading axis, one a
            layer or a node.
        cells: the number $N$ of cells, $1/N$ the distance in depth between neighbours.

    Raises:
        ValueError: no weights, stacks of different lengths, or ``cells`` no integer of at least 1.

    Source:
        Sander et al. 2022, Proposition 2 (slope) and Proposition 5 (delta).

    Example:
        >>> smoothness_of({"theta": torch.tensor([0.0, 3.0, 2.0])}, cells=3).total
        Smoothness(slope=9.0, variation=4.0, delta=9.0)
    """
    check_count("cells", cells)
    if len({len(stack) for stack in weights.values()}) != 1:
        lengths = {name: len(stack) for name, stack in weights.items()}
        raise ValueError(f"weights: lengths {lengths} are not allowed; they must be equal")
    squares = {name: _squared_steps(stack) for name, stack in weights.items()}
    total = torch.stack(list(squares.values())).sum(0)
    return DepthSmoothness(
        _measures(total, cells), {name: _measures(s, cells) for name, s in squares.items()}
    )


@torch.no_grad()
def total_variation(block: OdeBlock) -> float:
    r"""Return how much the weights of a block vary over its depth, relative to their size.

    $$\mathrm{TV} = \frac{\sum_k \lVert\theta(s_{k+1}) - \theta(s_k)\rVert}
    {\max_k \lVert\theta(s_k)\rVert}$$

    with all weights as one vector, in the middles $s_k$ of the cells; piecewise-constant weights
    have their coefficients there. It is 0 for weights that do not depend on depth. Of $M$ cells
    with independent weights it is about $\sqrt 2\,(M - 1)$.

    Raises:
        ValueError: a block without parameters.

    Example:
        >>> from companion import PiecewiseConstant
        >>> block = OdeBlock(torch.nn.Linear(1, 1, bias=False), PiecewiseConstant(cells=3))
        >>> _ = block.weights.stacks.weight.data.copy_(torch.tensor([2.0, 4.0, 3.0]).view(3, 1, 1))
        >>> total_variation(block)
        0.75
    """
    bases, cells = block.weights.bases(), block.weights.basis.cells
    if not bases:
        raise ValueError("block: it has no parameters, so nothing varies")
    middles = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    values = [evaluate(basis, p.detach().double(), middles) for p, basis in bases.items()]
    stack = torch.cat([value.reshape(cells, -1) for value in values], dim=1)
    varied = stack.diff(dim=0).norm(dim=1).sum()
    return float(varied / stack.norm(dim=1).max()) if varied > 0 else 0.0


def _squared_steps(stack: Tensor) -> Tensor:
    """Return the squared distances between neighbours, in double precision."""
    stack = stack.to(torch.complex128 if stack.is_complex() else torch.float64)
    return stack.reshape(len(stack), -1).diff(dim=0).abs().square().sum(dim=1)


def _measures(squares: Tensor, cells: int) -> Smoothness:
    if len(squares) == 0:  # a single set of weights, the same at every depth
        return Smoothness(0.0, 0.0, 0.0)
    largest = squares.max().item()
    return Smoothness(cells * largest**0.5, squares.sqrt().sum().item(), largest)
