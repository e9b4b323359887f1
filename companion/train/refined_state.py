"""The optimiser's state when weight functions are refined."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from companion.basis import Basis

VELOCITIES = ("momentum_buffer", "exp_avg", "grad_avg")
"""Entries of an optimiser's state that move with the weights; all others are sizes of gradients."""


def split_optimiser_state(optimiser: Optimizer, before: Mapping[nn.Parameter, Basis]) -> None:
    r"""Refine the optimiser's state as the weight functions of its parameters have been refined.

    Let $R$ be the matrix that refines coefficients. A velocity $m$, such as a momentum, becomes
    $R m$: a step along it changes the function of depth as it would have before. The size of a
    gradient $v$, such as Adam's second moment, becomes $|R| v$. It stays above zero, and a step
    $m/\sqrt v$ grows by $\sqrt{\max_i \sum_j |R_{ij}|}$ at most. Where $R$ copies or averages,
    both rules are the same one, and that factor is 1. Scalars such as step counts stay as they
    are, and so does the state of other parameters.

    Args:
        optimiser: its parameters have been refined already.
        before: the basis that every refined parameter had before, such as
            ``block.weights.bases()`` of the coarse block.

    Raises:
        ValueError: a state tensor whose shape is not that of the coarse parameter, or that does
            not have the parameter's shape once it is refined.

    Example:
        >>> from companion import OdeBlock, PiecewiseConstant
        >>> block = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(cells=1))
        >>> sgd = torch.optim.SGD(block.parameters(), lr=0.1, momentum=0.9)
        >>> block(torch.ones(1, 2)).sum().backward(); sgd.step()
        >>> before = block.weights.bases()
        >>> block.refine()
        >>> split_optimiser_state(sgd, before)
        >>> [tuple(sgd.state[p]["momentum_buffer"].shape) for p in block.parameters()]
        [(2, 2, 2), (2, 2)]
    """
    for parameter, basis in before.items():
        state = optimiser.state.get(parameter, {})
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                continue
            coarse = value.shape == (basis.size, *parameter.shape[1:])
            refined = _refined(value, basis, name in VELOCITIES) if coarse else value
            if not coarse or refined.shape != parameter.shape:
                raise ValueError(
                    f"optimiser state {name!r} of shape {tuple(value.shape)} cannot be split from "
                    f"{basis!r} for a parameter of shape {tuple(parameter.shape)}"
                )
            state[name] = refined


def _refined(value: Tensor, basis: Basis, velocity: bool) -> Tensor:
    matrix = basis.refine(torch.eye(basis.size, dtype=value.dtype, device=value.device))
    if velocity or bool((matrix >= 0).all()):
        return basis.refine(value)
    sizes: Tensor = torch.tensordot(matrix.abs(), value, dims=1)
    return sizes
