"""Batch norms of whole networks, those inside blocks included."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from companion.arguments import check_type
from companion.depth_weights import DepthWeights
from companion.plain_layers import all_modules, stacks_by_name
from companion.train.batches import device_of


@torch.no_grad()
def update_bn(batches: Iterable[Any], model: nn.Module) -> None:
    r"""Estimate the running statistics of all batch norms anew, as plain means over batches.

    :func:`torch.optim.swa_utils.update_bn` for networks with blocks, whose norms it does not find.
    For weights that were averaged (:class:`torch.optim.swa_utils.AveragedModel` works on blocks as
    on other modules), projected, merged or changed in any way after training. Every cell of a block
    gets the mean over all evaluations of its norm, where running statistics weigh the last ones
    most.

    Args:
        batches: inputs of the model, or sequences that begin with one, such as batches of a
            :class:`~torch.utils.data.DataLoader`.
        model: changed in place; afterwards every part is in the mode it was.

    Raises:
        ValueError: there is no batch.
        TypeError: a batch that neither is nor begins with a tensor.

    Example:
        >>> from companion import OdeBlock, PiecewiseConstant
        >>> block = OdeBlock(nn.BatchNorm1d(1), PiecewiseConstant(cells=2), steps=2)
        >>> update_bn([torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])], block)
        >>> mean = next(b for name, b in block.named_buffers() if name.endswith("running_mean"))
        >>> mean[0]  # of 2 and 6
        tensor([4.])
    """
    norms = [module for module in all_modules(model) if isinstance(module, _BatchNorm)]
    before = [(module, module.training) for module in all_modules(model)]
    momenta = [norm.momentum for norm in norms]
    _reset(model)
    device, count = device_of(model), 0
    try:
        model.train()
        for norm in norms:
            norm.momentum = None  # torch's word for a plain mean
        for batch in batches:
            x = batch[0] if isinstance(batch, list | tuple) and batch else batch
            check_type("batches", x, Tensor)
            model(x.to(device))
            count += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in before:
            module.training = mode
    if count == 0:
        raise ValueError("batches: none is not allowed; there must be at least one")


def convert_sync_batchnorm(model: nn.Module, process_group: Any = None) -> nn.Module:
    """Make batch norms take their statistics over all processes, those inside blocks included.

    :meth:`torch.nn.SyncBatchNorm.convert_sync_batchnorm` for networks with blocks, whose norms it
    does not find. Weights and running statistics stay the same tensors. Views of a block that
    share its weights share its norms.

    Args:
        model: changed in place.
        process_group: the processes; all if ``None``.

    Returns:
        The model, or what takes its place if it is itself a batch norm.

    Raises:
        ValueError: a block whose residual is a batch norm and nothing else; put it into an
            ``nn.Sequential`` before the block is made.

    Example:
        >>> from companion import OdeBlock
        >>> unit = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
        >>> net = convert_sync_batchnorm(OdeBlock(unit))
        >>> type(net.weights.template[0]).__name__
        'SyncBatchNorm'
    """
    templates = [m.template for m in model.modules() if isinstance(m, DepthWeights)]
    if any(isinstance(template, _BatchNorm) for template in templates):
        raise ValueError(
            "model: a block whose residual is a bare batch norm is not allowed; put the norm into "
            "an nn.Sequential before the block is made"
        )
    for template in templates:
        convert_sync_batchnorm(template, process_group)
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(  # type: ignore[no-untyped-call]
        model, process_group
    )
    return converted


def _reset(model: nn.Module) -> None:
    for leaf, buffer in _statistics(model):
        buffer.fill_(1 if leaf == "running_var" else 0)


def _statistics(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return names and buffers of all batch norms; those of a block lie in its stacks."""
    found: list[tuple[str, Tensor]] = []
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            found += module.named_buffers(recurse=False)
        if isinstance(module, DepthWeights):
            inside = {id(buffer): leaf for leaf, buffer in _statistics(module.template)}
            for name, stack in stacks_by_name(module, "named_buffers").items():
                leaf = inside.get(id(module.template.get_buffer(name)))
                found += [] if leaf is None else [(leaf, stack)]
    return found
