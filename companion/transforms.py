"""torch's function transforms, ``torch.func`` and forward-mode derivatives, seen from a solve.

Inside a transform a tensor stands for a batch, or carries a derivative, and no value of it can be
looked at. What is checked once a solve is checked on the tensor beneath, all of a batch at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["CANNOT_FOLLOW", "beneath", "followed", "has_values", "transforming"]

CANNOT_FOLLOW = (
    "which torch.func's transforms (grad, vjp, jvp, vmap) and torch.autograd.forward_ad cannot "
    "follow"
)
"""The wording of all refusals."""


def transforming() -> bool:
    """Say whether code runs inside a transform or a level of forward-mode derivatives.

    Example:
        >>> transforming(), torch.func.vmap(lambda x: x + float(transforming()))(torch.zeros(2))
        (False, tensor([1., 1.]))
    """
    if torch.compiler.is_compiling():  # Dynamo follows transforms by means of its own
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def followed(x: Tensor) -> bool:
    """Say whether a transform follows what becomes of a tensor: a batch of it, or a derivative.

    Example:
        >>> torch.func.vmap(lambda x: x + float(followed(x)))(torch.zeros(2))
        tensor([1., 1.])
    """
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return True
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def beneath(x: Tensor) -> Tensor:
    """Return the tensor that holds the values, with the axes of all batches.

    Example:
        >>> torch.func.vmap(lambda x: x + float(beneath(x).sum()))(torch.ones(2))
        tensor([3., 3.])
    """
    if torch.compiler.is_compiling():
        return x
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def has_values(x: Tensor) -> bool:
    """Say whether a tensor has values: on the meta device and in a graph being traced it has none.

    Example:
        >>> has_values(torch.zeros(2)), has_values(torch.zeros(2, device="meta"))
        (True, False)
    """
    keys = torch._C._TorchDispatchModeKey
    modes = (torch._C._get_dispatch_mode(key) for key in (keys.PROXY, keys.FAKE))
    return not x.is_meta and all(mode is None for mode in modes)
