"""A small convolutional residual network on one scale: the net of Sander et al.'s Figure 4."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from typing_extensions import override

from companion.arguments import check_choice, check_count
from companion.block import OdeBlock
from companion.gradients import Gradient
from companion.models.layers import (
    basic_branch,
    full_precision,
    layer_weights,
    pre_activation,
)

__all__ = ["ResidualConvNet"]


class _Images(NamedTuple):
    """What the stem does to images, and the window that averages the last state to 2 by 2."""

    channels: int
    kernel: int
    stride: int
    pool: int


_IMAGES = {
    "cifar": _Images(channels=3, kernel=5, stride=3, pool=4),  # 32 -> 10 -> 2
    "digits": _Images(channels=1, kernel=3, stride=2, pool=2),  # 8 -> 4 -> 2
}


class ResidualConvNet(nn.Module):
    r"""Convolutional stem, ``layers`` residual layers of one shape, linear head.

    $$x_{n+1} = x_n + \frac{\varepsilon}{N} f(x_n, \theta_n), \qquad
    f = \mathrm{bn} \circ \mathrm{conv} \circ \mathrm{relu} \circ
    \mathrm{bn} \circ \mathrm{conv} \circ \mathrm{relu},$$

    with 3 by 3 convolutions; the weights of the last norm start at zero. The stem is a convolution,
    a norm and a ReLU. It takes images of 32 by 32 pixels to 10 by 10, and digits of 8 by 8 to
    4 by 4. The head averages to 2 by 2 pixels and is linear.

    The layers are an :class:`~companion.block.OdeBlock`, attribute ``block``, with $N$ steps.
    ``method="heun"`` is HeunNet, with $N + 1$ sets of parameters; see
    :func:`~companion.models.layer_weights`. The published code of the paper makes a HeunNet
    of $D$ sets with $D - 1$ steps of size $1/D$: ``layers=D - 1, method="heun",
    scale=(D - 1) / D``.

    Args:
        layers: number of layers $N$.
        images: ``"cifar"`` for 3 by 32 by 32 numbers an image, ``"digits"`` for 1 by 8 by 8.
        channels: channels of the state.
        classes: size of the output.
        tied: all layers share one set of parameters and of running statistics.
        scale: the factor $\varepsilon$; ``scale=layers`` is the classic rule $x + f(x)$.
        method: the scheme of the block.
        gradient: how the block is differentiated.

    Shapes:
        ``(batch, 3, 32, 32)`` or ``(batch, 1, 8, 8)`` to ``(batch, classes)``.

    Raises:
        ValueError: for unknown ``images``, or ``layers``, ``channels`` or ``classes`` that is no
            integer of at least 1.

    Source:
        Sander et al. 2022, section 5.2, Fig. 4 and appendix C; stride and pooling from the paper's
        published code, the stem for digits from us. That code leaves out the first ReLU of $f$.

    Example:
        >>> import torch
        >>> net = ResidualConvNet(8, images="digits", method="heun", gradient="checkpoint")
        >>> net(torch.zeros(3, 1, 8, 8)).shape, net.block.weights.basis.size
        (torch.Size([3, 10]), 9)
    """

    def __init__(
        self,
        layers: int,
        *,
        images: str = "cifar",
        channels: int = 16,
        classes: int = 10,
        tied: bool = False,
        scale: float = 1.0,
        method: str = "euler",
        gradient: str | Gradient = "backprop",
    ) -> None:
        super().__init__()
        check_choice("images", images, _IMAGES)
        check_count("channels", channels)
        check_count("classes", classes)
        kind = _IMAGES[images]
        self.stem = nn.Sequential(
            nn.Conv2d(kind.channels, channels, kind.kernel, kind.stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.block = OdeBlock(
            lambda: pre_activation(basic_branch(channels, channels)),
            basis=layer_weights(layers, method, tied),
            method=method,
            steps=layers,
            gradient=gradient,
            scale=scale,
        )
        self.head = nn.Sequential(
            nn.AvgPool2d(kind.pool), nn.Flatten(), nn.Linear(4 * channels, classes)
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(full_precision(self.stem(x), self.block)))
        return logits
