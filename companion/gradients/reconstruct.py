"""Memory-free backward: reconstruct each layer's input from its output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from companion.arguments import check_choice, is_count, not_allowed, store_count
from companion.gradients.function import Given, Kept, recomputing_states
from companion.gradients.randomness import replayable, replaying
from companion.gradients.reverse_sweep import WAYS_BACK, ReverseSweep
from companion.solve import FixedStep, NonFiniteError, Problem, States

__all__ = ["Reconstruct"]

ORDERS = range(1, 5)


@dataclass(frozen=True)
class Reconstruct:
    r"""Store the output alone; recompute every layer's input on the way back.

    A layer is one step $x_{n+1} = x_n + h\varphi_n(x_n)$ of any explicit scheme. Its input is
    guessed, $\varphi_n$ is evaluated there with a graph, and the vector-Jacobian product gives the
    gradients. Memory does not depend on the depth. The gradients have an error, because the inputs
    have one. It vanishes as the steps shrink. These are the rules, with the relative error of the
    gradients of Euler's layers:

    - ``reverse``: take the scheme's step with $-h$ from $x_{n+1}$, and go on from there: $O(h)$.
    - ``corrected``: the same guess $\tilde x_n$; go on from $x_{n+1} - h\varphi_n(\tilde x_n)$:
      $O(h^2)$.
    - ``predicted``: extrapolate $\varphi$ from later layers; go on likewise: $O(h^2)$ for any
      weights, $O(h^{p+1})$ for weights smooth in depth.

    The first is the rule of Sander et al. 2022 (equations 6 and 7, for Heun 9). The value that
    the others go on with is the one already computed for the gradient. ``corrected`` therefore
    costs the same; ``predicted`` saves an evaluation a layer. A prediction that turns out poor,
    because weights jump or dropout masks change, is swept once more, and nothing is saved there.

    Each further sweep $x \leftarrow x_{n+1} - h\varphi_n(x)$ gains one order. All this needs
    $h \operatorname{Lip}(\varphi_n) < 1$: in shallow networks the inputs cannot be recovered so.

    Random numbers (dropout) are drawn again from one seed; a mask is then a function of depth. They
    need torch's generators for themselves: do not solve in several threads at once. Batch norm uses
    batch statistics again, and its running statistics are updated by the forward solve only. Other
    buffers that the forward solve changes are kept for every evaluation.

    Args:
        rule: one of ``"reverse"``, ``"corrected"`` and ``"predicted"``.
        order: number $p$ of past values of $\varphi$ that the prediction uses, 1 to 4: it continues
            the polynomial through them, so $p = 1$ repeats the last value.
        sweeps: further sweeps before the evaluation with a graph.
        every: store the true state before every so many steps: errors start anew there, and those
            steps' gradients are exact. ``None`` stores the solve's outputs alone.

    Raises:
        NonFiniteError: in a backward pass whose reconstructed states leave the finite numbers.
        ValueError: for bad settings; in a solve, for a method without a fixed grid, a prediction
            with synchronised batch norm, a module whose mode changed before the backward pass, or
            a field that draws random numbers in some steps only.

    Example:
        >>> from companion import OdeBlock, PiecewiseConstant
        >>> block = OdeBlock(
        ...     lambda: nn.Linear(2, 2), PiecewiseConstant(cells=64), steps=64,
        ...     gradient=Reconstruct(rule="corrected"),
        ... )
        >>> block(torch.ones(1, 2)).sum().backward()
    """

    rule: str = "reverse"
    order: int = 1
    sweeps: int = 0
    every: int | None = None
    records_graph: ClassVar[bool] = False  # so parameters must be named

    def __post_init__(self) -> None:
        check_choice("rule", self.rule, WAYS_BACK)
        if not is_count(self.order) or self.order not in ORDERS:
            raise ValueError(not_allowed("order", self.order, "it must be 1, 2, 3 or 4"))
        store_count(self, "order")
        if self.order != 1 and self.rule != "predicted":
            raise ValueError(
                f"order: {self.order!r} is not allowed with rule={self.rule!r}; only 'predicted' "
                "extrapolates"
            )
        store_count(self, "sweeps", least=0)
        if self.every is not None:
            store_count(self, "every")

    def differentiable_states(self, problem: Problem) -> States:
        """Return the states at all output times."""
        if not isinstance(problem.solver, FixedStep):
            raise ValueError(
                "gradient: 'reconstruct' needs an explicit fixed-step method; use "
                "gradient='reversible' with method='async_leapfrog', 'adjoint' or 'backprop' with "
                "others"
            )
        if self.rule == "predicted" and _synchronised(problem.field.module):
            raise ValueError(
                "gradient: rule='predicted' may take different numbers of evaluations in different "
                "processes, which synchronised batch norm cannot; use rule='corrected'"
            )
        return recomputing_states(self, problem, [[s] for s in problem.solver.grid(problem.t)])

    def forward(self, problem: Problem) -> tuple[States, Kept]:
        """Solve with random numbers that can be drawn again; keep the ends of the segments."""
        solver = problem.solver
        assert isinstance(solver, FixedStep)
        every = solver.steps if self.every is None else self.every
        states, ends = [problem.y0], []
        with replayable(problem.field, problem.y0.device) as field:
            for step, _, (y,) in solver.walk(replace(problem, field=field)):
                if step.last or (step.n + 1) % every == 0:
                    ends.append(y)
                if step.last:
                    states.append(y)
        starts = [] if self.every is None else [problem.y0, *ends[:-1]]
        kept = replace(problem, field=field.recomputation())
        return states, Kept(kept, [*starts, *ends], (field.base is not None, len(ends)))

    def backward(self, given: Given) -> Iterator[Tensor]:
        """Go back through the steps from the last to the first."""
        problem, (seeded, k) = given.problem, given.notes
        assert isinstance(problem.solver, FixedStep)
        ends, starts = given.tensors[-k:], given.tensors[:-k] or (None,) * k
        segments = problem.solver.segments(problem.t, self.every)
        sweep = self.sweep(problem, given.sums.times is not None)
        a = given.grad_ys[-1]
        for steps, start, end in reversed(list(zip(segments, starts, ends, strict=True))):
            if steps[-1].last:
                sweep.start_interval()
            for step in reversed(steps):
                with replaying(a.device, seeded):
                    layer = sweep.back(step, end, start if step is steps[0] else None)
                    a = a + given.sums.pull(layer.tape, a, sweep.uses(step), step.output)
                end = layer.state
                if step.n == 0:
                    _check_reconstructed(end)
                    a = a + given.grad_ys[step.output]
                yield a

    def sweep(self, problem: Problem, times: bool = False) -> ReverseSweep:
        """Return a sweep backwards through ``problem`` by this rule."""
        return ReverseSweep(problem, self.rule, self.order, self.sweeps, times)


def _check_reconstructed(state: Tensor) -> None:
    if not torch.isfinite(state).all():
        raise NonFiniteError(
            "gradient: a reconstructed state is not finite, though the solve was; its steps are "
            "too long to be undone: take more, store states with every=, or use "
            "gradient='checkpoint'"
        )


def _synchronised(module: nn.Module | None) -> bool:
    return module is not None and any(isinstance(m, nn.SyncBatchNorm) for m in module.modules())
