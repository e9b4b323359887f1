r"""Run a network backwards from its output: the rules that reconstruct each layer's input.

One step of an explicit scheme is $x_{n+1} = x_n + h\varphi_n(x_n)$. Going back, $x_{n+1}$ is known
and $x_n$ is the solution of the fixed-point equation $x = x_{n+1} - h\varphi_n(x)$. Whatever point
$\tilde x_n$ a rule guesses, the vector-Jacobian product evaluates $\varphi_n(\tilde x_n)$ anyway.
The paper's rule forgets that value. The other rules use it as one more fixed-point iterate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor

from companion.solve import Field, FixedStep, Interval, Problem, Stage, step_size

__all__ = ["WAYS_BACK", "Layer", "ReverseSweep"]

WAYS_BACK = ("reverse", "corrected", "predicted")
"""How the input of a layer is found; see :class:`companion.gradients.Reconstruct`."""

TRUST = 8.0
"""A prediction is kept if it is at most this many times worse than a sweep in its place."""

LIMIT = 0.5
"""No prediction is kept that was wrong by more than this part of the increment."""


class Layer(NamedTuple):
    """One step of the network, evaluated with a graph at its reconstructed input.

    Attributes:
        start: the reconstructed input, a leaf that needs a gradient.
        ends: the interval's times as leaves, if they need gradients; else empty.
        increment: what the step adds to ``start``, with its graph.
        state: where the sweep goes on: the reconstructed input, corrected if the rule says so.
    """

    start: Tensor
    ends: tuple[Tensor, ...]
    increment: Tensor
    state: Tensor


class ReverseSweep:
    """The steps of a solve, taken backwards one by one by one of the ``WAYS_BACK``."""

    def __init__(
        self, problem: Problem, rule: str, order: int, sweeps: int, times: bool = False
    ) -> None:
        """Prepare to go back through ``problem``; ``times`` asks for graphs to the times too."""
        assert isinstance(problem.solver, FixedStep)  # Reconstruct refuses other solvers
        self.field: Field = problem.field
        self.solver, self.scale = problem.solver, problem.scale
        self.rule, self.order, self.sweeps, self.times = rule, order, sweeps, times
        self.contraction = 0.0
        self.history: list[Tensor] = []

    def start_interval(self) -> None:
        """Forget the layers seen so far: the next step has another size."""
        self.history = []

    def back(self, interval: Interval, n: int, end: Tensor, start: Tensor | None = None) -> Layer:
        """Go back from the state ``end`` after step ``n``, to ``start`` if that is known."""
        if start is not None:
            layer = self._evaluated(interval, n, start)
            self._remember(layer.increment.detach())
            return layer
        if self.rule == "predicted":
            return self._predicted(interval, n, end)
        assumed = self._reversed(interval, n, end)
        for _ in range(self.sweeps):
            assumed = self._increment(interval, n, end - assumed)
        layer = self._evaluated(interval, n, end - assumed)
        if self.rule == "reverse":
            return layer
        return layer._replace(state=end - layer.increment.detach())

    def _predicted(self, interval: Interval, n: int, end: Tensor) -> Layer:
        """Guess from the layers seen so far; sweep for each that is missing; check the guess.

        The evaluation for the graph shows by how much the guess was wrong. Where weights jump, that
        is much more than a sweep would leave. Then this evaluation becomes the sweep, and the graph
        is made again at the better point: two evaluations, as in the corrected rule. In shallow
        networks, where sweeps hardly contract, the second limit keeps wild guesses out.
        """
        assumed = self._extrapolated(end)
        mismatch: Tensor | None = None
        for _ in range(self.sweeps + self.order - len(self.history)):
            increment = self._increment(interval, n, end - assumed)
            mismatch = self._learn(increment, assumed, mismatch)
            assumed = increment
        layer = self._evaluated(interval, n, end - assumed)
        increment = layer.increment.detach()
        mismatch = self._learn(increment, assumed, mismatch)
        swept = self.contraction ** (1 + self.sweeps)
        if mismatch > min(TRUST * swept, LIMIT) * torch.linalg.vector_norm(increment):
            assumed = increment
            layer = self._evaluated(interval, n, end - assumed)
            increment = layer.increment.detach()
            self._learn(increment, assumed, mismatch)
        self._remember(increment)
        return layer._replace(state=end - increment)

    def _remember(self, increment: Tensor) -> None:
        if self.rule == "predicted":
            self.history = [increment, *self.history[: self.order - 1]]

    def _learn(self, increment: Tensor, assumed: Tensor, before: Tensor | None) -> Tensor:
        """Return the mismatch of an assumed increment; after a sweep, note the contraction.

        The largest seen is kept: an estimate of ``h`` times the field's Lipschitz constant, which
        means nothing above 1.
        """
        mismatch: Tensor = torch.linalg.vector_norm(increment - assumed)
        if before is not None and before > 0:
            self.contraction = min(1.0, max(self.contraction, float(mismatch / before)))
        return mismatch

    def _extrapolated(self, like: Tensor) -> Tensor:
        """Return the polynomial through the last increments, one step further; zero without any."""
        known = len(self.history)
        if known == 0:
            return torch.zeros_like(like)
        total = self.history[0] if known == 1 else known * self.history[0]
        for k, increment in enumerate(self.history[1:], start=1):
            total = total.add(increment, alpha=(-1) ** k * comb(known, k + 1))
        return total

    def _reversed(self, interval: Interval, n: int, end: Tensor) -> Tensor:
        """Return what the scheme's step with ``-h`` takes off, its stages mirrored in the step.

        A residual layer, Euler's step, keeps its own weights: those of the layer's start.
        """
        scheme, steps = self.solver.scheme, self.solver.steps
        if scheme.stages == 1:
            return self._increment(interval, n, end)
        t0, t1 = interval

        def stage(i: int) -> Stage:
            t = t1 + (steps - 1 - n + scheme.fractions[i]) * ((t0 - t1) / steps)
            return Stage(t, n, steps, 1 - scheme.c[i])

        return -self._step(stage, end, -step_size(interval, steps, self.scale, end))

    def _increment(self, interval: Interval, n: int, y: Tensor) -> Tensor:
        """Return what step ``n`` adds to ``y``."""
        h = step_size(interval, self.solver.steps, self.scale, y)
        return self._step(lambda i: self.solver.stage(interval, n, i), y, h)

    def _step(self, stage: Callable[[int], Stage], y: Tensor, h: float | Tensor) -> Tensor:
        return self.solver.scheme.increment(lambda i, y: self.field(stage(i), y), y, h)

    def _evaluated(self, interval: Interval, n: int, y: Tensor) -> Layer:
        """Evaluate step ``n`` at ``y`` with a graph."""
        ends: tuple[Tensor, ...] = ()
        with torch.enable_grad():
            start = y.detach().requires_grad_()
            if self.times:
                assert isinstance(interval[0], Tensor)
                interval = (interval[0].detach(), interval[1].detach())
                ends = (interval[0].requires_grad_(), interval[1].requires_grad_())
            increment = self._increment(interval, n, start)
        return Layer(start, ends, increment, start.detach())

    def uses(self, interval: Interval, n: int) -> Sequence[int]:
        """Return the indices of the parameters that step ``n`` reads."""
        stages = (self.solver.stage(interval, n, i) for i in range(self.solver.scheme.stages))
        return sorted(set().union(*map(self.field.uses, stages)))
