"""Half-precision states, added up in single precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from companion.solve import Field, Problem, Stage, States, Stats

__all__ = ["is_half", "narrowed", "widened"]


def is_half(y: Tensor) -> bool:
    """Say whether a state has half precision.

    Increments of less than a few thousandths of it would be lost.
    """
    return y.dtype in (torch.float16, torch.bfloat16)


def widened(problem: Problem) -> Problem:
    """Return the problem with its state in single precision, and the field still in half.

    Increments are then added up in single precision. No adaptive method can meet a tolerance below
    the rounding of the field's values: it is raised to that.
    """
    dtype, solver = problem.y0.dtype, cast(Any, problem.solver)  # each is a dataclass
    if solver.rtol is not None:
        solver = replace(solver, rtol=max(solver.rtol, torch.finfo(dtype).eps))
    field = _Narrow(problem.field, dtype)
    return replace(problem, field=field, y0=problem.y0.float(), solver=solver, time_dtype=dtype)


def narrowed(ys: States, dtype: torch.dtype) -> States:
    """Return states in half precision."""
    return ys.to(dtype) if isinstance(ys, Tensor) else [y.to(dtype) for y in ys]


class _Narrow:
    """A field that computes in half precision, of a state in single precision."""

    def __init__(self, field: Field, dtype: torch.dtype) -> None:
        self.field, self.dtype = field, dtype
        self.params, self.module = field.params, field.module
        self.knots, self.uses = field.knots, field.uses

    @property
    def stats(self) -> Stats | None:
        """Where evaluations are counted."""
        return self.field.stats

    @stats.setter
    def stats(self, stats: Stats | None) -> None:
        self.field.stats = stats

    def __call__(self, stage: Stage, y: Tensor) -> Tensor:
        """Evaluate the field."""
        return self.field(stage, y.to(self.dtype)).to(y.dtype)

    def recomputation(self, weights: Sequence[Tensor] | None = None) -> _Narrow:
        """Return the same field for a backward pass."""
        return _Narrow(self.field.recomputation(weights), self.dtype)

    def follows(self, stage: Stage, y: Tensor) -> list[str]:
        """Name what the forward solve changed; see :class:`companion.solve.Field`."""
        return self.field.follows(stage, y.to(self.dtype))
