"""The continuous planar flow: a sum of planar units, whose trace costs nothing extra."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from companion.arguments import check_count

__all__ = ["PlanarField"]


class PlanarField(nn.Module):
    r"""A gated sum of planar units, all of whose weights are functions of time.

    $$f(t, x) = \sum_{m=1}^{M} \sigma(g_m(t))\,u_m(t)\,\tanh\bigl(w_m(t)^\top x + b_m(t)\bigr),
    \qquad
    \operatorname{tr} \partial_x f = \sum_m \sigma(g_m)\,u_m^\top w_m
    \bigl(1 - \tanh^2(w_m^\top x + b_m)\bigr)$$

    A small perceptron of the time, with one hidden layer of tanh, makes $(w, u, b, g)$ for all
    units, once for a batch. The gates let units come and go. A sum of fields has the sum of their
    traces, so the cost is linear in the number of units.

    Args:
        width: size $d$ of the state.
        units: number $M$ of planar units.
        hidden: hidden units of the perceptron of the time.

    Shapes:
        ``(batch, width)`` to the same; the time has no axes.

    Raises:
        ValueError: for a size that is no integer of at least 1; in ``forward``, for a time with
            axes.

    Source:
        Chen et al. 2018, section 4.1, and their published code.

    Example:
        >>> field = PlanarField(2, 32)
        >>> velocity, trace = field.velocity_and_trace(torch.tensor(0.5), torch.zeros(4, 2))
        >>> velocity.shape, trace.shape, sum(p.numel() for p in field.parameters())
        (torch.Size([4, 2]), torch.Size([4]), 3296)
    """

    def __init__(self, width: int, units: int, hidden: int = 16) -> None:
        super().__init__()
        self.width, self.units = check_count("width", width), check_count("units", units)
        check_count("hidden", hidden)
        self.weights = nn.Sequential(
            nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, units * (2 * width + 2))
        )

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the velocity of the state."""
        w, u, b = self.at(t)
        return torch.tanh(x @ w.T + b) @ u

    def velocity_and_trace(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity and the trace of its Jacobian, ``(batch,)``."""
        w, u, b = self.at(t)
        values = torch.tanh(x @ w.T + b)
        return values @ u, (1 - values.square()) @ (u * w).sum(1)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return $w$, the gated $u$ and $b$ at a time: two of ``(units, width)``, ``(units,)``."""
        if t.ndim:
            raise ValueError(
                f"t: shape {tuple(t.shape)} is not allowed; the field has one time for all rows"
            )
        made = self.weights(t.reshape(1)).reshape(self.units, 2 * self.width + 2)
        w, u, b, gate = made.split([self.width, self.width, 1, 1], dim=1)
        return w, torch.sigmoid(gate) * u, b.squeeze(1)
