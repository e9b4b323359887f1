r"""The one-step ODE-Net: a small field inside one step of a scheme, trained on pairs of states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from companion.arguments import check_count, check_type
from companion.models.implicit_step import IMPLICIT, implicit_step
from companion.ode import odeint

__all__ = ["OneStepNet", "TanhField"]


class TanhField(nn.Module):
    r"""A field of the plane: $G(x) = A \tanh(W x + b)$, without a bias at the output.

    Initial values are $W \sim 0.5\,\mathcal N$, $b \sim \mathcal N$ and $A \sim 0.1\,\mathcal N$,
    in double precision.

    Args:
        hidden: number of hidden units.
        generator: draws the initial values, on the CPU.

    Shapes:
        ``(..., 2)`` to the same. Parameters with further leading axes make a stack of fields.

    Raises:
        ValueError: ``hidden`` is no integer of at least 1.

    Source:
        Queiruga et al. 2020, Eq. 16; the initial values are ours.

    Example:
        >>> field = TanhField(50, generator=torch.Generator().manual_seed(0))
        >>> sum(p.numel() for p in field.parameters())
        250
    """

    def __init__(self, hidden: int, *, generator: torch.Generator) -> None:
        super().__init__()
        check_count("hidden", hidden)

        def draw(std: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(std * torch.randn(shape, generator=generator, dtype=torch.float64))

        self.inner = draw(0.5, hidden, 2)
        self.shift = draw(1.0, hidden)
        self.outer = draw(0.1, 2, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return the derivative of the state."""
        return torch.tanh(x @ self.inner.mT + self.shift) @ self.outer.mT


class OneStepNet(nn.Module):
    r"""One step of a scheme around a trained field: $F(x) = \Phi^{G}_{\Delta t}(x)$.

    With ``method="euler"`` this is the residual layer $x + \Delta t\,G(x)$. The field is the
    attribute ``field``: a trained net runs under any other scheme and step.

    Args:
        method: one of :data:`companion.methods.METHODS`, or of
            :data:`~companion.models.implicit_step.IMPLICIT`.
        step: the time $\Delta t$ of one step, that between two states of the data.
        hidden: number of hidden units of the field.
        generator: draws the initial values, on the CPU.

    Shapes:
        ``(..., 2)`` to the same.

    Raises:
        ValueError: a step that is not positive, or a bad number of hidden units; in ``forward``, an
            unknown method, or a state that stops being finite.

    Source:
        Queiruga et al. 2020, Eq. 14 to 16.

    Example:
        >>> net = OneStepNet("euler", step=0.1, generator=torch.Generator().manual_seed(0))
        >>> x = torch.ones(2, dtype=torch.float64)
        >>> torch.equal(net(x), x + 0.1 * net.field(x))
        True
        >>> net.rollout(x, 64, method="rk4", step=0.05).shape
        torch.Size([65, 2])
    """

    def __init__(
        self, method: str, *, step: float, hidden: int = 50, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.method, self.step = method, _checked_step(step)
        self.field = TanhField(hidden, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return the state one step later."""
        return self.rollout(x, 1)[-1]

    def rollout(
        self, x: Tensor, steps: int, *, method: str | None = None, step: float | None = None
    ) -> Tensor:
        """Return the states of ``steps`` steps from ``x``, that one included.

        Args:
            x: the first state.
            steps: number of steps.
            method: the scheme; the net's own if ``None``.
            step: the time of one step; the net's own if ``None``.

        Returns:
            A tensor of shape ``(steps + 1, *x.shape)``.

        Raises:
            ValueError: ``steps`` no integer of at least 1, a step that is not positive, an unknown
                method, or a state that stops being finite.
        """
        check_count("steps", steps)
        method = self.method if method is None else method
        h = self.step if step is None else _checked_step(step)
        if method not in IMPLICIT:
            times = [n * h for n in range(steps + 1)]
            states: Tensor = odeint(lambda t, x: self.field(x), x, times, method=method)
            return states
        path = [x]
        for _ in range(steps):
            path.append(implicit_step(self.field, path[-1], h, method))
        return torch.stack(path)


def _checked_step(step: float) -> float:
    check_type("step", step, int, float)
    if not 0 < step < float("inf"):
        raise ValueError(f"step: {step!r} is not allowed; it must be positive and finite")
    return float(step)
