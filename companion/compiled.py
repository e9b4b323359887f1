"""Solves by compiled pieces: which there are, and in which order gradient methods call them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from companion.adaptive import Adaptive
from companion.arguments import not_allowed
from companion.compiled_adaptive import CompiledAccepted, CompiledAdaptive
from companion.gradients import Backprop, Checkpoint, Gradient, Reconstruct
from companion.gradients.function import Given, Kept, recomputing_states
from companion.pieces import Piece, Work, check_times, dense
from companion.solve import Field, FixedStep, Problem, Solver, States, Step
from companion.transforms import CANNOT_FOLLOW, transforming

__all__ = ["Compiled", "CompiledSteps", "check_compile", "compiled"]


def check_compile(compile: object) -> str | None:
    """Return the backend that the ``compile`` of a solve asks for, ``None`` for no compilation.

    Raises:
        TypeError: for anything but ``True``, ``False`` and the name of a backend.

    Example:
        >>> check_compile(True), check_compile(False)
        ('inductor', None)
    """
    if isinstance(compile, bool):
        return "inductor" if compile else None
    if not isinstance(compile, str):
        raise TypeError(
            not_allowed("compile", compile, "pass True, False or a backend of torch.compile")
        )
    return compile


def compiled(backend: str, solver: Solver, gradient: Gradient) -> tuple[Solver, Gradient]:
    """Return a solver and a gradient method that do the same by compiled pieces.

    Raises:
        ValueError: for a method or gradient without compiled pieces, or inside a transform.
    """
    if transforming():
        raise ValueError(
            f"compile: True means operations {CANNOT_FOLLOW}; use compile=False inside them"
        )
    if not isinstance(solver, FixedStep | Adaptive):
        raise ValueError(
            f"compile: method={solver.method!r} has no compiled steps; use a Runge-Kutta method, "
            "such as 'rk4' or 'dopri5', or compile=False"
        )
    if isinstance(solver, Adaptive) and isinstance(gradient, Backprop | Checkpoint):
        every = gradient.every if isinstance(gradient, Checkpoint) else 1
        knobs = solver.pair, solver.rtol, solver.atol, solver.max_steps
        return CompiledAdaptive(*knobs, backend), CompiledAccepted(every, backend)
    if isinstance(gradient, Backprop):
        return solver, Compiled(None, backend)
    if isinstance(gradient, Checkpoint):
        return solver, Compiled(gradient.every, backend)
    if isinstance(gradient, Reconstruct) and isinstance(solver, FixedStep):
        return CompiledSteps(solver.scheme, solver.steps, backend), gradient
    name = type(gradient).__name__.lower()
    raise ValueError(
        f"compile: gradient={name!r} has no compiled steps; use 'backprop' or 'checkpoint' (or "
        "'reconstruct' on fixed steps), or compile=False"
    )


@dataclass(frozen=True)
class Compiled:
    """The gradient of the discretised problem, as by backprop, through compiled pieces.

    Attributes:
        every: the most steps between stored states; ``None`` is the length of a piece.
        backend: the backend of torch.compile.
    """

    every: int | None
    backend: str
    records_graph: ClassVar[bool] = False  # so parameters must be named

    def differentiable_states(self, problem: Problem) -> States:
        """Return the states at all output times."""
        check_times(problem)
        return recomputing_states(self, problem)

    def forward(self, problem: Problem) -> tuple[States, Kept]:
        """Solve piece by piece; keep the states where pieces start."""
        solver, stats, start = problem.solver, problem.stats, dense(problem.y0)
        assert isinstance(solver, FixedStep)
        work = Work(problem.field, solver.scheme, self.backend, start)
        states, starts, y = [problem.y0], [], start
        pieces = work.pieces(list(solver.grid(problem.t)), y)
        stride = self._stride(pieces)
        with work.calling():
            for n, piece in enumerate(pieces):
                if n % stride == 0:
                    starts.append(y)
                ys = work.ahead(piece, y)
                states += [x for x, step in zip(ys, piece.steps, strict=True) if step.last]
                y = ys[-1]
                if stats is not None:
                    stats.steps += len(piece.steps)
        return states, Kept(problem, starts, pieces)

    def backward(self, given: Given) -> Tensor:
        """Pull back through the pieces from the last to the first."""
        problem, solver, start = given.problem, given.problem.solver, given.tensors[0]
        assert isinstance(solver, FixedStep)
        work = Work(problem.field, solver.scheme, self.backend, start)
        pieces: list[Piece] = given.notes
        stride = self._stride(pieces)
        a: Tensor | None = None
        with work.calling():
            for n, start in reversed(list(enumerate(given.tensors))):
                group, ys = pieces[n * stride : (n + 1) * stride], [start]
                for piece in group[:-1]:
                    ys.append(work.ahead(piece, ys[-1])[-1])
                for piece, y in reversed(list(zip(group, ys, strict=True))):
                    a = work.back(piece, y, self._cotangents(piece, a, given.grad_ys), given)
        assert a is not None
        return a + given.grad_ys[0]

    def _stride(self, pieces: Sequence[Piece]) -> int:
        """Return the number of pieces between stored states."""
        return max(1, (self.every or 1) // len(pieces[0].sizes))

    def _cotangents(self, piece: Piece, a: Tensor | None, grad_ys: Tensor) -> Tensor:
        """Return the loss's gradients at the ends of a piece's steps; ``a`` at its end."""
        last = piece.steps[-1]
        if last.last:
            grad = grad_ys[last.output + 1]
            a = dense(grad) if a is None else a + grad
        assert a is not None
        if len(piece.sizes) == 1:
            return a.unsqueeze(0)
        zero = torch.zeros_like(a)
        inner = [grad_ys[x.output + 1] if x.last else zero for x in piece.steps[:-1]]
        padding = [zero] * (len(piece.sizes) - len(piece.steps))
        return torch.stack([*padding, *inner, a])


@dataclass(frozen=True)
class CompiledSteps(FixedStep):
    """Fixed steps, each of them one compiled piece, for gradients that go back by themselves."""

    backend: str

    @override
    def ahead(self, field: Field, y: Tensor, step: Step) -> Tensor:
        work = Work(field, self.scheme, self.backend, y)
        with work.calling():
            return work.ahead(work.piece(step, y), y)[-1]

    @override
    def increment(self, field: Field, y: Tensor, step: Step) -> Tensor:
        work = Work(field, self.scheme, self.backend, y)
        with work.calling():
            return work.increment(work.piece(step, y), y)
