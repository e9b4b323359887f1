r"""Run a network backwards from its output: the rules that reconstruct each layer's input.

One step of an explicit scheme is $x_{n+1} = x_n + h\varphi_n(x_n)$. Going back, $x_{n+1}$ is known
and $x_n$ is the solution of the fixed-point equation $x = x_{n+1} - h\varphi_n(x)$. Whatever point
$\tilde x_n$ a rule guesses, the vector-Jacobian product evaluates $\varphi_n(\tilde x_n)$ anyway.
The paper's rule forgets that value. The other rules use it as one more fixed-point iterate.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor

from companion.gradients.pullback import Taped, taped
from companion.solve import Field, FixedStep, Interval, Problem, Step

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
        tape: the increment of the step, with its graph, at the reconstructed input.
        state: where the sweep goes on: the reconstructed input, corrected if the rule says so.
    """

    tape: Taped
    state: Tensor

    @property
    def increment(self) -> Tensor:
        """What the step adds to its input."""
        return self.tape.value.detach()


class ReverseSweep:
    """The steps of a solve, taken backwards one by one by one of the ``WAYS_BACK``."""

    def __init__(
        self, problem: Problem, rule: str, order: int, sweeps: int, times: bool = False
    ) -> None:
        """Prepare to go back through ``problem``; ``times`` asks for graphs to the times too."""
        assert isinstance(problem.solver, FixedStep)  # Reconstruct refuses other solvers
        self.field: Field = problem.field
        self.solver = problem.solver
        self.rule, self.order, self.sweeps, self.times = rule, order, sweeps, times
        self.contraction = 0.0
        self.history: list[Tensor] = []

    def start_interval(self) -> None:
        """Forget the layers seen so far: the next step has another size."""
        self.history = []

    def back(self, step: Step, end: Tensor, start: Tensor | None = None) -> Layer:
        """Go back from the state ``end`` after a step, to ``start`` if that is known."""
        if start is not None:
            layer = self._evaluated(step, start)
            self._remember(layer.increment)
            return layer
        if self.rule == "predicted":
            return self._predicted(step, end)
        assumed = self._reversed(step, end)
        for _ in range(self.sweeps):
            assumed = self.solver.increment(self.field, end - assumed, step)
        layer = self._evaluated(step, end - assumed)
        if self.rule == "reverse":
            return layer
        return layer._replace(state=end - layer.increment)

    def _predicted(self, step: Step, end: Tensor) -> Layer:
        """Guess from the layers seen so far; sweep for each that is missing; check the guess.

        The evaluation for the graph shows by how much the guess was wrong. Where weights jump, that
        is much more than a sweep would leave. Then this evaluation becomes the sweep, and the graph
        is made again at the better point: two evaluations, as in the corrected rule. In shallow
        networks, where sweeps hardly contract, the second limit keeps wild guesses out.
        """
        # ``assumed`` is always what the step is believed to have added to its unknown input.
        assumed = self._extrapolated(end)
        mismatch: Tensor | None = None
        for _ in range(self.sweeps + self.order - len(self.history)):
            increment = self.solver.increment(self.field, end - assumed, step)
            mismatch = self._learn(increment, assumed, mismatch)
            assumed = increment
        layer = self._evaluated(step, end - assumed)
        mismatch = self._learn(layer.increment, assumed, mismatch)
        # A sweep in the guess's place would have left the error times the contraction, once for
        # itself and once for each further sweep.
        swept = self.contraction ** (1 + self.sweeps)
        if mismatch > min(TRUST * swept, LIMIT) * torch.linalg.vector_norm(layer.increment):
            assumed = layer.increment
            layer = self._evaluated(step, end - assumed)
            self._learn(layer.increment, assumed, mismatch)
        self._remember(layer.increment)
        return layer._replace(state=end - layer.increment)

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

    def _reversed(self, step: Step, end: Tensor) -> Tensor:
        """Return what the scheme's step with ``-h`` takes off, its stages mirrored in the step.

        A residual layer, Euler's step, keeps its own weights: those of the layer's start.
        """
        scheme = self.solver.scheme
        if scheme.stages == 1:
            return self.solver.increment(self.field, end, step)

        def evaluate(i: int, y: Tensor) -> Tensor:
            return self.field(step.mirrored(scheme.c[i], scheme.fractions[i]), y)

        return -scheme.increment(evaluate, end, -step.size(end))

    def _evaluated(self, step: Step, y: Tensor) -> Layer:
        """Evaluate a step at ``y`` with a graph."""

        def increment(y: Tensor, span: Interval) -> Tensor:
            return self.solver.increment(self.field, y, step._replace(span=span))

        tape = taped(increment, y, step.span, self.times)
        return Layer(tape, tape.start.detach())

    def uses(self, step: Step) -> Sequence[int]:
        """Return the indices of the parameters that a step reads."""
        return sorted(set().union(*map(self.field.uses, self.solver.stages(step))))
