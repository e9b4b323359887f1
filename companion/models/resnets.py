"""Residual networks of four stages, 18 to 152 layers deep, whose stages are blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from companion.arguments import check_choice, check_count, is_count
from companion.block import OdeBlock
from companion.gradients import Backprop, Checkpoint, Gradient, get_gradient
from companion.models.layers import (
    PostActivation,
    basic_branch,
    bottleneck_branch,
    convolution,
    full_precision,
    layer_weights,
    pre_activation,
)

__all__ = ["DEPTHS", "FirstLayer", "ResNet", "ResNetStage", "resnet"]

DEPTHS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
"""The kind of layer and the number of layers in every stage, by the depth in a net's name."""


class ResNet(nn.Module):
    r"""A residual network of several scales, whose residual stages can train with any gradient.

    A stage of $B$ layers is one layer that changes the shape, and an
    :class:`~companion.block.OdeBlock` of $N = B - 1$ layers of one shape. With the convolutions and
    norms $F$ of a layer, the rules are

    $$\text{scaled: } x_{n+1} = x_n + \tfrac1N F(\mathrm{relu}(x_n), \theta_n),$$

    $$\text{classic: } x_{n+1} = x_n + F(\mathrm{relu}(x_n), \theta_n),$$

    $$\text{original: } x_{n+1} = \mathrm{relu}(x_n + F(x_n, \theta_n)).$$

    The first is the rule of Sander et al., the last the network of He et al. 2015. Its ReLU after
    the sum throws away what a reverse step needs, so it cannot train without stored states. The
    other two have that ReLU at the start of the next layer, where the sum does not pass through it,
    and one more after the stage. All three have the same parameters, those of torchvision's
    networks in shape and number; only the last computes the same function from them. The weights of
    the last norm of a layer start at zero, except in the first layer of a stage.

    Recipes that walk over modules reach the stem, the first layers and the head only; see
    :class:`~companion.OdeBlock`.

    Args:
        layers: number of layers of each stage, at least 2.
        kind: ``"basic"`` for two 3 by 3 convolutions a layer, ``"bottleneck"`` for 1, 3 and 1.
        stem: ``"cifar"``, a 3 by 3 convolution, or ``"imagenet"``, 7 by 7 with stride 2 and a
            pooling; each with a norm and a ReLU.
        inputs: channels of an image.
        classes: size of the output.
        width: channels after the stem; every stage but the first doubles them.
        rule: ``"scaled"``, ``"classic"`` or ``"original"``.
        tied: the layers of a stage share one set of parameters and of running statistics; its
            first layer has its own.
        method: the scheme of the blocks; ``"heun"`` has one more set of parameters a stage.
        gradient: how the blocks are differentiated. For one stage alone, replace its block by
            ``block.with_graph(gradient=...)``.

    Shapes:
        ``(batch, inputs, h, w)`` to ``(batch, classes)``.

    Raises:
        TypeError: for ``layers`` that are no sequence.
        ValueError: for an unknown ``kind``, ``stem`` or ``rule``, fewer than 2 layers in a stage,
            ``inputs``, ``classes`` or ``width`` that is no integer of at least 1, or the rule
            ``"original"`` with a scheme or a gradient that it cannot have.

    Source:
        He et al. 2015, Table 1; Sander et al. 2022, section 5.1 and appendix C.

    Example:
        >>> net = ResNet((2, 3), width=8, rule="scaled", gradient="checkpoint")
        >>> net(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
        >>> [stage.block.steps for stage in net.stages]
        [1, 2]
    """

    def __init__(
        self,
        layers: Sequence[int],
        kind: str = "basic",
        *,
        stem: str = "cifar",
        inputs: int = 3,
        classes: int = 10,
        width: int = 64,
        rule: str = "scaled",
        tied: bool = False,
        method: str = "euler",
        gradient: str | Gradient = "backprop",
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("kind", kind, _BRANCHES),
            ("stem", stem, _STEMS),
            ("rule", rule, _RULES),
        ):
            check_choice(name, value, allowed)
        _check_layers(layers)
        for name, size in (("inputs", inputs), ("classes", classes), ("width", width)):
            check_count(name, size)
        if rule == "original":
            _check_original(method, gradient)
        self.stem = _STEMS[stem](inputs, width)
        channels, stages = width, []
        for k, count in enumerate(layers):
            first = FirstLayer(channels, width * 2**k, kind, stride=1 if k == 0 else 2)
            channels = first.outputs
            block = OdeBlock(
                partial(_residual, kind, rule, channels, width * 2**k),
                basis=layer_weights(count - 1, method, tied),
                method=method,
                steps=count - 1,
                gradient=gradient,
                scale=1.0 if rule == "scaled" else float(count - 1),
            )
            stages.append(ResNetStage(first, block))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(channels, classes)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class ResNetStage(nn.Module):
    """The layers of one scale.

    Attributes:
        first: the layer that changes the shape.
        block: all others.
    """

    def __init__(self, first: FirstLayer, block: OdeBlock) -> None:
        super().__init__()
        self.first, self.block = first, block

    def forward(self, x: Tensor) -> Tensor:
        """Return the state after the stage; no entry is negative, in ``x`` neither."""
        return torch.relu(self.block(full_precision(self.first(x), self.block)))


