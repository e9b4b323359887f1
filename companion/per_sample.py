"""Adaptive steps for each row of a batch by itself: its own time, its own size, its own end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from companion.adaptive import GROW, SAFETY, SHRINK, relative
from companion.pairs import Pair
from companion.schemes import advance, combination
from companion.solve import Field, NonFiniteError, Problem, Stage, States, StepLimitError

__all__ = ["PerSample", "RowTimes", "Rows"]


class RowTimes(NamedTuple):
    """The output times of all rows, relative to each row's first: precise wherever that is.

    Attributes:
        start: the first times, of shape ``(batch,)``.
        offsets: all times less the first, of shape ``(times, batch)``; zero first.
    """

    start: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, times: list[list[float]], y0: Tensor) -> RowTimes:
        """Return the times of rows of ``y0`` from a list for each output, of one time a row."""
        offsets = [[t - t0 for t, t0 in zip(row, times[0], strict=True)] for row in times]
        return cls(y0.new_tensor(times[0]), y0.new_tensor(offsets))


class Rows(NamedTuple):
    """An attempt of all rows, of which some were accepted.

    Attributes:
        s: the time of each row since its start, with axes of length 1 to fit the state.
        h: the accepted sizes, zero for rows that stay where they are.
        y: the state before.
        slopes: the slopes of all stages, of the sizes tried.
        after: the state after it; rows that stay keep theirs.
        outputs: the indices of outputs that some rows reach.
        fractions: where in the step, of shape ``(outputs, batch)``; ``nan`` for other rows.
    """

    s: Tensor
    h: Tensor
    y: Tensor
    slopes: list[Tensor]
    after: Tensor
    outputs: Tensor
    fractions: Tensor


@dataclass(frozen=True, eq=False)
class PerSample:
    """An adaptive pair that controls the error of every row of a batch (axis 0) by itself.

    All rows are evaluated together; those that have reached their end wait there. The field gets
    the time as a tensor of shape ``(batch, 1, ..., 1)``. It must treat rows independently.

    Attributes:
        pair: the pair.
        rtol: relative tolerance.
        atol: absolute tolerance.
        max_steps: most attempts of the batch.
        times: the output times of all rows.
    """

    pair: Pair
    rtol: float
    atol: float
    max_steps: int
    times: RowTimes
    steps: ClassVar[None] = None
    on_grid: ClassVar[bool] = False
    recordable: ClassVar[bool] = True

    @property
    def method(self) -> str:
        """The pair's name."""
        return self.pair.name

    def integrate(self, problem: Problem) -> States:
        """Return the states at all output times, stacked."""
        y0 = problem.y0
        ys = torch.stack([y0, *(torch.zeros_like(y0) for _ in self.times.offsets[1:])])
        for step in self.walk(problem):
            if len(step.outputs):
                ys = ys.index_add(0, step.outputs, self.inside(step))
        return ys

    def first_non_finite(self, problem: Problem) -> None:
        """Solve nothing again: what cannot be stepped over has been said."""

    def walk(self, problem: Problem) -> Iterator[Rows]:
        """Solve; yield the attempts of which some rows were accepted."""
        field, y, offsets = problem.field, problem.y0, self.times.offsets
        s, reached = _like(offsets[0], y), torch.ones_like(offsets[0], dtype=torch.long)
        slope = self._slope(field, s, y)
        control = _RowControl(self, problem, self._first_sizes(field, y, slope))
        while control.active.any():
            h = control.proposal()
            after, slopes = self.attempt(field, s, h, y, slope)
            accepted = control.decide(self.error_ratios(h, y, slopes, after))
            if not control.finite:
                # Rows that leave the finite numbers would spoil the gradients of all.
                h = torch.where(_like(accepted, y), h, 0)
                after, slopes = self.attempt(field, s, h, y, slope)
            if not control.moved:
                continue
            rows = _like(accepted, y)
            h, after = torch.where(rows, h, 0), torch.where(rows, after, y)
            outputs, fractions = self._outputs(control, reached, accepted)
            yield Rows(s, h, y, slopes, after, outputs, fractions)
            s = _like(control.s, y)
            y, slope = after, torch.where(rows, slopes[-1], slope)
        control.count()

    def attempt(
        self, field: Field, s: Tensor, h: Tensor, y: Tensor, slope: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Take a step of size ``h`` with every row; return the state and the slopes."""
        after, slopes = y, [slope]
        for i in range(1, self.pair.stages):
            after = advance(y, slopes, self.pair.tableau.rows[i], h)
            slopes.append(self._slope(field, s + self.pair.fractions[i] * h, after, i))
        return after, slopes

    def again(self, field: Field, step: Rows, y: Tensor) -> Rows:
        """Take the accepted rows of a step again from ``y``, the others not at all."""
        after, slopes = self.attempt(field, step.s, step.h, y, self._slope(field, step.s, y))
        return step._replace(y=y, slopes=slopes, after=after)

    @torch.no_grad()
    def error_ratios(self, h: Tensor, y: Tensor, slopes: list[Tensor], after: Tensor) -> Tensor:
        """Return the estimated error of each row over the tolerance."""
        total, first = combination(slopes, self.pair.error_weights)
        assert total is not None
        return _row_norms(h * first * total / self._scale(y, after))

    def inside(self, step: Rows) -> Tensor:
        """Return the states of the rows at the outputs that they reach in a step, else zero."""
        reached = step.fractions == step.fractions
        fractions = torch.where(reached, step.fractions, 0)
        shape = (*fractions.shape, *(1,) * (step.y.dim() - 1))
        total = torch.zeros_like(step.y).expand(len(fractions), *step.y.shape)
        for row, slope in zip(self.pair.dense_rows, step.slopes, strict=True):
            weight = torch.zeros_like(fractions)
            for coefficient in reversed(row):
                weight = (weight + coefficient) * fractions
            total = total + weight.view(shape) * slope
        return torch.where(reached.view(shape), step.y + step.h * total, 0)

    def _slope(self, field: Field, s: Tensor, y: Tensor, number: int = 0) -> Tensor:
        start, last = (_like(t, y) for t in (self.times.start, self.times.offsets[-1]))
        t = start + s
        low, high = torch.minimum(start, start + last), torch.maximum(start, start + last)
        return field(Stage(t.clamp(low, high), number=number), y).to(y.dtype)

    def _scale(self, y: Tensor, other: Tensor) -> Tensor:
        rtol = relative(self.rtol, y)
        scale = torch.maximum(y.abs(), other.abs()).mul_(rtol).add_(self.atol)
        return scale if self.atol else scale.clamp_min_(torch.finfo(scale.dtype).tiny)

    def _first_sizes(self, field: Field, y: Tensor, slope: Tensor) -> Tensor:
        """Return the sizes of the first attempts, as :class:`companion.adaptive.Adaptive` does."""
        length = self.times.offsets[-1].abs()
        with torch.no_grad():
            scale = self._scale(y, y)
            d0, d1 = _row_norms(y / scale), _row_norms(slope / scale)
            if not torch.isfinite(d1).all():
                raise NonFiniteError(
                    f"y0: {self.method} cannot begin: the slope of row "
                    f"{int((~torch.isfinite(d1)).nonzero()[0])} is not finite"
                )
            small = (d0 < 1e-5) | (d1 < 1e-5)
            h0 = torch.where(small, 1e-6, 0.01 * d0 / d1).minimum(length)
            h = _like(h0 * self.times.offsets[-1].sign(), y)
        other = self._slope(field, h, y + h * slope, 1)
        with torch.no_grad():
            d2 = _row_norms((other - slope) / scale) / h0
            steep = torch.maximum(d1, d2)
            h1 = (0.01 / steep) ** (1 / (self.pair.lower + 1))
            h1 = torch.where(steep > 1e-15, h1, (h0 / 1e3).clamp_min(1e-6))
            sizes = torch.minimum(100 * h0, h1).minimum(length)
            return torch.where(torch.isfinite(d2), sizes, h0)

    def _outputs(
        self, control: _RowControl, reached: Tensor, accepted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return which outputs the accepted rows reach, and where in the step."""
        offsets = self.times.offsets
        ahead, before, now = offsets[-1].sign(), control.before, control.s
        inside = ((offsets - before) * ahead > 0) & ((offsets - now) * ahead <= 0) & accepted
        outputs = inside.any(1).nonzero().flatten()
        fractions = (offsets[outputs] - before) / (now - before)
        return outputs, torch.where(inside[outputs], fractions, math.nan)


class _RowControl:
    """Where each row stands, and how long its next step is: all of shape ``(batch,)``."""

    def __init__(self, solver: PerSample, problem: Problem, sizes: Tensor) -> None:
        offsets = solver.times.offsets
        self.solver, self.sizes, self.stats, self.like = solver, sizes, problem.stats, problem.y0
        self.s, self.end = offsets[0].clone(), offsets[-1]
        self.ahead = self.end.sign()
        self.active = self.s != self.end
        self.rejected = torch.zeros_like(self.active)
        self.before = self.target = self.s
        self.tried = 0
        self.counts = torch.zeros_like(self.s, dtype=torch.long)
        self.finite = self.moved = True

    def proposal(self) -> Tensor:
        """Return the next sizes, signed, zero for rows at their end."""
        least = 10 * torch.finfo(self.s.dtype).eps * self.s.abs()
        stuck = self.active & self.rejected & (self.sizes <= least)
        if stuck.any():
            raise self._error(NonFiniteError, "y0", "cannot go on", stuck)
        if self.tried == self.solver.max_steps:
            raise self._error(StepLimitError, "max_steps", f"took {self.tried} steps", self.active)
        self.tried += 1
        target = self.s + self.ahead * torch.maximum(self.sizes, least)
        beyond = (target - self.end) * self.ahead >= 0
        self.target = torch.where(beyond | ~self.active, self.end, target)
        return _like(self.target - self.s, self.like)

    def decide(self, ratios: Tensor) -> Tensor:
        """Return which rows are accepted; choose the next sizes."""
        tried = (self.target - self.s).abs()
        finite = torch.isfinite(ratios) | ~self.active
        accepted = self.active & (ratios < 1)
        best = SAFETY * ratios.clamp_min(1e-30) ** (-1 / (self.solver.pair.lower + 1))
        most = torch.where(self.rejected, 1.0, GROW)
        factor = torch.where(accepted, best.minimum(most), best.clamp_min(SHRINK))
        self.sizes = torch.where(self.active, tried * torch.where(finite, factor, 0.5), self.sizes)
        self.counts += self.active
        self.before, self.s = self.s, torch.where(accepted, self.target, self.s)
        self.rejected = self.active & ~accepted
        self.active = self.s != self.end
        self.finite, self.moved = torch.stack([finite.all(), accepted.any()]).tolist()
        if self.stats is not None:
            self.stats.steps += self.moved
            self.stats.rejected += not self.moved
        return accepted

    def count(self) -> None:
        """Count the evaluations of each row: two to begin with, and those of its attempts."""
        if self.stats is not None:
            own = 2 + (self.solver.pair.stages - 1) * self.counts
            known = self.stats.nfe_per_sample
            alike = known is not None and known.shape == own.shape
            self.stats.nfe_per_sample = known + own if known is not None and alike else own

    def _error(self, kind: type[ValueError], name: str, what: str, rows: Tensor) -> ValueError:
        row = int(rows.nonzero()[0])
        t = float(self.solver.times.start[row] + self.s[row])
        return kind(
            f"{name}: {self.solver.method} {what}, and row {row} stands at t = {t:.6g} with steps "
            f"of {float(self.sizes[row]):.3g}; loosen rtol and atol, scale the field down, solve a "
            "shorter time, or raise max_steps="
        )


def _like(rows: Tensor, y: Tensor) -> Tensor:
    """Return one number a row with axes of length 1 to fit the state."""
    return rows.view(-1, *(1,) * (y.dim() - 1))


def _row_norms(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).square().mean(1).sqrt()
