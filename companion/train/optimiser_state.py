"""The optimiser's state when weight functions are refined."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from companion.basis import Basis


def split_optimiser_state(optimiser: Optimizer, before: Mapping[nn.Parameter, Basis]) -> None:
    r"""Refine the optimiser's state as the weight functions of its parameters have been refined.

    Let $R$ be the matrix that refines coefficients; its entries are not negative. A velocity $m$,
    such as a momentum, becomes $R m$: a step along it changes the function of depth as it would
    have before. The size of a gradient $v$, such as Adam's second moment, becomes $R v$. Where $R$
    copies or averages, a step $m/\sqrt v$ stays within the largest one before. Where it pads, the
    new coefficients start from $m = v = 0$ at the old step count: Adam's first step of theirs has
    the size $(1 - \beta_1)/\sqrt{1 - \beta_2}$ times the rate, about 3. Scalars such as step
    counts stay as they are, and so does the state of other parameters.

    Args:
        optimiser: its parameters have been refined already.
        before: the basis that every refined parameter had before, such as
            ``block.weights.bases()`` of the coarse block.

    Raises:
        ValueError: a state tensor whose shape is not that of the coarse parameter, or that does
            not have the parameter's shape once it is refined.

    Example:
        >>> import torch
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
            refined = basis.refine(value) if coarse else value
            if not coarse or refined.shape != parameter.shape:
                raise ValueError(
                    f"optimiser state {name!r} of shape {tuple(value.shape)} cannot be split from "
                    f"{basis!r} for a parameter of shape {tuple(parameter.shape)}"
                )
            state[name] = refined


def check_splits(optimiser: Optimizer, bases: Mapping[nn.Parameter, Basis]) -> None:
    """Refuse an optimiser whose state will not split, before it has any.

    What state an optimiser keeps shows in its first step: a copy takes it, with twins of the
    parameters and gradients of zero.

    Args:
        optimiser: made for the parameters, not used yet.
        bases: the basis of every parameter that is to be refined.

    Raises:
        ValueError: as :func:`split_optimiser_state` will, for such as Adafactor, which keeps sums
            over the rows and the columns of a matrix.

    Example:
        >>> from companion import OdeBlock
        >>> block = OdeBlock(nn.Linear(2, 2))
        >>> check_splits(torch.optim.Adafactor(block.parameters()), block.weights.bases())
        Traceback (most recent call last):
        ValueError: optimiser: Adafactor is not allowed; it must keep state of its parameters' ...
    """
    twins = {p: nn.Parameter(p.detach().clone(), p.requires_grad) for p in bases}
    probe = copy.deepcopy(optimiser, {id(p): twin for p, twin in twins.items()})
    for twin in twins.values():
        twin.grad = torch.zeros_like(twin)
    with torch.random.fork_rng(devices=[]):  # some optimisers draw noise
        probe.step()
    before = {twins[p]: basis for p, basis in bases.items()}
    for twin, basis in before.items():
        twin.data = basis.refine(twin.data)
    try:
        split_optimiser_state(probe, before)
    except ValueError as error:
        raise ValueError(
            f"optimiser: {type(optimiser).__name__} is not allowed; it must keep state of its "
            f"parameters' shapes to be refined with them ({error}); take another, or "
            "Refinement(..., momentum='drop')"
        ) from error
