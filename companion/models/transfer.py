"""Carry trained weights over to a deeper network: more layers, then weights of their own."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

from torch import nn

from companion.arguments import check_count, is_count
from companion.basis import Constant
from companion.block import OdeBlock, ode_blocks
from companion.models.layers import layer_weights

__all__ = ["deepen", "train_only", "untie"]

Model = TypeVar("Model", bound=nn.Module)


def deepen(model: Model, steps: int | Sequence[int]) -> Model:
    """Return a copy with the same tied weights and more layers, or fewer.

    A block keeps its field and its scale; only its steps change. With the rule 1/N this is a
    finer graph of the same equation.

    Args:
        model: a model with blocks.
        steps: layers of every block, or one number for each block. In
            :class:`~companion.models.ResNet` a stage has one layer more than its block.

    Raises:
        ValueError: for another number of steps than blocks, steps that are no integers of at least
            1, or a block whose layers have weights of their own and whose number would change.

    Source:
        Sander et al. 2022, section 5.2 ("New training strategy").

    Example:
        >>> from companion.models import ResNet
        >>> net = ResNet((4, 4, 4, 4), width=8, tied=True)
        >>> [block.steps for block in ode_blocks(deepen(net, (3, 3, 63, 3)))]
        [3, 3, 63, 3]
    """
    deeper = copy.deepcopy(model)
    blocks = ode_blocks(deeper)
    numbers = list(steps) if isinstance(steps, Sequence) else [steps] * len(blocks)
    if len(numbers) != len(blocks):
        raise ValueError(f"steps: {len(numbers)} numbers do not fit {len(blocks)} blocks")
    for k, (block, number) in enumerate(zip(blocks, numbers, strict=True)):
        check_count("steps", number)
        if number != block.steps and not isinstance(block.weights.basis, Constant):
            raise ValueError(
                f"model: block {k} has {block.weights.basis!r}, so its {block.steps} layers cannot "
                f"become {number}; only tied ones (Constant()) can"
            )
        block.steps = number
    return deeper


def untie(model: Model, which: Collection[int] | None = None) -> Model:
    """Return a copy that computes the same function with weights of its own in every layer.

    Running statistics are copied along with the parameters. Outputs keep every bit, in training
    mode and in evaluation mode.

    Args:
        model: a model with tied blocks.
        which: the blocks to untie, by position in :func:`~companion.block.ode_blocks`; all if
            ``None``.

    Raises:
        TypeError: for ``which`` that is no collection.
        ValueError: for a position without a block, a block that is not tied, or one that shares
            its weights with another, as :meth:`~companion.OdeBlock.with_graph` makes them.

    Source:
        Sander et al. 2022, section 5.2 ("New training strategy").

    Example:
        >>> from companion.models import ResidualConvNet
        >>> untie(ResidualConvNet(4, tied=True)).block.weights.basis
        PiecewiseConstant(cells=4)
    """
    free = copy.deepcopy(model)
    blocks = ode_blocks(free)
    if which is not None and not isinstance(which, Iterable):
        raise TypeError(f"which: {which!r} is not allowed; give positions, such as [0, 2], or None")
    for k in range(len(blocks)) if which is None else which:
        if not is_count(k, least=0) or k >= len(blocks):
            raise ValueError(
                f"which: {k!r} is not allowed; the model has {len(blocks)} blocks, counted from 0"
            )
        _check_own(blocks, k)
        _untie_block(blocks[k], k)
    return free


def _check_own(blocks: Sequence[OdeBlock], position: int) -> None:
    """Refuse to untie weights that another block reads too: it would change with this one."""
    own = {id(p) for p in blocks[position].weights.parameters()}
    for k, other in enumerate(blocks):
        if k != position and own.intersection(map(id, other.weights.parameters())):
            raise ValueError(
                f"model: blocks {min(k, position)} and {max(k, position)} share their weights, so "
                "they cannot be untied; give each a copy of its own first (copy.deepcopy)"
            )


def _untie_block(block: OdeBlock, position: int) -> None:
    weights = block.weights
    if not isinstance(weights.basis, Constant):
        raise ValueError(f"model: block {position} has {weights.basis!r}; it is not tied")
    basis = layer_weights(block.steps, block.method)
    for tensor in (*weights.parameters(), *weights.buffers()):
        tensor.data = tensor.data.repeat_interleave(basis.size, dim=0)
    weights.basis = basis


def train_only(model: nn.Module, *parts: nn.Module) -> list[nn.Parameter]:
    """Freeze all parameters of a model but those of some parts; return these.

    Only parameters are frozen. In training mode the norms of all parts go on using and collecting
    the statistics of their batches, as in the paper's published code.

    Args:
        model: the model, changed in place.
        *parts: modules inside ``model``.

    Raises:
        TypeError: for a part that is no module.
        ValueError: for no part, or one that has no parameters in the model.

    Example:
        >>> from companion.models import ResNet
        >>> net = ResNet((4, 4, 4, 4), width=8)
        >>> tuned = train_only(net, net.stages[2])
        >>> {name.split(".")[1] for name, p in net.named_parameters() if p.requires_grad}
        {'2'}
    """
    if not parts:
        raise ValueError(
            "parts: none is not allowed, it would freeze the whole model; give modules"
        )
    known = {id(p) for p in model.parameters()}
    for part in parts:
        if not isinstance(part, nn.Module):
            raise TypeError(
                f"parts: {part!r} is not allowed; give modules of the model, such as net.stages[0]"
            )
        if not known.intersection(map(id, part.parameters())):
            raise ValueError(f"parts: a {type(part).__name__} has no parameters in the model")
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    return [p for p in model.parameters() if p.requires_grad]
