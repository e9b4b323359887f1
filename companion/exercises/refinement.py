"""Exercises of the chapter "Grow while you train"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.basis import PiecewiseConstant
from companion.block import OdeBlock
from companion.exercises.checking import Exercise, WrongAnswer, close, number, tensor

__all__ = ["EXERCISES", "LEFT", "MINUTES", "SPLIT", "TOGETHER"]

F64 = torch.float64


# Warm-up: split the cells


def _check_split(answer: Callable[[Tensor], Any]) -> str:
    """Compare ``answer(stack)``, shape ``(2 M, ...)``, with the split stack, bit for bit."""
    for shape in ((1, 3), (4, 2, 3)):
        stack = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        found = answer(stack.clone())
        got = tensor(found, None, f"Return a tensor; this is a {type(found).__name__}.")
        if got.shape != (2 * shape[0], *shape[1:]):
            raise WrongAnswer(f"From a stack of shape {shape} return one with twice the rows.")
        stack = stack.double()
        wanted = stack.repeat_interleave(2, dim=0)
        if torch.equal(got, torch.cat([stack, stack])) and shape[0] > 1:
            raise WrongAnswer(
                "Right copies, wrong order: the whole function runs twice. The copies of a cell "
                "lie side by side."
            )
        if torch.allclose(got, wanted / 2):
            raise WrongAnswer("Do not halve: weights are values of a function, not shares of it.")
        if not torch.equal(got, wanted):
            raise WrongAnswer(
                "Not the same function of depth: row 2k and row 2k + 1 must both be row k."
            )
    return "Right: every row twice, side by side."


def _split(stack: Tensor) -> Tensor:
    return stack.repeat_interleave(2, dim=0)


def _padded(stack: Tensor) -> Tensor:
    return torch.stack([stack, torch.zeros_like(stack)], dim=1).flatten(0, 1)


def _means(stack: Tensor) -> Tensor:
    following = torch.cat([stack[1:], stack[-1:]])
    return torch.stack([stack, (stack + following) / 2], dim=1).flatten(0, 1)


SPLIT = Exercise(
    id="refinement-ex-split",
    check=_check_split,
    solution=_split,
    wrong={
        "one after the other": lambda stack: torch.cat([stack, stack]),
        "halved": lambda stack: _split(stack) / 2,
        "zeros in between": _padded,
        "means in between": _means,
        "not split": lambda stack: stack,
        "split along the wrong axis": lambda stack: stack.repeat_interleave(2, dim=-1),
        "unfilled": lambda stack: ...,
    },
)


# Core: minutes of a schedule

Seconds = Callable[[float, float, Sequence[int], int], Any]


def _check_minutes(answer: Seconds) -> str:
    """Compare ``answer(first, last, at, epochs)`` with the cost model."""
    cases = ((16.0, 394.0, (20, 40, 60, 70, 80), 160), (3.0, 10.0, (5,), 8), (2.0, 9.0, (1, 2), 9))
    for case in cases:
        found, wanted = answer(*case), _minutes(*case)
        got = number(found, f"Return a number; this is a {type(found).__name__}.")
        first, last, at, epochs = case
        where = f"With first={first:g}, last={last:g}, at={at}, epochs={epochs}"
        if math.isclose(got, 60 * wanted, rel_tol=1e-6):
            raise WrongAnswer(f"{where}: these are seconds. Divide by 60.")
        if math.isclose(got, epochs * last / 60, rel_tol=1e-6):
            raise WrongAnswer(f"{where}: that is full depth from the start.")
        if math.isclose(got, round(wanted), rel_tol=1e-12):
            raise WrongAnswer(f"{where}: nearly. Do not round.")
        if math.isclose(got, _one_step_less(*case), rel_tol=1e-6):
            raise WrongAnswer(
                f"{where}: from 1 step to 2**J there are 2**J - 1 steps more. Divide the "
                "difference of the seconds by that."
            )
        if math.isclose(got, _one_early(*case), rel_tol=1e-6):
            raise WrongAnswer(
                f"{where}: an epoch early. `at` counts finished epochs, and epochs count from 0."
            )
        if math.isclose(got, _one_late(*case), rel_tol=1e-6):
            raise WrongAnswer(f"{where}: an epoch late. Epoch at[0] already has 2 steps.")
        if math.isclose(got, _through_zero(*case), rel_tol=1e-6):
            raise WrongAnswer(
                f"{where}: an epoch with no steps at all still costs something. Draw the line "
                "through both given points, not through zero."
            )
        if not math.isclose(got, wanted, rel_tol=1e-6):
            raise WrongAnswer(
                f"{where}: not {got:.6g} minutes. The network has 1 step in epochs 0 to "
                "at[0] - 1, then 2 steps until at[1] - 1, and so on to the end."
            )
    return "Right: 607.6 minutes come out of 16 and 394 seconds; the paper has 608."


def _minutes(
    first: float, last: float, at: Sequence[int], epochs: int, through_zero: bool = False
) -> float:
    deepest = 2.0 ** len(at)
    slope = last / deepest if through_zero else (last - first) / (deepest - 1)
    start = 0.0 if through_zero else first - slope
    ends = zip((0, *at), (*at, epochs), strict=True)
    return sum((b - a) * (start + slope * 2.0**k) for k, (a, b) in enumerate(ends)) / 60


def _through_zero(first: float, last: float, at: Sequence[int], epochs: int) -> float:
    return _minutes(first, last, at, epochs, through_zero=True)


def _one_step_less(first: float, last: float, at: Sequence[int], epochs: int) -> float:
    slope = (last - first) / 2.0 ** len(at)
    ends = zip((0, *at), (*at, epochs), strict=True)
    return sum((b - a) * (first + slope * (2.0**k - 1)) for k, (a, b) in enumerate(ends)) / 60


def _one_early(first: float, last: float, at: Sequence[int], epochs: int) -> float:
    return _minutes(first, last, [a - 1 for a in at], epochs)


def _one_late(first: float, last: float, at: Sequence[int], epochs: int) -> float:
    return _minutes(first, last, [a + 1 for a in at], epochs)


def _one_step_each(first: float, last: float, at: Sequence[int], epochs: int) -> float:
    slope = (last - first) / len(at)
    ends = zip((0, *at), (*at, epochs), strict=True)
    return sum((b - a) * (first + slope * k) for k, (a, b) in enumerate(ends)) / 60


MINUTES = Exercise(
    id="refinement-ex-minutes",
    check=_check_minutes,
    solution=_minutes,
    wrong={
        "full depth all along": lambda first, last, at, epochs: epochs * last / 60,
        "seconds": lambda first, last, at, epochs: 60 * _minutes(first, last, at, epochs),
        "a line through zero": _through_zero,
        "refined an epoch late": _one_late,
        "refined an epoch early": _one_early,
        "the slope over one step too many": _one_step_less,
        "rounded": lambda first, last, at, epochs: round(_minutes(first, last, at, epochs)),
        "a step more at a time": _one_step_each,
        "a tuple": lambda first, last, at, epochs: (first, last),
        "unfilled": lambda first, last, at, epochs: ...,
    },
)


# Core: what the change at a refinement says about the error


def _check_left(answer: Callable[[Tensor, Tensor, int], Any]) -> str:
    """Compare ``answer(coarse, fine, order)`` with the error that is left in ``fine``."""
    exact = torch.tensor([0.7, -1.2], dtype=F64)
    error = torch.tensor([0.3, 0.1], dtype=F64)
    for order in (1, 2, 4):
        coarse, fine = exact + error, exact + error / 2**order
        found = answer(coarse.clone(), fine.clone(), order)
        got = tensor(found, exact.shape, "Return a tensor shaped like an output.")
        wanted, case = exact - fine, f"For order {order}"
        if close(got, -wanted):
            raise WrongAnswer(f"{case}: the sign. It is what must be added to `fine`.")
        if order > 1 and close(got, fine - coarse):
            raise WrongAnswer(f"{case}: that is the change. Less than that is left.")
        if close(got, exact):
            raise WrongAnswer(f"{case}: return what must be added to `fine`, not the sum.")
        if close(got, exact - coarse):
            raise WrongAnswer(f"{case}: that is the error of `coarse`.")
        if not close(got, wanted):
            raise WrongAnswer(
                f"{case}: let `coarse` err by e and `fine` by e / 2**order. Solve for the second."
            )
    return "Right: the change over 2**order - 1."


def _left(coarse: Tensor, fine: Tensor, order: int) -> Tensor:
    return (fine - coarse) / (2.0**order - 1)


LEFT = Exercise(
    id="refinement-ex-left",
    check=_check_left,
    solution=_left,
    wrong={
        "the change": lambda coarse, fine, order: fine - coarse,
        "other sign": lambda coarse, fine, order: (coarse - fine) / (2**order - 1),
        "of the coarse one": lambda coarse, fine, order: (fine - coarse) / (1 - 2.0**-order),
        "over 2**order": lambda coarse, fine, order: (fine - coarse) / 2**order,
        "over the order": lambda coarse, fine, order: (fine - coarse) / order,
        "the sum": lambda coarse, fine, order: fine + _left(coarse, fine, order),
        "a norm": lambda coarse, fine, order: (fine - coarse).norm(),
        "unfilled": lambda coarse, fine, order: ...,
    },
)


# Open: copies that stay together


def _check_together(answer: Any) -> str:
    """Refine a block of one cell; compare the gradients of the two copies."""
    if answer is ...:
        raise WrongAnswer("Fill in the dots first.")
    if not isinstance(answer, nn.Module):
        raise WrongAnswer("Answer with a module that is called as module(x).")
    field = answer.double()
    if sum(p.numel() for p in field.parameters()) < 2:
        raise WrongAnswer("Give it at least two numbers to train.")
    _check_field(field)
    gaps, sizes = [], []
    for seed in range(3):
        first, second = _gradients_of_copies(field, seed)
        gaps.append(float((first - second).norm()))
        sizes.append(float(first.norm()))
    if not max(sizes) > 1e-6:
        raise WrongAnswer("The gradients vanish: the parameters have no effect on the field.")
    gap = max(gap / (size + 1e-12) for gap, size in zip(gaps, sizes, strict=True))
    if gap > 1e-9:
        raise WrongAnswer(
            f"The gradients of the copies differ by {gap:.1e} of their size. They agree where the "
            "field commutes with what it becomes when a parameter moves."
        )
    return "Right: both copies always get the same gradient."


def _check_field(field: nn.Module) -> None:
    """Ask for a field in the plane that depends on the state in both components."""
    x = torch.tensor([[0.4, -0.9]], dtype=F64, requires_grad=True)
    try:
        value = field(x)
    except (RuntimeError, TypeError, ValueError) as error:
        raise WrongAnswer(f"It must take states in the plane, shape (batch, 2). {error}") from None
    if not isinstance(value, Tensor) or value.shape != x.shape:
        raise WrongAnswer("It must keep the shape of the state, (batch, 2).")
    for component in (0, 1):
        weight = torch.eye(2, dtype=F64)[component]
        if value.requires_grad:
            (by_x,) = torch.autograd.grad(
                (value * weight).sum(), x, retain_graph=True, allow_unused=True
            )
            if by_x is not None and bool(by_x.any()):
                continue
        raise WrongAnswer(
            "Each component must depend on the state, at the values that the parameters have now. "
            "A bias alone is too easy. If they start from zero, start elsewhere."
        )


def _gradients_of_copies(field: nn.Module, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, target = torch.randn(2, 5, 2, generator=generator, dtype=F64)
    block = OdeBlock(field, PiecewiseConstant(1), method="euler", steps=1)
    block.refine()
    loss = (block(x) - target).square().sum()
    params = [p for p in block.parameters() if p.requires_grad]
    if not loss.requires_grad or not params:
        raise WrongAnswer("The value of the module must depend on the numbers to train.")
    grads = torch.autograd.grad(loss, params, materialize_grads=True)
    return torch.cat([g[0].flatten() for g in grads]), torch.cat([g[1].flatten() for g in grads])


class TurnAndStretch(nn.Module):
    """Turn the plane and stretch it: all such maps commute."""

    def __init__(self) -> None:
        super().__init__()
        self.stretch = nn.Parameter(torch.tensor(0.3, dtype=F64))
        self.turn = nn.Parameter(torch.tensor(-1.1, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        """Return the velocity at ``x``."""
        quarter = torch.stack([-x[..., 1], x[..., 0]], dim=-1)
        return self.stretch * x + self.turn * quarter


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(3, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class _NoEffect(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(3, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.idle.sum()


def _drawn(*layers: nn.Module) -> nn.Module:
    """Return the layers in a row, with weights that are no accident of the global generator."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(*layers).double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=F64)
    return module


def _bias_only() -> nn.Module:
    module = _drawn(nn.Linear(2, 2))
    next(module.parameters()).data.zero_()
    return module


TOGETHER = Exercise(
    id="refinement-ex-together",
    check=_check_together,
    solution=TurnAndStretch(),
    wrong={
        "any linear map": _drawn(nn.Linear(2, 2, bias=False)),
        "a perceptron": _drawn(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)),
        "a bias alone": _bias_only(),
        "nothing to train": nn.Tanh(),
        "parameters without effect": _NoEffect(),
        "parameters that are not used": _Unused(),
        "another shape": _drawn(nn.Linear(2, 3)),
        "no module": lambda x: x,
        "unfilled": ...,
    },
)

EXERCISES = (SPLIT, MINUTES, LEFT, TOGETHER)
