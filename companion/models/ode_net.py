"""The ODE-Net: a network for images with one equation where others have a stack of layers."""

from __future__ import annotations

import inspect
from collections import OrderedDict

import torch
from torch import Tensor, nn
from typing_extensions import override

from companion.arguments import check_count, check_type
from companion.basis import PiecewiseConstant
from companion.block import OdeBlock
from companion.models.graphs import ContinuousModel
from companion.models.time_fields import group_norm

__all__ = ["Augment", "ODENet", "residual_layers"]


class ODENet(ContinuousModel):
    r"""Convolutional stem, a block, and a head that averages: one shell for four networks.

    The stem is a convolution and ``halvings`` more with a stride of 2, with a group norm and a ReLU
    between any two. The head is a group norm, a ReLU, the mean over all pixels and a linear layer.
    With an :class:`~companion.OdeBlock` of a :class:`~companion.models.ConvField` between them this
    is the ODE-Net; with fixed Runge-Kutta steps and backprop in that block, the RK-Net; with
    :func:`~companion.models.residual_layers`, a ResNet; and with ``torch.nn.Identity()`` the
    control, which shows what stem and head do by themselves.

    Args:
        block: from a state to one of the same shape.
        inputs: channels of an image.
        channels: channels of the state.
        classes: size of the output.
        halvings: how often the stem halves height and width.

    Attributes:
        stem: from the image to the first state.
        block: the block.
        head: from the last state to the logits.

    Shapes:
        ``(batch, inputs, h, w)`` to ``(batch, classes)``.

    Raises:
        TypeError: for a ``block`` that is no module, such as a class.
        ValueError: for a block whose field wants the time and does not get it, ``inputs``,
            ``channels`` or ``classes`` that is no integer of at least 1,
            ``halvings`` that is none of at least 0, or channels that the groups of the norms do not
            divide.

    Source:
        Chen et al. 2018, section 3, and their published code, which has 64 channels and two
        halvings for MNIST.

    Example:
        >>> from companion.models import ConvField
        >>> options = {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3, "gradient": "adjoint"}
        >>> net = ODENet(OdeBlock(ConvField(64), time=True, **options))
        >>> net(torch.zeros(2, 1, 28, 28)).shape, sum(p.numel() for p in net.parameters())
        (torch.Size([2, 10]), 208266)
        >>> sum(p.numel() for p in ODENet(residual_layers(64)).parameters())
        576778
    """

    def __init__(
        self,
        block: nn.Module,
        *,
        inputs: int = 1,
        channels: int = 64,
        classes: int = 10,
        halvings: int = 2,
    ) -> None:
        super().__init__()
        check_type("block", block, nn.Module)
        _check_time(block)
        check_count("inputs", inputs)
        check_count("channels", channels)
        check_count("classes", classes)
        check_count("halvings", halvings, least=0)
        stem: list[nn.Module] = [nn.Conv2d(inputs, channels, 3)]
        for _ in range(halvings):
            smaller = nn.Conv2d(channels, channels, 4, stride=2, padding=1)
            stem += [group_norm(channels), nn.ReLU(), smaller]
        self.stem = nn.Sequential(*stem)
        self.block = block
        self.head = nn.Sequential(
            group_norm(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(channels, classes),
        )  # fmt: skip

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.stem(x)))
        return logits


def _check_time(block: nn.Module) -> None:
    """Refuse a block whose field would miss the time in the first forward pass."""
    if isinstance(block, OdeBlock) and not block.time:
        field = block.weights.template
        try:
            inspect.signature(field.forward).bind(None)
        except TypeError:
            raise ValueError(
                f"block: its field {type(field).__name__} is called as f(x), which it does not "
                "allow; one that wants the time needs OdeBlock(field, time=True)"
            ) from None


def residual_layers(channels: int, layers: int = 6) -> OdeBlock:
    r"""Return residual layers $x + f(x, \theta_n)$ with weights of their own, as a block.

    A branch is a group norm, a ReLU and a convolution without bias, twice. The block takes Euler
    steps of size 1: its ``scale`` is the number of layers.

    Args:
        channels: channels of the state.
        layers: number of layers.

    Raises:
        ValueError: for a number that is no integer of at least 1.

    Source:
        The published code of Chen et al. 2018 (``ResBlock``).

    Example:
        >>> block = residual_layers(8, layers=3)
        >>> block(torch.zeros(2, 8, 4, 4)).shape, block.steps, block.scale
        (torch.Size([2, 8, 4, 4]), 3, 3.0)
    """

    def branch() -> nn.Sequential:
        conv1, conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        return nn.Sequential(
            OrderedDict(
                norm1=group_norm(channels), relu1=nn.ReLU(), conv1=conv1,
                norm2=group_norm(channels), relu2=nn.ReLU(), conv2=conv2,
            )
        )  # fmt: skip

    check_count("layers", layers)
    return OdeBlock(branch, PiecewiseConstant(layers), steps=layers, scale=float(layers))


class Augment(nn.Module):
    """Give a state further channels that begin at zero, so that a flow has room to pass by itself.

    Stands before a block whose field has as many channels more.

    Args:
        extra: number of channels to add, behind the others on axis 1.

    Shapes:
        ``(batch, channels, ...)`` to ``(batch, channels + extra, ...)``.

    Raises:
        ValueError: for ``extra`` that is no integer of at least 1.

    Source:
        Dupont, Doucet and Teh 2019, Augmented neural ODEs.

    Example:
        >>> Augment(2)(torch.ones(1, 2))
        tensor([[1., 1., 0., 0.]])
    """

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = check_count("extra", extra)

    def forward(self, x: Tensor) -> Tensor:
        """Return the state with zeros behind it."""
        zeros = x.new_zeros(len(x), self.extra, *x.shape[2:])
        return torch.cat([x, zeros], dim=1)
