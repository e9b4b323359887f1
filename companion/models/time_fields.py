"""Fields that know the time: layers that take it as a further channel, and fields made of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from companion.arguments import check_count

__all__ = ["ConvField", "SecondOrder", "TimeConv", "with_time"]


def with_time(t: Tensor, x: Tensor) -> Tensor:
    """Return a state with the time as one more channel, the first one of axis 1.

    Args:
        t: one time for all, of no axes, or one for each sample, of shape ``(batch, 1, ..., 1)``.
        x: the state, of shape ``(batch, channels, ...)``.

    Example:
        >>> with_time(torch.tensor(0.5), torch.ones(1, 2))
        tensor([[0.5000, 1.0000, 1.0000]])
    """
    return torch.cat([torch.ones_like(x[:, :1]) * t, x], dim=1)


class TimeConv(nn.Module):
    """A 3 by 3 convolution that sees the time as a constant image beside the state.

    Args:
        inputs: channels of the state.
        outputs: channels of the result.

    Shapes:
        ``(batch, inputs, h, w)`` to ``(batch, outputs, h, w)``.

    Raises:
        ValueError: for a number of channels that is no integer of at least 1.

    Source:
        The published code of Chen et al. 2018 (``ConcatConv2d``).

    Example:
        >>> TimeConv(3, 5)(torch.tensor(0.5), torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 5, 4, 4])
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        check_count("inputs", inputs)
        check_count("outputs", outputs)
        self.conv = nn.Conv2d(inputs + 1, outputs, 3, padding=1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the convolution of the state and the time."""
        y: Tensor = self.conv(with_time(t, x))
        return y


class ConvField(nn.Module):
    r"""The field of images: a residual branch that is told the time and ends in a norm.

    $$f(t, x) = \mathrm{gn}\bigl(\mathrm{conv}_t(\mathrm{relu}(\mathrm{gn}(
    \mathrm{conv}_t(\mathrm{relu}(\mathrm{gn}(x)))))))\bigr)$$

    Group norms keep no running statistics, so the field is one function of $t$ and $x$, in
    training and after it. The last norm bounds how fast the state moves.

    Args:
        channels: channels of the state.

    Shapes:
        ``(batch, channels, h, w)`` to the same.

    Raises:
        ValueError: for ``channels`` that is no integer of at least 1, or that the groups of the
            norms do not divide: two channels make one, and there are 32 at most.

    Source:
        The published code of Chen et al. 2018 (``ODEfunc``).

    Example:
        >>> field = ConvField(64)
        >>> field(torch.tensor(0.0), torch.zeros(2, 64, 6, 6)).shape
        torch.Size([2, 64, 6, 6])
        >>> sum(p.numel() for p in field.parameters())
        75392
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (group_norm(channels) for _ in range(3))
        self.conv1, self.conv2 = (TimeConv(channels, channels) for _ in range(2))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the velocity of the state."""
        x = self.conv1(t, torch.relu(self.norm1(x)))
        x = self.conv2(t, torch.relu(self.norm2(x)))
        velocity: Tensor = self.norm3(x)
        return velocity


class SecondOrder(nn.Module):
    r"""Newton's law as a field: the state is a position and a velocity, side by side in axis 1.

    $$\dot q = v, \qquad \dot v = a(t, [q, v])$$

    So a block of second order is a block like any other, on a state of twice the size.

    Args:
        acceleration: the module $a$, called with the time and the whole state; its value has half
            the state's channels.

    Shapes:
        ``(batch, 2 * channels, ...)`` to the same.

    Raises:
        ValueError: in ``forward``, for a state without an axis of channels or with an odd number of
            them, or an acceleration that is not shaped like half of it.

    Source:
        Norcliffe et al. 2020, On second order behaviour in augmented neural ODEs.

    Example:
        >>> class Spring(nn.Module):
        ...     def forward(self, t, x):
        ...         return -x[:, :1]
        >>> SecondOrder(Spring())(torch.tensor(0.0), torch.tensor([[1.0, 2.0]]))
        tensor([[ 2., -1.]])
    """

    def __init__(self, acceleration: nn.Module) -> None:
        super().__init__()
        self.acceleration = acceleration

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the velocity, and the acceleration beside it."""
        if x.ndim < 2:
            raise ValueError(
                f"x: shape {tuple(x.shape)} is not allowed; it must be (batch, 2 * channels, ...)"
            )
        if x.shape[1] % 2:
            raise ValueError(
                f"x: {x.shape[1]} channels are not allowed; a position and a velocity need an even "
                "number"
            )
        velocity, change = x[:, x.shape[1] // 2 :], self.acceleration(t, x)
        if change.shape != velocity.shape:
            raise ValueError(
                f"acceleration: it returned shape {tuple(change.shape)}; it must be that of the "
                f"velocity, {tuple(velocity.shape)}"
            )
        return torch.cat([velocity, change], dim=1)


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group norm with two channels a group, as the published code has it for 64 channels.

    One channel a group would leave a mean over all pixels hardly anything to see. From 64 channels
    on there are 32 groups, as in the published code.

    Raises:
        ValueError: for ``channels`` that is no integer of at least 1, or that the groups do not
            divide.

    Example:
        >>> group_norm(64).num_groups, group_norm(16).num_groups, group_norm(1).num_groups
        (32, 8, 1)
    """
    check_count("channels", channels)
    groups = min(32, max(1, channels // 2))
    if channels % groups:
        raise ValueError(
            f"channels: {channels} is not allowed; {groups} groups must divide it, so take an even "
            "number, above 64 a multiple of 32"
        )
    return nn.GroupNorm(groups, channels)