class FirstLayer(nn.Module):
    r"""The layer of a stage that changes the shape: $\mathrm{relu}(S(x) + F(x))$.

    $S$ is a 1 by 1 convolution and a norm, or the identity where the shape stays.
    """

    def __init__(self, inputs: int, width: int, kind: str, stride: int) -> None:
        super().__init__()
        branch, expansion = _BRANCHES[kind]
        self.outputs = expansion * width
        self.branch = branch(inputs, width, stride)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != self.outputs:
            self.shortcut.append(convolution(inputs, self.outputs, 1, stride))
            self.shortcut.append(nn.BatchNorm2d(self.outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the first state of the stage."""
        return torch.relu(self.shortcut(x) + self.branch(x))


def resnet(depth: int, **options: Any) -> ResNet:
    """Return the network of 18, 34, 50, 101 or 152 layers.

    Args:
        depth: one of these.
        **options: as for :class:`~companion.models.ResNet`, without ``layers`` and ``kind``.

    Raises:
        TypeError: for ``layers`` or ``kind``, which the depth decides.
        ValueError: for another depth, and as :class:`~companion.models.ResNet`.

    Example:
        >>> net = resnet(18, stem="imagenet", classes=1000)
        >>> sum(p.numel() for p in net.parameters())
        11689512
    """
    check_choice("depth", depth, DEPTHS)
    for name in options.keys() & {"kind", "layers"}:
        raise TypeError(
            f"{name}: {options[name]!r} is not allowed; the depth decides it, use ResNet to choose"
        )
    kind, layers = DEPTHS[depth]
    return ResNet(layers, kind, **options)


def _residual(kind: str, rule: str, channels: int, width: int) -> nn.Module:
    branch, _ = _BRANCHES[kind]
    made = branch(channels, width)
    return PostActivation(made) if rule == "original" else pre_activation(made)


def _cifar_stem(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(convolution(inputs, width, 3), nn.BatchNorm2d(width), nn.ReLU())


def _imagenet_stem(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        convolution(inputs, width, 7, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


_BRANCHES: dict[str, tuple[Callable[..., nn.Sequential], int]] = {
    "basic": (basic_branch, 1),
    "bottleneck": (bottleneck_branch, 4),
}
_STEMS = {"cifar": _cifar_stem, "imagenet": _imagenet_stem}
_RULES = ("scaled", "classic", "original")


def _check_layers(layers: Sequence[int]) -> None:
    if not isinstance(layers, Sequence):
        raise TypeError(
            f"layers: {layers!r} is not allowed; give the number of layers of each stage, such as "
            "(2, 2, 2, 2)"
        )
    if not layers or not all(is_count(count, least=2) for count in layers):
        raise ValueError(
            f"layers: {layers!r} is not allowed; a stage needs an integer of at least 2 layers"
        )


def _check_original(method: str, gradient: str | Gradient) -> None:
    if method != "euler":
        raise ValueError(f"rule: 'original' with method={method!r} is not allowed; use 'euler'")
    if not isinstance(get_gradient(gradient), Backprop | Checkpoint):
        raise ValueError(
            f"rule: 'original' with gradient={gradient!r} is not allowed: its layers cannot be "
            "undone; use gradient='backprop' or 'checkpoint', or the rule 'classic'"
        )
