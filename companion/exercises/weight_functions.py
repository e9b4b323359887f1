"""Exercises of the chapter "Weights as functions of depth"."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from companion.basis import Basis, Chebyshev, Constant, PiecewiseConstant, locate, project
from companion.block import OdeBlock
from companion.exercises.checking import Exercise, WrongAnswer, close, number, tensor, whole
from companion.observe import fit_slope
from companion.schemes import get_scheme
from companion.train import seeded

__all__ = ["COARSEN", "EXERCISES", "LEAKS", "READ", "SMOOTH", "TRAIN"]

F64 = torch.float64


# Warm-up: how much of a step leaks over its end


def _check_leaks(answer: Mapping[str, Any]) -> str:
    """Compare each scheme's share of naive slopes with its tableau."""
    if not isinstance(answer, Mapping) or set(answer) != set(_LEAKS):
        raise WrongAnswer(f"Answer with a dict that has the keys {', '.join(_LEAKS)}.")
    for name, exact in _LEAKS.items():
        if answer[name] is ...:
            raise WrongAnswer(f"{name}: fill in a number.")
        given = number(answer[name], f"{name}: fill in a number.")
        ends = sum(c == 1 for c in get_scheme(name).c)
        if math.isclose(given, exact, abs_tol=1e-6):
            continue
        if not ends:
            raise WrongAnswer(f"{name}: no stage of this scheme lies at the end of the step.")
        if given == ends:
            raise WrongAnswer(f"{name}: do not count the stages at c = 1, add up their weights b.")
        raise WrongAnswer(
            f"{name}: not {given:g}. Add up b_i over the stages with c_i = 1, and write fractions "
            "in full: 1/6, not 0.167."
        )
    return "Right: only stages at the end of a step can read the next cell."


def _leak(name: str) -> float:
    scheme = get_scheme(name)
    return float(sum(b for b, c in zip(scheme.b, scheme.c, strict=True) if c == 1))


_LEAKS = {
    name: _leak(name) for name in ("euler", "midpoint", "heun", "kutta3", "rk4", "rk4_38")
}  # those that the chapter asks for

LEAKS = Exercise(
    id="weight-functions-ex-leaks",
    check=_check_leaks,
    solution={"euler": 0, "midpoint": 0, "heun": 1 / 2, "kutta3": 1 / 6, "rk4": 1 / 6,
              "rk4_38": 1 / 8},
    wrong={
        "stages counted": {**_LEAKS, "heun": 1},
        "midpoint reads its end": {**_LEAKS, "midpoint": 1},
        "the classic weights in the 3/8 rule": {**_LEAKS, "rk4_38": 1 / 6},
        "all weights": dict.fromkeys(_LEAKS, 1.0),
        "a scheme is missing": {"heun": 1 / 2},
        "unfilled": dict.fromkeys(_LEAKS, ...),
    },
)  # fmt: skip


# Core: the cell that a stage reads


def _check_read(answer: Callable[[int, int, Fraction, int], Any]) -> str:
    """Compare ``answer(step, steps, c, cells)`` with the package on many grids."""
    for cells, steps in ((4, 4), (4, 8), (3, 7), (10, 3), (49, 49), (7, 49)):
        for step in range(steps):
            for c in _FRACTIONS:
                given = answer(step, steps, c, cells)
                got = whole(given)
                if got is None:
                    raise WrongAnswer(f"Return the number of a cell, an integer, not {given!r}.")
                wanted = locate(step, steps, c, cells).cell
                if got != wanted:
                    raise WrongAnswer(_read_hint(got, wanted, step, steps, c, cells))
    return "Right on six grids, on every stage of every scheme."


_FRACTIONS = tuple(Fraction(x) for x in ("0", "1/3", "1/2", "2/3", "1"))


def _read_hint(got: int, wanted: int, step: int, steps: int, c: Fraction, cells: int) -> str:
    where = f"Step {step} of {steps}, c = {c}, {cells} cells: cell {wanted}, not {got}."
    point = (step + c) / steps * cells
    on_knot = point.denominator == 1
    if c == 1 and got == wanted + 1:
        return f"{where} The end of a step is read from inside the step."
    if c != 1 and got == wanted - 1 and on_knot:
        return (
            f"{where} This point is exactly a knot, and a cell owns its left end. If your "
            "answer uses c, rounding may have moved it: count in integers or Fractions."
        )
    return f"{where} The point is {point} cells from the left."


def _read(step: int, steps: int, c: Fraction, cells: int) -> int:
    point = (step + c) / steps * cells
    return math.ceil(point) - 1 if c == 1 else math.floor(point)


READ = Exercise(
    id="weight-functions-ex-read",
    check=_check_read,
    solution=_read,
    wrong={
        "from the right": lambda n, steps, c, cells: min(int((n + c) * cells / steps), cells - 1),
        "in floating point": lambda n, steps, c, cells: (
            _read(n, steps, c, cells) if c == 1 else int((n + float(c)) * (1 / steps) * cells)),
        "the cell of the step's start": lambda n, steps, c, cells: n * cells // steps,
        "always from the left": lambda n, steps, c, cells: (
            max(math.ceil((n + c) / steps * cells) - 1, 0)),
        "one cell a step": lambda n, steps, c, cells: min(n, cells - 1),
        "no integer": lambda n, steps, c, cells: math.floor((n + c) / steps * cells) / 1,
        "unfilled": lambda n, steps, c, cells: ...,
    },
)  # fmt: skip


