"""The layer between two blocks: half the size, more channels."""

from __future__ import annotations

from torch import Tensor, nn

from companion.arguments import check_count
from companion.models.layers import convolution

__all__ = ["Stitch"]


class Stitch(nn.Module):
    r"""One residual layer that changes the shape, with the factor of one step of a block.

    $$x_{\text{out}} = \mathrm{down}(x) + \varepsilon_{\text{stitch}}\, \mathcal R(x), \qquad
    \varepsilon_{\text{stitch}} = \varepsilon\, \Delta t / T .$$

    ``down`` is a 1 by 1 convolution with stride 2. The paper prints the factor upside down,
    $\varepsilon T/\Delta t$. A step of Euler's method adds $\varepsilon \Delta t\, \mathcal R$, and
    the stitch is to match it: in a classic residual network, with $\varepsilon = N_t$ and
    $T = 1$, the factor is 1.

    The factor is fixed when the layer is made. It is part of a layer that no depth runs through: a
    finer graph of the blocks around it, or more cells, must not change what it computes, and its
    weights are trained for this factor.

    Args:
        inputs: channels before.
        outputs: channels after.
        residual: the module $\mathcal R$, from ``inputs`` to ``outputs`` channels with stride 2.
        scale: the factor $\varepsilon_{\text{stitch}}$.

    Shapes:
        ``(batch, inputs, h, w)`` to ``(batch, outputs, h / 2, w / 2)``, rounded up.

    Raises:
        ValueError: for ``inputs`` or ``outputs`` that is no integer of at least 1.

    Source:
        Queiruga et al. 2020, Eq. 28 and appendix A.1.

    Example:
        >>> import torch
        >>> from companion.models.layers import basic_branch
        >>> stitch = Stitch(8, 16, basic_branch(8, 16, stride=2), scale=0.5)
        >>> stitch(torch.zeros(1, 8, 6, 6)).shape
        torch.Size([1, 16, 3, 3])
    """

    def __init__(self, inputs: int, outputs: int, residual: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        check_count("inputs", inputs)
        check_count("outputs", outputs)
        self.down = convolution(inputs, outputs, 1, stride=2)
        self.residual = residual
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the first state of the next block."""
        value: Tensor = self.down(x) + self.scale * self.residual(x)
        return value
