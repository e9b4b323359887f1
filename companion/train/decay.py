"""Which parameters weight decay is for."""

from __future__ import annotations

from typing import Any

from torch import nn

from companion.arguments import check_number
from companion.plain_layers import own_rank


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return an optimiser's two groups: matrices and kernels with weight decay, the rest without.

    The common recipe leaves out parameters of rank 0 and 1: biases, the weights of norms, learnt
    scalars. In a block they have one axis more, that of the layers, so that ``p.dim() > 1`` would
    take them in. Here a parameter has the rank it has in its layer.

    Args:
        model: its trainable parameters are sorted.
        weight_decay: for the first group, at least 0.

    Raises:
        ValueError: ``weight_decay`` below 0, or not finite.
        TypeError: ``weight_decay`` that is no number.

    Example:
        >>> import torch
        >>> from companion import OdeBlock, PiecewiseConstant
        >>> block = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(cells=8))
        >>> groups = decay_groups(block, 0.01)
        >>> [[tuple(p.shape) for p in group["params"]] for group in groups]
        [[(8, 2, 2)], [(8, 2)]]
        >>> sgd = torch.optim.SGD(groups, lr=0.1)  # in fit: lambda _: SGD(decay_groups(...), ...)
    """
    weight_decay = check_number("weight_decay", weight_decay, least=0)
    trained = [(param, rank) for param, rank in own_rank(model).items() if param.requires_grad]
    return [
        {"params": [p for p, rank in trained if rank > 1], "weight_decay": weight_decay},
        {"params": [p for p, rank in trained if rank <= 1], "weight_decay": 0.0},
    ]
