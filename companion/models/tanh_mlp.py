"""A perceptron as a field of vectors that knows its own trace, in any dimension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from companion.arguments import check_choice, check_count, not_allowed
from companion.models.time_fields import with_time

__all__ = ["TanhMLP"]


class TanhMLP(nn.Module):
    r"""A field with one or two hidden layers of tanh, and the trace of its Jacobian in closed form.

    With one hidden layer, $f(t, x) = V \tanh(W x + w t + b) + d$ and $h = \tanh(\cdot)$,

    $$\operatorname{tr} \partial_x f = \sum_k (1 - h_k^2)\,(W V)_{kk};$$

    with two, $f(t, x) = V \tanh(U g + c) + d$ where $g = \tanh(W x + w t + b)$,

    $$\operatorname{tr} \partial_x f
    = \sum_{j,k} (1 - h_j^2)\,U_{jk}\,(W V)_{kj}\,(1 - g_k^2).$$

    The products of weights are the same for all samples, so that a sample pays about as much as for
    the velocity, whatever its dimension.

    Args:
        width: size of the state.
        hidden: sizes of the one or two hidden layers.
        time: whether the field sees the time, as a further input before the state.
        bias: whether the last layer has a bias.

    Shapes:
        ``(batch, width)`` to the same.

    Raises:
        ValueError: for a size that is no integer of at least 1, or another number of hidden layers.

    Source:
        Chen et al. 2018, section 4 (a trace is linear in the hidden units); the second layer is
        ours.

    Example:
        >>> field = TanhMLP(2, (16, 16))
        >>> velocity, trace = field.velocity_and_trace(torch.tensor(0.5), torch.zeros(4, 2))
        >>> velocity.shape, trace.shape
        (torch.Size([4, 2]), torch.Size([4]))
    """

    def __init__(
        self, width: int, hidden: Sequence[int], *, time: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        check_count("width", width)
        check_choice("time", time, (False, True))
        if len(hidden) not in (1, 2):
            raise ValueError(not_allowed("hidden", hidden, "it must hold one or two sizes"))
        for size in hidden:
            check_count("hidden", size)
        self.time = time
        self.first = nn.Linear(width + time, hidden[0])
        self.second = nn.Linear(hidden[0], hidden[1]) if len(hidden) == 2 else None
        self.last = nn.Linear(hidden[-1], width, bias=bias)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the velocity of the state."""
        velocity: Tensor = self.last(self._units(t, x)[-1])
        return velocity

    def velocity_and_trace(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity and the trace of its Jacobian, ``(batch,)``."""
        units = self._units(t, x)
        slopes = [1 - h.square() for h in units]
        inner = self.first.weight[:, int(self.time) :]  # the time is no part of the state
        if self.second is None:
            trace = slopes[0] @ (inner * self.last.weight.T).sum(1)
        else:
            weights = self.second.weight * (inner @ self.last.weight).T
            trace = ((slopes[1] @ weights) * slopes[0]).sum(1)
        return self.last(units[-1]), trace

    def _units(self, t: Tensor, x: Tensor) -> list[Tensor]:
        """Return the values of each hidden layer."""
        units = [torch.tanh(self.first(with_time(t, x) if self.time else x))]
        if self.second is not None:
            units.append(torch.tanh(self.second(units[0])))
        return units
