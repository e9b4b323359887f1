"""Weights of torchvision's residual networks for :class:`~companion.models.ResNet`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from companion.arguments import check_type
from companion.basis import PiecewiseConstant
from companion.models.layers import PostActivation
from companion.models.resnets import ResNet, ResNetStage

__all__ = ["load_torchvision"]


def load_torchvision(net: ResNet, state: Mapping[str, Tensor]) -> None:
    """Load the ``state_dict`` of a torchvision ResNet; the network then computes the same function.

    What fits is :func:`~companion.models.resnet` with ``rule="original"`` and
    ``stem="imagenet"``, for ``resnet18`` to ``resnet152`` there. The other rules have parameters of
    the same shapes and make other functions of them. Networks with groups (``resnext``) or wider
    layers (``wide_resnet``) have other shapes. Either all is loaded or nothing.

    Args:
        net: the network, changed in place.
        state: names such as ``layer1.0.conv1.weight``, and tensors. Counts of batches may be
            missing, as in old files.

    Raises:
        TypeError: for another network.
        ValueError: for a rule, a scheme or tied layers that make another function; for names or
            shapes that do not fit. The message says which.

    Source:
        He et al. 2015; the names are those of ``torchvision.models.resnet``.

    Example:
        >>> from companion.models import resnet
        >>> net = resnet(18, rule="original", stem="imagenet", classes=1000)
        >>> load_torchvision(net, {"fc.weight": torch.zeros(10, 512)})
        Traceback (most recent call last):
        ValueError: state: does not fit this network: fc.weight of shape (10, 512), not (1000, 512),
        no bn1.bias, no bn1.running_mean, no bn1.running_var and 98 more; ...
    """
    check_type("net", net, ResNet)
    slots = _slots(net)
    faults = [
        f"{name} of shape {tuple(state[name].shape)}, not {tuple(slot.shape)}"
        for name, slot in slots.items()
        if name in state and state[name].shape != slot.shape
    ]
    needed = {name for name in slots if not name.endswith("num_batches_tracked")}
    faults += [f"no {name}" for name in sorted(needed - state.keys())]
    faults += [f"{name}, which it does not have" for name in sorted(state.keys() - slots.keys())]
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise ValueError(
            f"state: does not fit this network: {', '.join(faults[:4])}{more}; resnet(depth, "
            "rule='original', stem='imagenet', classes=1000) fits torchvision's of that depth"
        )
    with torch.no_grad():
        for name, slot in slots.items():
            if name in state:
                slot.copy_(state[name])


def _slots(net: ResNet) -> dict[str, Tensor]:
    """Return the network's own tensors, and rows of its stacks, under torchvision's names."""
    slots = _of(net.stem[0], "conv1") | _of(net.stem[1], "bn1") | _of(net.head, "fc")
    for k, stage in enumerate(net.stages, start=1):
        assert isinstance(stage, ResNetStage)
        first, block = stage.first, stage.block
        slots |= _of(first.branch, f"layer{k}.0") | _of(first.shortcut, f"layer{k}.0.downsample")
        basis = PiecewiseConstant(block.steps)
        original = isinstance(block.weights.template, PostActivation)
        if not original or block.method != "euler" or block.weights.basis != basis:
            raise ValueError(
                f"net: stage {k} is {block!r} with the rule "
                f"{'original' if original else 'scaled or classic'!r}, another function of "
                "torchvision's weights than they were trained for; make it with rule='original', "
                "method='euler' and layers that are not tied"
            )
        for name, stack in _of(block.weights.stacks, "").items():
            slots |= {f"layer{k}.{i}{name}": row for i, row in enumerate(stack, start=1)}
    return slots


def _of(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a module under torchvision's names of its layers."""
    named = module.state_dict()
    return {f"{prefix}.{re.sub('^norm', 'bn', name)}": value for name, value in named.items()}
