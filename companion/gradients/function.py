"""One autograd function for every gradient method that goes back through a solve by itself.

It does what all of them owe: no graph in the forward solve, autocast and modules' modes as they
were, buffers as every evaluation found them, users' hooks not run by the backward pass's own
differentiation, gradients summed by parameter and by time, second derivatives refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from companion.gradients.pullback import Accumulator, Sums
from companion.solve import Field, GridSolver, Problem, States, Step, stacked
from companion.transforms import CANNOT_FOLLOW, transforming

__all__ = ["Given", "Kept", "Recomputing", "needs_gradient", "recomputing_states"]

AutocastMode = tuple[str, bool, torch.dtype]


class Kept(NamedTuple):
    """What a forward solve leaves for the backward pass.

    Attributes:
        problem: the problem, with whatever field the backward pass is to repeat.
        tensors: states that autograd is to keep.
        notes: anything else.
        outputs: whether to keep what the solve returns too, at no cost to who holds it: all states
            at the output times come before ``tensors`` in the backward pass.
    """

    problem: Problem
    tensors: list[Tensor]
    notes: Any = None
    outputs: bool = False


class Given(NamedTuple):
    """What a backward pass gets.

    Attributes:
        problem: the problem; its field is pure, and reads the parameters of ``sums``.
        tensors: the states that were kept.
        notes: the notes that were kept.
        grad_ys: the loss's gradients at the output times.
        sums: where gradients of parameters and times go.
    """

    problem: Problem
    tensors: tuple[Tensor, ...]
    notes: Any
    grad_ys: Tensor
    sums: Sums


class Recomputing(Protocol):
    """A gradient method with a backward pass of its own."""

    def forward(self, problem: Problem) -> tuple[States, Kept]:
        """Solve without a graph; return the states at all output times, and what to keep."""

    def backward(self, given: Given) -> Tensor | Iterator[Tensor]:
        """Add to the sums; return the gradient of the start.

        A method that goes back segment by segment may yield its gradient after each instead.
        """


def needs_gradient(problem: Problem) -> bool:
    """Say whether a solve has anything to differentiate."""
    times = (problem.t,) if isinstance(problem.t, Tensor) else ()
    inputs = (problem.y0, *problem.field.params, *times)
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def recomputing_states(
    method: Recomputing, problem: Problem, segments: Sequence[Sequence[Step]] = ((),)
) -> States:
    """Solve with a backward pass of its own, or plainly where nothing needs a gradient.

    A method whose backward pass goes through ``segments`` one by one names them. A parameter that
    is a leaf then gets its gradient as soon as all segments that read it have been passed: where
    they are several, the solve is several nodes of the graph.
    """
    if not needs_gradient(problem):
        return problem.integrate() if transforming() else method.forward(problem)[0]
    if transforming():
        name = type(method).__name__.lower()
        raise ValueError(
            f"gradient: {name!r} goes back through a solve by itself, {CANNOT_FOLLOW}; use "
            "gradient='backprop' inside them, or torch.autograd.grad outside"
        )
    t = problem.t if isinstance(problem.t, Tensor) else None
    y0 = problem.y0.detach()
    y0 = y0.clone() if y0.is_inference() else y0  # autograd keeps none of inference mode's tensors
    bare = replace(problem, y0=y0, t=problem.t if t is None else t.detach())
    parts = _parts(problem, segments if t is None else segments[:1])
    way, y = _Way(parts, len(segments)), problem.y0
    for number, part in enumerate(parts[:-1]):
        y = _Pass.apply(way, number, y, *part.of(problem.field.params))  # type: ignore[no-untyped-call]
    last = parts[-1].of(problem.field.params)
    ys: Tensor = _Solve.apply(method, bare, way, t, y, *last)  # type: ignore[no-untyped-call]
    return ys


class _Part(NamedTuple):
    """What one node of a solve's graph stands for.

    Attributes:
        first: the number of the first of its segments, the last to be gone back through.
        params: the indices of the parameters whose gradients are known then.
    """

    first: int
    params: list[int]

    def of(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return the part's own."""
        return [params[k] for k in self.params]


def _parts(problem: Problem, segments: Sequence[Sequence[Step]]) -> list[_Part]:
    """Divide the segments where leaves are read for the first time."""
    solver, params, uses = problem.solver, problem.field.params, problem.field.uses
    parts: list[_Part] = []
    later: set[int] = set()
    if len(segments) > 1:
        later = {k for k, p in enumerate(params) if p.is_leaf and p.requires_grad}
    for number, steps in enumerate(segments):
        if not later:
            break
        assert isinstance(solver, GridSolver)
        found = later & {k for s in steps for stage in solver.stages(s) for k in uses(stage)}
        later -= found
        if found and number:
            parts.append(_Part(number, sorted(found)))
    rest = set(range(len(params))).difference(*(part.params for part in parts))
    return [_Part(0, sorted(rest)), *parts]


