"""Adaptive solves by compiled attempts, and the gradient of their accepted steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from companion.adaptive import Adaptive, Control, Evaluate, Span, Taken, relative
from companion.gradients.accepted_steps import accepted_steps
from companion.gradients.function import Given, Kept, recomputing_states
from companion.pairs import Pair
from companion.pieces import Inputs, Parts, Piece, Pure, Work, check_times, dense
from companion.schemes import advance, combination
from companion.solve import Field, Problem, States

__all__ = ["CompiledAccepted", "CompiledAdaptive"]


@dataclass(frozen=True)
class CompiledAdaptive(Adaptive):
    """A pair with error control whose attempts, error norms included, are compiled pieces."""

    backend: str

    @override
    def steps_of(
        self,
        field: Evaluate,
        y: Tensor,
        control: Control,
        measure: Callable[[Taken], float] | None = None,
    ) -> Iterator[Taken]:
        assert measure is None  # an adjoint's, which is not compiled
        y = dense(y)
        work = _Attempts(field, self.pair, self.backend, y)  # type: ignore[arg-type]
        tolerances = y.new_tensor([relative(self.rtol, y), self.atol])
        work.prepare(control.span(math.inf), y, tolerances)
        slope: Tensor | None = None
        while control.t != control.end:
            if slope is None:  # at the start, and beyond a jump
                slope = field(control.span(math.inf).stage(0, 0.0), y).to(y.dtype)
            if control.size is None:
                control.size = self._first_size(field, y, slope, control)
            step, norm = work.attempt(control.proposal(), y, slope, tolerances)
            ratio = self.error_ratio(step, control.parts) if control.parts else float(norm)
            if control.decide(ratio):
                yield step
                y = step.after
                slope = None if control.t in control.jumps.times else step.slopes[-1]


@dataclass(frozen=True)
class CompiledAccepted:
    """The exact gradient of the accepted steps, by compiled pull-backs of single steps.

    Attributes:
        every: number of steps between stored states.
        backend: the backend of torch.compile.
    """

    every: int
    backend: str
    records_graph: ClassVar[bool] = False  # so parameters must be named

    def differentiable_states(self, problem: Problem) -> States:
        """Return the states at all output times."""
        check_times(problem)
        return recomputing_states(self, problem)

    def forward(self, problem: Problem) -> tuple[States, Kept]:
        """Solve; keep the state before every so many accepted steps."""
        return accepted_steps(problem, self.every)

    def backward(self, given: Given) -> Tensor:
        """Pull back through the accepted steps from the last to the first."""
        solver, field, starts = given.problem.solver, given.problem.field, given.tensors
        assert isinstance(solver, Adaptive)
        work = _Attempts(field, solver.pair, self.backend, starts[0])
        a = torch.zeros_like(starts[0])
        for segment, start in reversed(list(zip(given.notes, starts, strict=True))):
            states = [start]
            for noted in segment[:-1]:
                y = states[-1]
                slope = field(noted.span.stage(0, 0.0), y).to(y.dtype)
                states.append(solver.attempt(field, y, slope, noted.span, False).after)
            for noted, y in reversed(list(zip(segment, states, strict=True))):
                output = noted.output + len(noted.inside)
                if noted.lands:
                    a = a + given.grad_ys[output]
                inside = given.grad_ys[noted.output : output]
                a = work.pull(noted.span, y, a, noted.inside, inside, given)
        return a + given.grad_ys[0]


class _Attempts(Work):
    """Attempts as pure pieces."""

    def __init__(self, field: Field, pair: Pair, backend: str, y: Tensor) -> None:
        super().__init__(field, pair.tableau, backend, y)
        self.pair = pair

    @override
    def pure(self, piece: Piece, inputs: Inputs, wanted: Any) -> Pure:
        return _Pure(self, piece, inputs, wanted)

    def prepare(self, span: Span, y: Tensor, tolerances: Tensor) -> None:
        """Find the piece, so that the field's evaluations need no checks: a new piece has them."""
        piece = self._step(span, y)
        with self.calling():
            self.find("attempt", piece, [y, piece.times, piece.sizes, y, tolerances])
        self.field.checked = True

    def attempt(
        self, span: Span, y: Tensor, slope: Tensor, tolerances: Tensor
    ) -> tuple[Taken, Tensor]:
        """Return an attempt, and its error ratio."""
        piece = self._step(span, y)
        first = [y, piece.times, piece.sizes, slope, tolerances]
        self.count(self.pair.stages - 1)
        with self.calling():
            after, *slopes, ratio = self.forwards("attempt", piece, first)
        return Taken(span, y, [slope, *slopes], after), ratio

    def pull(
        self,
        span: Span,
        y: Tensor,
        a: Tensor,
        fractions: Sequence[float],
        inside: Tensor,
        given: Given,
    ) -> Tensor:
        """Pull ``a``, at the end of a step, and gradients of states inside it back to ``y``."""
        piece = self._step(span, y)
        first = [y, piece.times, piece.sizes, a]
        self.count(self.pair.stages - (not fractions))
        with self.calling():
            if not fractions:
                return self.backwards("pull", piece, first, given)
            weights = y.new_tensor(
                [[span.size * b for b in self.pair.inside(x)] for x in fractions]
            )
            slopes = (weights.T @ inside.flatten(1)).unflatten(1, y.shape)  # type: ignore[no-untyped-call]
            pulled = self.backwards("pull_inside", piece, [*first, slopes], given)
            return pulled + inside.sum(0)

    def _step(self, span: Span, y: Tensor) -> Piece:
        stages = [span.stage(i, x) for i, x in enumerate(self.pair.fractions)]
        times = y.new_tensor([[self.field.time(stage) for stage in stages]])
        return Piece([], times, y.new_tensor([span.size]), *self.reads([stages]))


