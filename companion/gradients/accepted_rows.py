"""The exact gradient of a solve in which every row of a batch takes steps of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from companion.gradients.determinism import check_function_of_state
from companion.gradients.function import Given, Kept
from companion.gradients.randomness import random_state
from companion.per_sample import PerSample, Rows
from companion.solve import Problem, Stage, States

__all__ = ["accepted_rows", "back_through_accepted_rows"]


def accepted_rows(problem: Problem) -> tuple[States, Kept]:
    """Solve without a graph; keep the state before every attempt of which rows were accepted."""
    solver, y0 = problem.solver, problem.y0
    assert isinstance(solver, PerSample)
    before = random_state(y0.device)
    ys = torch.stack([y0, *(torch.zeros_like(y0) for _ in solver.times.offsets[1:])])
    starts: list[Tensor] = []
    notes: list[Rows] = []
    for step in solver.walk(problem):
        starts.append(step.y)
        ys.index_add_(0, step.outputs, solver.inside(step))
        notes.append(step._replace(y=y0.new_empty(0), slopes=[], after=y0.new_empty(0)))
    times = solver.times.start.view(-1, *(1,) * (y0.dim() - 1))
    check_function_of_state(
        problem, [(Stage(times), y0)], before, "'checkpoint' of an adaptive solve",
        "use eval(), or gradient='backprop'",
    )  # fmt: skip
    return ys, Kept(problem, starts, notes)


def back_through_accepted_rows(given: Given) -> Tensor:
    """Take the attempts again with a graph, the last first; return the gradient of the start."""
    field, solver, sums = given.problem.field, given.problem.solver, given.sums.params
    assert isinstance(solver, PerSample)
    a = torch.zeros_like(given.grad_ys[0])
    for noted, start in reversed(list(zip(given.notes, given.tensors, strict=True))):
        indices = sums.select(field.uses(Stage(noted.s)))
        with torch.enable_grad():
            y = start.detach().requires_grad_()
            step = solver.again(field, noted, y)
            values = (step.after, solver.inside(step))
        cotangents = (a, given.grad_ys[noted.outputs])
        inputs = [y, *(sums.params[k] for k in indices)]
        grad_y, *grads = torch.autograd.grad(values, inputs, cotangents, allow_unused=True)
        sums.add(indices, grads, 1.0)
        a = torch.zeros_like(y) if grad_y is None else grad_y
    return a + given.grad_ys[0]
