"""A whole solve, forward and backward, as two CUDA graphs that are replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from companion.block import ode_blocks
from companion.gradients import Backprop

__all__ = ["captured"]


def captured(model: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    """Record every kernel of a model's forward and backward pass once, to be launched at one go.

    A solve with small states spends its time on launching kernels, not in them. A replay launches
    all of them with one call. It computes what the model computes, gradients included; the weights
    are read where they lie, so that training steps are seen. What was decided while recording stays
    as it was: shape, dtype, mode, number of steps. Values are not checked in a replay.

    Buffers are as before when this function returns, and each call updates them once. What a call
    returns is a copy, which the next call leaves alone.

    Args:
        model: a block, or a model with blocks, on a CUDA device: fixed steps, differentiated by
            backprop. Dropout draws new numbers in each replay.
        example: an input of the shape, dtype and device of all later ones; with ``requires_grad``
            if their gradients are asked for.

    Returns:
        A function of the input that has the model's value and gradients.

    Raises:
        ValueError: for an example that is not on a CUDA device; for a block that chooses its steps,
            or goes back through a solve by itself, because both read values from the device.

    Example:
        On a machine with such a device:

        >>> from companion import OdeBlock
        >>> block = OdeBlock(nn.Linear(2, 2), method="rk4", steps=100)
        >>> captured(block, torch.zeros(8, 2))
        Traceback (most recent call last):
        ...
        ValueError: example: a tensor on cpu is not allowed; CUDA graphs need one on a CUDA device
    """
    if example.device.type != "cuda":
        raise ValueError(
            f"example: a tensor on {example.device} is not allowed; CUDA graphs need one on a CUDA "
            "device"
        )
    _check_blocks(model)
    before = [buffer.clone() for buffer in model.buffers()]
    sample = example.detach().clone().requires_grad_(example.requires_grad)
    whole = _Whole(model)
    replay: Any = torch.cuda.make_graphed_callables(whole, (sample,), allow_unused_input=True)
    with torch.no_grad():  # the warm-up has updated them
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)

    def solve(x: Tensor) -> Tensor:
        if (x.shape, x.dtype, x.device) != (sample.shape, sample.dtype, sample.device):
            raise ValueError(
                f"x: shape {tuple(x.shape)}, {x.dtype} on {x.device} is not allowed; the capture "
                f"was made for shape {tuple(sample.shape)}, {sample.dtype} on {sample.device}"
            )
        value: Tensor = replay(x)
        return value.clone()  # a replay writes to the same memory again

    return solve


class _Whole(nn.Module):
    """The model within another, whose ``forward`` the capture may replace."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training  # not train(), which would reach frozen parts

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.model(x)
        return value


def _check_blocks(model: nn.Module) -> None:
    for block in ode_blocks(model):
        if not block.solver.on_grid:
            raise ValueError(
                f"model: a block with method={block.method!r} cannot be captured, as it reads "
                "errors from the device to choose its steps; use a fixed-step method such as 'rk4'"
            )
        if not isinstance(block.gradient, Backprop):
            raise ValueError(
                f"model: a block with gradient={block.gradient!r} cannot be captured, as it goes "
                "back through a solve by itself; use with_graph(gradient='backprop')"
            )
