"""The exact gradient of an adaptive solve's accepted steps, from one stored state a step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from companion.adaptive import Adaptive, Outputs, Span
from companion.gradients.determinism import check_function_of_state
from companion.gradients.function import Given, Kept
from companion.gradients.randomness import random_state
from companion.gradients.times import time_gradients
from companion.solve import Problem, Stage, States

__all__ = ["accepted_steps", "back_through_accepted_steps"]


class _Noted(NamedTuple):
    """An accepted step: what it takes, besides the state, to take it again.

    Attributes:
        span: the time it covers.
        inside: the fractions of the step at which outputs lie.
        lands: whether an output is its end.
        output: the index of its first output.
    """

    span: Span
    inside: list[float]
    lands: bool
    output: int


def accepted_steps(problem: Problem, every: int) -> tuple[States, Kept]:
    """Solve without a graph; keep the state before every so many accepted steps."""
    solver = problem.solver
    assert isinstance(solver, Adaptive)
    before = random_state(problem.y0.device)
    outputs, states = Outputs(problem.t), [problem.y0.unsqueeze(0)]
    starts: list[Tensor] = []
    notes: list[_Noted] = []
    for step in solver.walk(problem):
        if len(notes) % every == 0:
            starts.append(step.y)
        output = outputs.next
        fractions, lands = outputs.of(step.span)
        notes.append(_Noted(step.span, fractions, lands, output))
        if fractions:
            states.append(solver.inside(step, fractions))
        if lands:
            states.append(step.after.unsqueeze(0))
    ends = [(Stage(notes[0].span.t), problem.y0), (Stage(notes[-1].span.end), states[-1][-1])]
    check_function_of_state(
        problem, ends, before, "'checkpoint' of an adaptive solve",
        "use eval(), or gradient='backprop'",
    )  # fmt: skip
    segments = [notes[i : i + every] for i in range(0, len(notes), every)]
    # The gradients of times ask for the states there.
    return torch.cat(states), Kept(problem, starts, segments, isinstance(problem.t, Tensor))


def back_through_accepted_steps(given: Given) -> Tensor:
    """Take the segments again with a graph, the last first; return the gradient of the start."""
    starts = given.tensors[-len(given.notes) :]
    a = torch.zeros_like(starts[0])
    for segment, start in reversed(list(zip(given.notes, starts, strict=True))):
        a = _pulled_through(given, segment, start, a)
    if given.sums.times is not None:
        given.sums.times.grads = time_gradients(given, a)
    return a + given.grad_ys[0]


def _pulled_through(given: Given, segment: list[_Noted], start: Tensor, a: Tensor) -> Tensor:
    """Return ``a``, the gradient of the end of a segment, pulled back to its start."""
    values: list[Tensor] = []
    cotangents: list[Tensor] = []
    with torch.enable_grad():
        y = start.detach().requires_grad_()
        end = y
        for noted, inside, after in _again(given.problem, segment, y):
            first = noted.output
            if inside is not None:
                values.append(inside)
                cotangents.append(given.grad_ys[first : first + len(inside)])
                first += len(inside)
            if noted.lands:
                values.append(after)
                cotangents.append(given.grad_ys[first])
            end = after
    if segment[-1].lands:
        cotangents[-1] = cotangents[-1] + a
    else:
        values.append(end)
        cotangents.append(a)
    sums = given.sums.params
    indices = sums.select(given.problem.field.uses(Stage(segment[0].span.t)))
    inputs = [y, *(sums.params[k] for k in indices)]
    grad_y, *grads = torch.autograd.grad(values, inputs, cotangents, allow_unused=True)
    sums.add(indices, grads, 1.0)
    return torch.zeros_like(y) if grad_y is None else grad_y


def _again(
    problem: Problem, segment: list[_Noted], y: Tensor
) -> Iterator[tuple[_Noted, Tensor | None, Tensor]]:
    """Take the steps of a segment; yield the states at outputs inside, and the state after each."""
    solver, slope = problem.solver, None
    assert isinstance(solver, Adaptive)
    for noted in segment:
        last = noted is segment[-1] and not noted.inside
        if slope is None or noted.span.jumped:  # at the start, and beyond a jump
            slope = problem.field(noted.span.stage(0, 0.0), y).to(y.dtype)
        step = solver.attempt(problem.field, y, slope, noted.span, last_slope=not last)
        inside = solver.inside(step, noted.inside) if noted.inside else None
        yield noted, inside, step.after
        y, slope = step.after, step.slopes[-1]
