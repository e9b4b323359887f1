"""The steps of a solve in groups: what lies between two stored states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from companion.solve import FixedStep, Interval, Problem, intervals

__all__ = ["Segment", "fixed_step", "segments"]


class Segment(NamedTuple):
    """Some steps of the interval from ``output`` to the next."""

    output: int
    interval: Interval
    steps: range


def fixed_step(problem: Problem) -> FixedStep:
    """Return the problem's solver, known to have a fixed grid."""
    assert isinstance(problem.solver, FixedStep)  # gradient methods refuse others beforehand
    return problem.solver


def segments(problem: Problem, every: int) -> Iterator[Segment]:
    """Yield the segments of at most ``every`` steps in order."""
    steps = fixed_step(problem).steps
    for i, interval in enumerate(intervals(problem.t)):
        for first in range(0, steps, every):
            yield Segment(i, interval, range(first, min(first + every, steps)))
