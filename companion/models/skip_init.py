"""Skip initialisation: a residual that starts at zero and still learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SkipInit"]


class SkipInit(nn.Module):
    r"""Multiply a residual by a learnt scalar that starts at zero: $s\,\mathcal R(x)$.

    In a block the scalar becomes a function of depth, $s(t) = \sum_\beta \phi^\beta(t)\, s^\beta$,
    in the same basis as the other weights. The block starts as the identity. In the first step of
    training only $s$ has a gradient, $\langle \partial L/\partial y, \mathcal R(x) \rangle$.

    So the residual must not be zero itself: after a last norm whose weights start at zero, as in
    ``companion.models.layers.pre_activation``, nothing would ever learn.

    Args:
        residual: the module $\mathcal R$, called with whatever this one is called with.

    Source:
        Queiruga et al. 2020, appendix A.2; De and Smith 2020.

    Example:
        >>> from companion import OdeBlock, PiecewiseConstant
        >>> block = OdeBlock(SkipInit(nn.Linear(2, 2)), PiecewiseConstant(4), steps=4)
        >>> block(torch.ones(1, 2))
        tensor([[1., 1.]], grad_fn=<AddBackward0>)
        >>> block.weights.stacks.skip.shape
        torch.Size([4])
    """

    def __init__(self, residual: nn.Module) -> None:
        super().__init__()
        self.residual = residual
        self.skip = nn.Parameter(torch.zeros(()))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the residual of ``inputs`` times the scalar."""
        value: Tensor = self.skip * self.residual(*inputs)
        return value
