"""How many evaluations does a trained block take, for a batch and for each of its samples?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from companion.block import OdeBlock
from companion.counts import counting
from companion.methods import ADAPTIVE
from companion.ode import odeint
from companion.train import evaluating

__all__ = ["Evaluations", "count_evaluations", "solve_per_sample"]


class Evaluations(NamedTuple):
    """What one batch costs an adaptive block.

    Attributes:
        shared: evaluations of the field for the whole batch, whose samples share every step.
        own: evaluations of each sample by itself, shape ``(batch,)``, int64.
    """

    shared: int
    own: Tensor


@torch.no_grad()
def count_evaluations(block: OdeBlock, x: Tensor) -> Evaluations:
    """Count the evaluations of a batch, and of every sample if it chose its own steps.

    Both solves have the method and the tolerances of the block, and each is in evaluation mode. In
    the second a field that knows the time gets one for each sample, of shape ``(batch, 1, ...)``
    with as many axes as the state.

    Args:
        block: an adaptive block with one set of weights for all depths.
        x: the states at its start, shape ``(batch, ...)``.

    Raises:
        TypeError: for a ``block`` that is no :class:`~companion.OdeBlock`, such as a whole network.
        ValueError: for a method without steps of its own, weights that vary with depth, or states
            without a row or without an axis besides that of rows.

    Example:
        >>> from companion.models import TanhMLP
        >>> block = OdeBlock(TanhMLP(2, (8, 8)), method="dopri5", rtol=1e-3, atol=1e-3, time=True)
        >>> found = count_evaluations(block, torch.zeros(3, 2))
        >>> len(found.own), found.shared == found.own[0].item()  # equal samples, equal steps
        (3, True)
    """
    _check(block, x)
    with evaluating(block), counting() as stats:
        block(x)
    with counting() as rows:
        solve_per_sample(block, x)
    assert rows.nfe_per_sample is not None
    return Evaluations(stats.nfe, rows.nfe_per_sample)


@torch.no_grad()
def solve_per_sample(block: OdeBlock, x: Tensor) -> Tensor:
    """Return the states at the end of a block, every sample solved with steps of its own.

    The arguments and errors are those of :func:`count_evaluations`.

    Example:
        >>> from companion.models import TanhMLP
        >>> block = OdeBlock(TanhMLP(2, (8, 8)), method="dopri5", time=True)
        >>> x = torch.randn(5, 2)
        >>> torch.allclose(solve_per_sample(block, x), block(x), atol=1e-5)
        True
    """
    _check(block, x)
    template = block.weights.template
    stacks = dict(block.weights.stacks.named_buffers()) | block.weights.named()
    values = {name: stack[0] for name, stack in stacks.items()}

    def field(t: Tensor, x: Tensor) -> Tensor:
        arguments = (t / block.scale, x) if block.time else (x,)
        velocity: Tensor = torch.func.functional_call(template, values, arguments)
        return velocity

    with evaluating(block):
        ys: Tensor = odeint(
            field, x, [0.0, block.scale], method=block.method, rtol=block.rtol, atol=block.atol,
            per_sample=True,
        )  # fmt: skip
    return ys[-1]


def _check(block: OdeBlock, x: Tensor) -> None:
    """Refuse what cannot be solved sample by sample."""
    if not isinstance(block, OdeBlock):
        raise TypeError(
            f"block: {type(block).__name__} is not allowed; it must be an OdeBlock, such as the "
            "attribute block of an ODENet"
        )
    if x.ndim < 2 or not len(x):
        raise ValueError(
            f"x: shape {tuple(x.shape)} is not allowed; it must be (batch, ...), with a row or more"
        )
    if block.method not in ADAPTIVE:
        raise ValueError(
            f"block: method={block.method!r} takes the same steps for every sample; use one of "
            f"{', '.join(ADAPTIVE)}"
        )
    basis = block.weights.basis
    if basis.size != 1:
        raise ValueError(
            f"block: its weights vary with depth, {basis!r}; only constant ones are solved sample "
            "by sample"
        )