@dataclass
class _Way:
    """The way back through one solve, which the nodes of its graph go together."""

    parts: list[_Part]
    segments: int
    mode: AutocastMode = ("cpu", False, torch.float32)
    left: int = 0
    grads: Sequence[Tensor | None] = ()
    back: Iterator[Tensor] | None = None

    def begin(self, back: Tensor | Iterator[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Start at the end, with sums that the way adds to."""
        self.back, self.left = back if isinstance(back, Iterator) else iter((back,)), self.segments
        self.grads = grads

    def through(self, number: int) -> tuple[Tensor | None, ...]:
        """Go back through a part; return the gradients of its start and of its parameters."""
        first, params = self.parts[number]
        assert self.back is not None
        with _autocast_as(self.mode):
            while self.left > first:
                a = next(self.back)
                self.left -= 1
        grads = [self.grads[k] for k in params]
        if number == 0:  # let go of what the way back reads
            self.back, self.grads = None, ()
        return a, *grads


def _refusing_second_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a backward pass refuse ``create_graph=True``, under which it would lose terms."""

    @wraps(backward)
    def refusing(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise ValueError(
                "gradient: only 'backprop' has second derivatives (create_graph=True); "
                "use gradient='backprop'"
            )
        return backward(ctx, *grads)

    return refusing


class _Pass(torch.autograd.Function):
    """A part of a solve that is not its last: a place in the graph, without a value."""

    @staticmethod
    def forward(ctx: Any, way: _Way, number: int, y: Tensor, *params: Tensor) -> Tensor:
        ctx.way, ctx.number = way, number
        return y.new_empty(()).expand_as(y)

    @staticmethod
    @_refusing_second_order
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.way.through(ctx.number)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        method: Recomputing,
        problem: Problem,
        way: _Way,
        t: Tensor | None,
        y0: Tensor,
        *last: Tensor,
    ) -> Tensor:
        way.mode, ctx.modes = _autocast_mode(problem.y0), _modes(problem.field)
        with _autocast_as(way.mode):
            ys, kept = method.forward(problem)
        ctx.method, ctx.notes, ctx.way = method, kept.notes, way
        ctx.problem = replace(kept.problem, y0=torch.empty(0))
        result = stacked(ys)
        ctx.outputs, ctx.count = kept.outputs, len(kept.tensors)
        params = problem.field.params
        ctx.save_for_backward(*kept.tensors, *params, *([result] if kept.outputs else []))
        return result

    @staticmethod
    @_refusing_second_order
    def backward(ctx: Any, grad_ys: Tensor) -> tuple[Tensor | None, ...]:
        saved, way = _saved(ctx), ctx.way
        field, wants_t = ctx.problem.field, ctx.needs_input_grad[3]
        _check_modes(field, ctx.modes)
        weights = [_unhooked(p) for p in field.params]
        problem = replace(ctx.problem, field=field.recomputation(weights))
        times = Accumulator(problem.t, [True] * len(problem.t)) if wants_t else None
        sums = Sums(Accumulator(weights, [p.requires_grad for p in weights]), times)
        outputs = saved[-1].unbind() if ctx.outputs else ()
        given = Given(problem, (*outputs, *saved[: ctx.count]), ctx.notes, grad_ys, sums)
        with _autocast_as(way.mode):
            way.begin(ctx.method.backward(given), sums.params.grads)
        grads = way.through(len(way.parts) - 1)
        grad_t = None if times is None else torch.stack(times.filled())
        return None, None, None, grad_t, *grads


def _saved(ctx: Any) -> tuple[Tensor, ...]:
    """Return what was kept, which autograd knows that nobody has changed."""
    try:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        raise RuntimeError(
            "gradient: the start of a solve, the states that it returned, or the parameters of its "
            "field were changed in place before backward(), which reads them; change a clone(): "
            f"{error}"
        ) from error
    return saved


def _unhooked(param: Tensor) -> Tensor:
    """Return the parameter or, where differentiating it would run somebody's hooks, another leaf.

    The hooks are for the sum, which autograd hands on; it is not theirs to see the terms.
    """
    hooked = bool(param._backward_hooks) or (param.retains_grad and not param.is_leaf)
    return param.detach().requires_grad_(param.requires_grad) if hooked else param


def _modes(field: Field) -> tuple[bool, ...]:
    """Return the training modes of all modules behind a field."""
    return () if field.module is None else tuple(m.training for m in field.module.modules())


def _check_modes(field: Field, before: tuple[bool, ...]) -> None:
    """Check that the modules behind a field are in the modes of the forward solve."""
    if _modes(field) != before:  # batch norm or dropout would compute something else
        raise ValueError(
            "gradient: the module was switched between train() and eval() after the forward solve, "
            "which its backward pass has to repeat; switch after backward(), or use "
            "gradient='backprop'"
        )


def _autocast_mode(y: Tensor) -> AutocastMode:
    device = y.device.type
    return device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _autocast_as(mode: AutocastMode) -> AbstractContextManager[object]:
    """Return a context in which autocast is as recorded.

    Its cache of cast weights is off: copies made without gradients in a forward pass would
    otherwise be handed to code that needs them with gradients.
    """
    device, enabled, dtype = mode
    return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)