class _Pure(Pure):
    """The pure functions of an attempt."""

    work: _Attempts

    def attempt(self, *tensors: Tensor) -> list[Tensor]:
        """Return the state after a step, the later slopes, the error ratio, changed buffers."""
        return self.with_changed(self.attempted, tensors)

    def attempted(self, parts: Parts) -> list[Tensor]:
        """Return the state after a step, the later slopes and the error ratio."""
        y, _, sizes, slope, tolerances = parts.first
        after, slopes = self._taken(parts, [slope], self.work.pair.stages)
        total, first = combination(slopes, self.work.pair.error_weights)
        assert total is not None
        scale = torch.maximum(y.abs(), after.abs()) * tolerances[0] + tolerances[1]
        # Without an absolute tolerance an entry that stays zero has no scale, and no error.
        scale = scale.clamp_min(torch.finfo(scale.dtype).tiny)
        norm = (total / scale).square().sum().sqrt() / math.sqrt(max(1, y.numel()))
        return [after, *slopes[1:], (sizes[0] * first).abs() * norm]

    def pull(self, *tensors: Tensor) -> list[Tensor]:
        """Return the gradients of a step."""
        return self.pulled(lambda parts: [self._again(parts, 1)[0]], lambda x: [x[3]], tensors)

    def pull_inside(self, *tensors: Tensor) -> list[Tensor]:
        """Return the gradients of a step whose slopes have cotangents too."""

        def values(parts: Parts) -> list[Tensor]:
            after, slopes = self._again(parts, 0)
            return [after, *slopes]

        return self.pulled(values, lambda first: [first[3], *first[4]], tensors)

    def _again(self, parts: Parts, without: int) -> tuple[Tensor, list[Tensor]]:
        """Take the step from its start; leave out the last slopes."""
        y, times = parts.first[:2]
        slope = self.stage(parts, times, 0)(0, y).to(y.dtype)
        return self._taken(parts, [slope], self.work.pair.stages - without)

    def _taken(self, parts: Parts, slopes: list[Tensor], count: int) -> tuple[Tensor, list[Tensor]]:
        """Return the state at the end of the step and the first ``count`` slopes."""
        y, times, sizes = parts.first[:3]
        stage, rows = self.stage(parts, times, 0), self.work.pair.tableau.rows
        after = y
        for i in range(1, len(rows)):
            after = advance(y, slopes, rows[i], sizes[0])
            if i < count:
                slopes.append(stage(i, after).to(y.dtype))
        return after, slopes