# Core: the nearest function with fewer cells


def _check_coarsen(answer: Callable[[Tensor, int], Any]) -> str:
    """Compare ``answer(values, cells)`` with the projection, also where cells overlap."""
    draw = torch.Generator().manual_seed(0)
    for old, new in ((8, 4), (6, 2), (6, 4), (5, 3), (4, 6)):
        values = torch.randn(old, 2, generator=draw, dtype=F64)
        hint = f"From {old} cells to {new}: return a tensor of shape ({new}, 2)."
        got = tensor(answer(values.clone(), new), (new, 2), hint)
        wanted = project(values, PiecewiseConstant(old), PiecewiseConstant(new))
        if close(got, wanted):
            continue
        case = f"From {old} cells to {new}"
        if old % new == 0 and close(got, values[:: old // new]):
            raise WrongAnswer(f"{case}: that drops values. The nearest constant is the mean.")
        if old % new == 0:
            raise WrongAnswer(f"{case}: every new value is the mean of {old // new} old ones.")
        raise WrongAnswer(
            f"{case}: right where cells merge, wrong where they overlap. Weigh each old value by "
            "the length that its cell shares with the new one, over the new cell's length."
        )
    return "Right: means, weighted by the overlap."


def _coarsen(values: Tensor, cells: int) -> Tensor:
    fine = values.repeat_interleave(cells, dim=0)
    return fine.reshape(cells, len(values), *values.shape[1:]).mean(1)


def _merged(values: Tensor, cells: int) -> Tensor:
    return torch.stack([part.mean(0) for part in values.tensor_split(cells)])


COARSEN = Exercise(
    id="weight-functions-ex-coarsen",
    check=_check_coarsen,
    solution=_coarsen,
    wrong={
        "values dropped": lambda values, cells: values[:: max(1, len(values) // cells)][:cells],
        "sums": lambda values, cells: _coarsen(values, cells) * (len(values) / cells),
        "overlaps ignored": lambda values, cells: (
            _merged(values, cells) if len(values) >= cells else values[:1].expand(cells, 2)),
        "read at the middle": lambda values, cells: (
            values[[int((k + 0.5) / cells * len(values)) for k in range(cells)]]),
        "one mean for all": lambda values, cells: values.mean(0).expand(cells, 2),
        "unfilled": lambda values, cells: ...,
    },
)  # fmt: skip


# Core: train weights that follow a path


def _check_train(answer: Callable[[Tensor], Any]) -> str:
    """Let ``answer(paths)`` train a block; compare its states with paths from other starts."""
    draw = torch.Generator().manual_seed(0)
    starts, others = (torch.randn(n, 2, generator=draw, dtype=F64) for n in (32, 64))
    block = answer(_turned(starts))
    if not isinstance(block, OdeBlock):
        raise WrongAnswer("Return the trained block, an OdeBlock.")
    size = block.weights.basis.size
    if size > 4:
        raise WrongAnswer(f"Your basis has {size} functions; four are enough if they are smooth.")
    with torch.no_grad():
        found = copy.deepcopy(block).double().with_graph(method="rk4", steps=16).states(others)
    wanted = _turned(others)
    off = float((found - wanted).norm() / wanted.norm())
    if not off < 0.01:
        raise WrongAnswer(_train_hint(block, off))
    return f"Right: {size} functions of depth, and new paths are {off:.2%} off."


def _train_hint(block: OdeBlock, off: float) -> str:
    where = f"On new paths the states are {off:.1%} off."
    if block.weights.basis.size == 1:
        return f"{where} The points turn faster and faster, which no constant can do."
    if block.weights.basis.continuity < 0:
        return f"{where} Stairs this wide are too coarse. Is there a smoother basis of that size?"
    return f"{where} Compare block.states(x) with the paths at all depths, and train longer."


def _turned(starts: Tensor) -> Tensor:
    """Return where points are that turn by $t + 2 t^3$, at 17 depths: ``(17, points, 2)``."""
    t = torch.linspace(0, 1, 17, dtype=F64)
    angle = (t + 2 * t**3)[:, None]
    x, y = starts.T
    c, s = torch.cos(angle), torch.sin(angle)
    return torch.stack([c * x - s * y, s * x + c * y], dim=-1)


def _trained(basis: Basis, paths: Tensor, steps: int = 60) -> OdeBlock:
    with seeded(0):
        block = OdeBlock(nn.Linear(2, 2, bias=False), basis, "rk4", 16).double()
    optimiser = torch.optim.LBFGS(block.parameters(), max_iter=steps)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (block.states(paths[0]) - paths).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return block


TRAIN = Exercise(
    id="weight-functions-ex-train",
    check=_check_train,
    solution=lambda paths: _trained(Chebyshev(3), paths),
    wrong={
        "constant weights": lambda paths: _trained(Constant(), paths),
        "four stairs": lambda paths: _trained(PiecewiseConstant(4), paths),
        "sixteen stairs": lambda paths: _trained(PiecewiseConstant(16), paths, steps=0),
        "untrained": lambda paths: _trained(Chebyshev(3), paths, steps=0),
        "states": lambda paths: paths,
        "unfilled": lambda paths: ...,
    },
)


# Open: weights without kinks, local in depth


def _check_smooth(answer: Callable[[Tensor, float], Any]) -> str:
    """Ask for independent local functions of class C^1 that add up to one."""
    size = 12
    depths = [float(s) for s in torch.linspace(0, 1, 401, dtype=F64)]
    matrix = torch.stack([_values(answer, unit, depths) for unit in torch.eye(size, dtype=F64)], 1)
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=F64)
    if not torch.allclose(_values(answer, drawn, depths), matrix @ drawn, atol=1e-5):
        raise WrongAnswer("theta(s) must be linear in the coefficients: a sum of phi_k(s) theta_k.")
    if not torch.allclose(matrix.sum(1), torch.ones(len(depths), dtype=F64), atol=1e-5):
        raise WrongAnswer("Equal coefficients must give a constant: the phi_k(s) must add up to 1.")
    if torch.linalg.matrix_rank(matrix, rtol=1e-5) < size:
        raise WrongAnswer("Some coefficient does nothing new: the functions are not independent.")
    if (matrix.abs() > 1e-6).double().mean(0).max() > 0.5:
        raise WrongAnswer(
            "Each coefficient may act on half of the depth at most; one of yours acts on more."
        )
    smoothness = _smoothness(answer, drawn)
    if smoothness < 0.5:
        raise WrongAnswer("theta jumps somewhere. Its limits from both sides must agree.")
    if smoothness < 1.5:
        raise WrongAnswer("theta has a kink somewhere. Its derivative must not jump.")
    return "Right: local and without kinks. RK4 has order 3 or more on every grid."


def _values(answer: Callable[[Tensor, float], Any], coefficients: Tensor, s: list[float]) -> Tensor:
    values = [answer(coefficients, depth) for depth in s]
    if any(value is None for value in values):
        raise WrongAnswer("Fill in the dots first.")
    found = torch.tensor([number(v, "Return one number, theta(s).") for v in values], dtype=F64)
    if not torch.isfinite(found).all():
        raise WrongAnswer("theta(s) is not finite somewhere in [0, 1].")
    return found


def _smoothness(answer: Callable[[Tensor, float], Any], coefficients: Tensor) -> float:
    """Fit how fast second differences fall: 0 with jumps, 1 with kinks, 2 without either."""
    widths, largest = (2**-7, 2**-8, 2**-9), []  # any finer, single precision would show
    for width in widths:
        s = [k * width for k in range(round(1 / width) + 1)]
        gaps = _values(answer, coefficients, s).diff(n=2).abs().max()
        largest.append(max(float(gaps), 1e-300))
    return fit_slope(widths, largest).value


def _spline(coefficients: Tensor, s: float) -> float:
    cells = len(coefficients) - 2
    k = min(int(s * cells), cells - 1)
    u = s * cells - k
    a, b, c = coefficients[k : k + 3].tolist()
    return float((1 - u) ** 2 / 2 * a + (0.5 + u - u * u) * b + u * u / 2 * c)


def _between(coefficients: Tensor, s: float, share: Callable[[float], float]) -> float:
    cells = len(coefficients) - 1
    k = min(int(s * cells), cells - 1)
    a, b = coefficients[k : k + 2].tolist()
    return float(a + share(s * cells - k) * (b - a))


def _polynomial(coefficients: Tensor, s: float) -> float:
    angle = math.acos(max(-1.0, min(1.0, 2 * s - 1)))
    waves = [math.cos(k * angle) for k in range(len(coefficients))]
    return float(coefficients @ torch.tensor(waves, dtype=F64))


def _bernstein(coefficients: Tensor, s: float) -> float:
    n = len(coefficients) - 1
    shares = [math.comb(n, k) * s**k * (1 - s) ** (n - k) for k in range(n + 1)]
    return float(coefficients @ torch.tensor(shares, dtype=F64))


SMOOTH = Exercise(
    id="weight-functions-ex-smooth",
    check=_check_smooth,
    solution=_spline,
    wrong={
        "hats": lambda c, s: _between(c, s, lambda u: u),
        "constants": lambda c, s: _between(c, s, lambda u: 0.0 if u < 0.5 else 1.0),
        "polynomials": _polynomial,
        "polynomials that add up to one": _bernstein,
        "a spline of half the height": lambda c, s: _spline(c, s) / 2,
        "every other coefficient": lambda c, s: _spline(c[::2], s),
        "not linear": lambda c, s: math.tanh(_spline(c, s)),
        "unfilled": lambda c, s: ...,
    },
)

EXERCISES = (LEAKS, READ, COARSEN, TRAIN, SMOOTH)
