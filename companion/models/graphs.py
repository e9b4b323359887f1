"""One model, many graphs: other schemes and steps for the same weights, and what they look like."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from companion.block import OdeBlock
from companion.gradients import Gradient

__all__ = ["with_graph"]

Model = TypeVar("Model", bound=nn.Module)


def with_graph(
    model: Model,
    *,
    method: str | None = None,
    steps: int | None = None,
    gradient: str | Gradient | None = None,
) -> Model:
    """Return a model with the same weights and every block under another graph; ``None`` keeps.

    Only the blocks and the modules around them are new. All else is the same object in both models:
    stems, stitches, heads, the weights of the blocks, running statistics. Training, refining,
    moving or switching the mode of one does it to both.

    Args:
        model: a model with blocks.
        method: the scheme of all blocks.
        steps: the steps of every block.
        gradient: how all blocks are differentiated.

    Raises:
        ValueError: for a model without blocks, or a value that a block refuses.

    Source:
        Queiruga et al. 2020, section 5.3.

    Example:
        >>> from companion.models import ResidualMLP
        >>> net = ResidualMLP(4, 2, width=3, hidden=5, layers=8, tied=False, scaled=True)
        >>> short = with_graph(net, method="rk4_38", steps=3)
        >>> short.block.steps, net.block.steps, short.head is net.head
        (3, 8, True)
    """
    if not any(isinstance(module, OdeBlock) for module in model.modules()):
        raise ValueError(f"model: a {type(model).__name__} without an OdeBlock has no graph to set")
    seen: dict[int, nn.Module] = {}  # what the model uses twice stays one module

    def view(module: nn.Module) -> nn.Module:
        if id(module) not in seen:
            seen[id(module)] = make(module)
        return seen[id(module)]

    def make(module: nn.Module) -> nn.Module:
        if isinstance(module, OdeBlock):
            return module.with_graph(method=method, steps=steps, gradient=gradient)
        children = {name: child and view(child) for name, child in module._modules.items()}
        if all(child is module._modules[name] for name, child in children.items()):
            return module
        other = copy.copy(module)
        other._modules = children
        return other

    found = view(model)
    assert isinstance(found, type(model))
    return found
