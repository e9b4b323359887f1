"""ContinuousNet: a residual network for images whose stages are functions of continuous depth."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from companion.arguments import check_count, is_count
from companion.basis import Basis, PiecewiseConstant
from companion.block import OdeBlock
from companion.gradients import Gradient
from companion.models.graphs import ContinuousModel
from companion.models.layers import basic_branch, convolution, full_precision
from companion.models.skip_init import SkipInit
from companion.models.stitch import Stitch

__all__ = ["ContinuousNet", "pre_activation_unit", "wide_continuous_net"]


def pre_activation_unit(channels: int) -> nn.Sequential:
    """Return the residual of a block: norm, ReLU, 3 by 3 convolution, and the three again.

    Shapes:
        ``(batch, channels, h, w)`` to the same.

    Source:
        Queiruga et al. 2020, section 4.1; He et al. 2016, Fig. 4e.

    Example:
        >>> sum(p.numel() for p in pre_activation_unit(16).parameters())
        4672
    """
    return nn.Sequential(
        OrderedDict(
            norm1=nn.BatchNorm2d(channels),
            relu1=nn.ReLU(),
            conv1=convolution(channels, channels, 3),
            norm2=nn.BatchNorm2d(channels),
            relu2=nn.ReLU(),
            conv2=convolution(channels, channels, 3),
        )
    )


class ContinuousNet(ContinuousModel):
    r"""Stem, blocks that are continuous in depth with a stitch between two, head.

    $$\dot x = \varepsilon\, s(t)\, \mathcal R(x, \theta(t)), \qquad t \in [0, 1],$$

    in every block, with weights of its own. The stem is a convolution, a norm and a ReLU; the head
    averages over the image and is linear. A stitch halves the size and changes the channels, with
    the factor $\varepsilon/N_t$ of one Euler step (:class:`~companion.models.Stitch`): $N_t$ is
    ``steps`` when the net is made, and refining or another graph later leaves the factor alone.

    With ``method="euler"`` and as many cells and as large a ``scale`` as ``steps``, this is a
    residual network.
    With 3 channels of input, 10 classes and $M$ cells it has $97\,219\,M + 73\,180$ parameters.

    The file of :func:`~companion.models.save` holds what ``arguments`` and the blocks say.

    Args:
        classes: size of the output.
        inputs: channels of an image.
        channels: channels of the state in every block.
        basis: how the parameters of all blocks vary with depth.
        method: the scheme of all blocks.
        steps: equal steps of every block.
        scale: the factor $\varepsilon$ of the residuals.
        skip_init: multiply all residuals, in the stitches too, by a learnt scalar that starts at
            zero (:class:`~companion.models.SkipInit`).
        gradient: how the blocks are differentiated.
        residual: makes the residual $\mathcal R$ of a block from its number of channels.

    Attributes:
        arguments: the arguments that made this net, by name.
        stem: from the image to the first state.
        blocks: the blocks.
        stitches: the layers between them, one fewer.
        head: from the last state, averaged, to the logits.

    Shapes:
        ``(batch, inputs, h, w)`` to ``(batch, classes)``.

    Raises:
        ValueError: for ``classes``, ``inputs`` or an entry of ``channels`` that is no integer of at
            least 1, no channels, or a value that :class:`~companion.OdeBlock` refuses.
        TypeError: for ``channels`` that are no sequence.

    Source:
        Queiruga et al. 2020, section 4.3, Fig. 6 and appendix A.

    Example:
        >>> import torch
        >>> net = ContinuousNet(basis=PiecewiseConstant(2), method="rk4", steps=2)
        >>> net(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
        >>> sum(p.numel() for p in net.parameters())
        267618
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        inputs: int = 3,
        channels: Sequence[int] = (16, 32, 64),
        basis: Basis = PiecewiseConstant(8),  # noqa: B008 - frozen
        method: str = "euler",
        steps: int = 8,
        scale: float = 1.0,
        skip_init: bool = True,
        gradient: str | Gradient = "backprop",
        residual: Callable[[int], nn.Module] = pre_activation_unit,
    ) -> None:
        super().__init__()
        check_count("classes", classes)
        check_count("inputs", inputs)
        _check_channels(channels)
        self.arguments: dict[str, Any] = {
            "classes": classes, "inputs": inputs, "channels": tuple(channels), "basis": basis,
            "method": method, "steps": steps, "scale": scale, "skip_init": skip_init,
            "gradient": gradient, "residual": residual,
        }  # fmt: skip

        def gated(module: nn.Module) -> nn.Module:
            return SkipInit(module) if skip_init else module

        def block(width: int) -> OdeBlock:
            return OdeBlock(lambda: gated(residual(width)), basis, method, steps, gradient, scale)

        first = channels[0]
        self.stem = nn.Sequential(convolution(inputs, first, 3), nn.BatchNorm2d(first), nn.ReLU())
        self.blocks = nn.ModuleList(block(width) for width in channels)
        self.stitches = nn.ModuleList(
            Stitch(before, after, gated(basic_branch(before, after, stride=2)), scale / steps)
            for before, after in pairwise(channels)
        )
        self.head = nn.Linear(channels[-1], classes)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for k, block in enumerate(self.blocks):
            if k > 0:
                x = self.stitches[k - 1](x)
            x = block(full_precision(x, block))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def wide_continuous_net(classes: int = 100, **options: Any) -> ContinuousNet:
    """Return the net with 64, 128 and 256 channels: CIFAR-100, or Tiny-ImageNet's 200 classes.

    Args:
        classes: size of the output.
        **options: as for :class:`~companion.models.ContinuousNet`, without ``channels``.

    Source:
        Queiruga et al. 2020, section 5.1 and appendix B.1.

    Example:
        >>> sum(p.numel() for p in wide_continuous_net().parameters())
        13576638
    """
    return ContinuousNet(classes, channels=(64, 128, 256), **options)


def _check_channels(channels: Sequence[int]) -> None:
    if not isinstance(channels, Sequence):
        raise TypeError(
            f"channels: {channels!r} is not allowed; give one number for each block, such as "
            "(16, 32, 64)"
        )
    if not channels or not all(is_count(width) for width in channels):
        raise ValueError(
            f"channels: {channels!r} is not allowed; a block needs an integer of at least 1"
        )
