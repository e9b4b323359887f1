"""Exercises of the chapter "A residual network takes steps"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from companion import OdeBlock, PiecewiseConstant, odeint
from companion.exercises.checking import Exercise, WrongAnswer, close, listed, number, tensor
from companion.train import seeded

__all__ = [
    "BETWEEN", "COMPOUND", "EXERCISES", "RINGS", "SCHEME", "STACK", "THRESHOLD", "TURN",
]  # fmt: skip


# Warm-up: one network on the line, at all depths


def _check_compound(answer: Callable[[float, int], Any]) -> str:
    """Compare with the power, the exponential and the first term of their relative distance."""
    for a, layers in ((1.0, 4), (-2.0, 10), (0.5, 1)):
        got = listed(answer(a, layers), 3, "Return three numbers: output, limit, relative error.")
        wanted = ((1 + a / layers) ** layers, math.exp(a), -(a**2) / (2 * layers))
        for value, right, hint in zip(got, wanted, _COMPOUND_HINTS, strict=True):
            if not close(value, right):
                raise WrongAnswer(f"At a={a:g}, N={layers}: {hint}")
    return "Right: the output, its limit and its relative error, for three networks."


_COMPOUND_HINTS = (
    "every layer multiplies the state by the same number. Which, and how often?",
    "the limit solves x' = a x from 1. Where is it at t = 1?",
    "take the logarithm of the output and expand it in 1/N: N log(1 + a/N) = a - ... The first "
    "term after a is the relative error, with its sign.",
)


def _compound(a: float, layers: int) -> tuple[float, float, float]:
    return (1 + a / layers) ** layers, math.exp(a), -(a**2) / (2 * layers)


COMPOUND = Exercise(
    id="residual-ex-compound",
    check=_check_compound,
    solution=_compound,
    wrong={
        "changes add up": lambda a, n: (1 + a, math.exp(a), -(a**2) / (2 * n)),
        "the classic factor": lambda a, n: ((1 + a) ** n, math.exp(a), -(a**2) / (2 * n)),
        "the limit of one layer": lambda a, n: (_compound(a, n)[0], 1 + a, -(a**2) / (2 * n)),
        "the error of one layer": lambda a, n: (*_compound(a, n)[:2], -((a / n) ** 2) / 2),
        "the exact error": lambda a, n: (
            *_compound(a, n)[:2], _compound(a, n)[0] / math.exp(a) - 1),
        "the sign": lambda a, n: (*_compound(a, n)[:2], a**2 / (2 * n)),
        "two numbers": lambda a, n: _compound(a, n)[:2],
    },
)  # fmt: skip


# Core: the classic residual network as a block


def _check_stack(answer: Callable[[list[nn.Module]], OdeBlock]) -> str:
    """Compare the block with the layers ``x + unit(x)``, for several numbers of layers."""
    for layers in (3, 5):
        with seeded(layers):
            units: list[nn.Module] = [nn.Linear(4, 4) for _ in range(layers)]
            x = torch.randn(2, 4)
        block = answer(units)
        if not isinstance(block, OdeBlock):
            raise WrongAnswer(f"Return an OdeBlock, not {type(block).__name__}.")
        wanted = x
        for unit in units:
            wanted = wanted + unit(wanted)
        if not torch.allclose(block(x), wanted, rtol=1e-5, atol=1e-5):
            raise WrongAnswer(_stack_hint(block, layers))
    return "Right: the block computes x + unit(x), layer by layer."


def _stack_hint(block: OdeBlock, layers: int) -> str:
    if block.method != "euler":
        return f"The method is {block.method!r}. Which one evaluates each unit once, at the state?"
    if block.steps != layers:
        return f"{layers} layers are {layers} steps; your block takes {block.steps}."
    if block.weights.basis.cells != layers:
        return "Every layer has weights of its own: as many cells as layers."
    if block.scale != layers:
        return (
            f"A step of length 1/{layers} with scale {block.scale:g} adds {block.scale / layers:g} "
            "times the unit. A classic layer adds it whole."
        )
    return "The knobs are right, the weights are not: which module belongs to which cell?"


def _stack(units: list[nn.Module]) -> OdeBlock:
    return OdeBlock.from_modules(units, scale=len(units))


STACK = Exercise(
    id="residual-ex-stack",
    check=_check_stack,
    solution=_stack,
    wrong={
        "the scale is forgotten": lambda units: OdeBlock.from_modules(units),
        "the scale is upside down": lambda units: OdeBlock.from_modules(
            units, scale=1 / len(units)
        ),
        "one step": lambda units: OdeBlock.from_modules(units, steps=1, scale=len(units)),
        "one set of weights": lambda units: OdeBlock(
            units[0], steps=len(units), scale=len(units)
        ),
        "another scheme": lambda units: OdeBlock.from_modules(
            units, method="midpoint", scale=len(units)
        ),
        "the first layer everywhere": lambda units: OdeBlock(
            units[0], PiecewiseConstant(len(units)), steps=len(units), scale=len(units)
        ),
        "a list of layers": lambda units: units,
    },
)  # fmt: skip


# Core: finish a scheme of order two

Field = Callable[[float, float], float]
Step = Callable[[Field, float, float, float], float]


def _check_scheme(answer: Step) -> str:
    """Count the evaluations, probe one step with simple fields, then fit the order."""
    calls = 0

    def first_only(*arguments: float) -> float:
        nonlocal calls
        if len(arguments) != 2:
            raise WrongAnswer("The field takes two arguments: call f(t, x).")
        calls += 1
        return 1.0 if calls == 1 else 0.0

    # A long step from near 0: rounding is small beside every term, rounded fractions are not.
    t, x, h = 0.3, 0.7, 4.0

    def moved(f: Field) -> float:
        return number(answer(f, t, x, h), "The step must return one number, the new state.")

    weight = (moved(first_only) - x) / h
    if calls != 2:
        raise WrongAnswer(f"Evaluate the field twice in a step; you do it {calls} times.")
    # The probes, the weight of the first slope among them, in the order to mend things in.
    for value, wanted, hint in (
        (moved(lambda t, x: 0.0), x, _HINTS["nothing"]),
        (moved(lambda t, x: 3.0), x + 3 * h, _HINTS["constant"]),
        (weight, 0.25, f"The first slope has the weight 1/4; yours has {weight:.3g}."),
        (moved(lambda t, x: t), x + h * t + h**2 / 2, _HINTS["time"]),
        (moved(lambda t, x: x), x * (1 + h + h**2 / 2), _HINTS["state"]),
    ):
        if not math.isclose(value, wanted, rel_tol=1e-5):  # single precision passes
            near = math.isclose(value, wanted, rel_tol=1e-3)
            raise WrongAnswer(_HINTS["rounded"] if near else hint)
    order = _fitted_order(answer)
    if abs(order - 2) > 0.15:
        raise WrongAnswer(f"The fitted order is {order:.2f}. Use only f, t, x and h.")
    return f"Right: two slopes, fitted order {order:.2f}: Ralston's scheme."


_HINTS = {
    "nothing": "With the field 0 the state must stay: return x plus multiples of the slopes, and "
    "nothing else.",
    "constant": "A constant field 3 must move the state by 3h: the weights must have the sum 1.",
    "rounded": "Almost. Use exact fractions, such as 2 / 3, not rounded numbers.",
    "time": "For the field f(t, x) = t the integral is ht + h^2/2. At which time does the second "
    "slope, with its weight 3/4, give that?",
    "state": "For the field f(t, x) = x order two means a factor 1 + h + h^2/2. At which state is "
    "the second slope evaluated?",
}


def _fitted_order(step: Step) -> float:
    """Return the order on x' = -x sin(t) + cos(2t), against a far finer run of rk4."""

    def field(t: float, x: float) -> float:
        return -x * math.sin(t) + math.cos(2 * t)

    start = torch.ones(1, dtype=torch.float64)
    fine = odeint(lambda t, x: -x * torch.sin(t) + torch.cos(2 * t), start, [0.0, 1.0],
                  method="rk4", steps=400)[-1].item()  # fmt: skip
    errors = []
    for steps in (8, 16):  # few: the errors stay far above the rounding of single precision
        x = 1.0
        for n in range(steps):
            x = number(step(field, n / steps, x, 1 / steps), "The step must return one number.")
        errors.append(abs(x - fine))
    return math.log2(errors[0] / errors[1])


def _two_slopes(b: float, time: float, state: float) -> Step:
    """Return the step with weights b and 1 - b; its second slope lies ``time`` and ``state`` on."""

    def step(f: Field, t: float, x: float, h: float) -> float:
        first = f(t, x)
        return x + h * (b * first + (1 - b) * f(t + time * h, x + state * h * first))

    return step


def _three_slopes(f: Field, t: float, x: float, h: float) -> float:
    first = f(t, x)
    second = f(t + h / 2, x + h / 2 * first)
    return x + h / 6 * (first + 4 * second + f(t + h, x - h * first + 2 * h * second))


SCHEME = Exercise(
    id="residual-ex-scheme",
    check=_check_scheme,
    solution=_two_slopes(1 / 4, 2 / 3, 2 / 3),
    wrong={
        "Heun's weights": _two_slopes(1 / 2, 1.0, 1.0),
        "the weights swapped": _two_slopes(3 / 4, 2.0, 2.0),
        "half a step": _two_slopes(1 / 4, 1 / 2, 1 / 2),
        "a whole step": _two_slopes(1 / 4, 1.0, 1.0),
        "the state stays": _two_slopes(1 / 4, 2 / 3, 0.0),
        "the time stays": _two_slopes(1 / 4, 0.0, 2 / 3),
        "three slopes": _three_slopes,
        "the increment alone": lambda f, t, x, h: _two_slopes(1 / 4, 2 / 3, 2 / 3)(f, t, x, h) - x,
        "nothing returned": lambda f, t, x, h: None,
        "a field of the state alone": lambda f, t, x, h: x + h * f(x),
        "a stray term": lambda f, t, x, h: _two_slopes(1 / 4, 2 / 3, 2 / 3)(f, t, x, h) + h**3 / 10,
        "rounded": _two_slopes(1 / 4, 0.667, 0.667),
    },
)


# Core: the threshold is sharp


def _check_threshold(answer: Callable[[int], Sequence[float]]) -> str:
    """Multiply the factors 1 + a/N of linear layers and look at the largest slope."""
    worst = 0.0
    for layers in (8, 11, 64):
        slopes = listed(answer(layers), None, "Return a list of numbers, one slope a layer.")
        if len(slopes) != layers:
            raise WrongAnswer(f"{layers} layers need {layers} slopes, not {len(slopes)}.")
        _check_product(layers, slopes)
        worst = max(worst, *(abs(a) / layers for a in slopes))
    if worst > 1.01 + 1e-6:
        raise WrongAnswer(
            f"This is -x, but the steepest slope is {worst:.3g} N; stay within 1.01 N. Let one "
            "layer reverse and shrink the line, and the others stretch it back."
        )
    return f"Right: -x, and no slope exceeds {worst:.5f} N."


def _check_product(layers: int, slopes: Sequence[float]) -> None:
    """Ask that the factors 1 + a/N multiply to -1."""
    factors = [1 + a / layers for a in slopes]
    total, flips = math.prod(factors), sum(factor < 0 for factor in factors)
    if math.isclose(total, -1.0, rel_tol=max(1e-6, _rounding(layers, slopes))):
        return
    if math.isclose(math.prod(1 + a for a in slopes), -1.0, rel_tol=1e-6):
        raise WrongAnswer("The layer is x + a x / N. Did you forget the factor N in the slopes?")
    if 0.0 in factors:
        raise WrongAnswer(
            f"For N = {layers} a factor 1 + a/N is 0, so that the line collapses. The reversing "
            "slope must exceed N, and by more than rounding swallows: up to 1.01 N is allowed."
        )
    if flips % 2 == 0:
        raise WrongAnswer(
            f"For N = {layers}, {flips} layers have a factor below zero and the network "
            f"multiplies by {total:.3g}. An odd number of layers must reverse the line."
        )
    raise WrongAnswer(
        f"For N = {layers} the network multiplies by {total:.4g}, not by -1. The layers that do "
        "not reverse may stretch."
    )


def _rounding(layers: int, slopes: Sequence[float]) -> float:
    """Return by how much the product can be off, relatively, because slopes are rounded.

    A factor 1 + a/N near 0 keeps few of its digits. In single precision 1 - 1.01 has five. A tenth
    is too much to tell -1 from anything.
    """
    single = all(float(torch.tensor(a, dtype=torch.float32)) == a for a in slopes)
    digits = 2.0**-22 if single else 2.0**-50  # two more for the operations behind a slope
    lost = (abs(a / layers) / max(abs(1 + a / layers), digits) for a in slopes)
    return min(digits * (layers + sum(lost)), 0.1)


def _threshold(layers: int) -> list[float]:
    stretch = 0.01 ** (-1 / (layers - 1))
    return [-1.01 * layers] + [layers * (stretch - 1)] * (layers - 1)


THRESHOLD = Exercise(
    id="residual-ex-threshold",
    check=_check_threshold,
    solution=_threshold,
    wrong={
        "one layer does it all": lambda n: [-2.0 * n] + [0.0] * (n - 1),
        "all layers pull gently": lambda n: [-2.0] * n,
        "all lines are reversed": lambda n: [-2.0 * n] * (2 * (n // 2)) + [0.0] * (n % 2),
        "one layer at the threshold": lambda n: [-1.0 * n] + [1.0 * n] * (n - 1),
        "no stretching back": lambda n: [-1.005 * n] + [0.0] * (n - 1),
        "shrunk below rounding": lambda n: [-n * (1 + 2.0 ** (1 - n))] + [1.0 * n] * (n - 1),
        "the factor N is forgotten": lambda n: [a / n for a in _threshold(n)],
        "too few slopes": lambda n: [-2.0 * n],
        "one number": lambda n: -2.0 * n,
    },
)


# Core: train a flow with room to lift a disc out of a ring


def _check_rings(answer: Callable[[Tensor], Tensor]) -> str:
    """Score fresh points of a disc and of a ring around it, in single or double precision."""
    generator = torch.Generator().manual_seed(3)
    angle, radius = torch.rand(2, 1000, generator=generator)
    radius[500:] += 2
    points = radius[:, None] * torch.stack(
        [angle.mul(2 * math.pi).cos(), angle.mul(2 * math.pi).sin()], 1
    )
    hint = "Return one score for every point: a tensor of shape (points,)."
    try:
        found = tensor(answer(points), None, hint)
    except RuntimeError:  # a network in double precision
        found = tensor(answer(points.double()), None, hint)
    if found.shape not in ((1000,), (1000, 1)):
        raise WrongAnswer(f"{hint} Yours has the shape {tuple(found.shape)}.")
    wrong = (found.reshape(-1) > 0) != (radius < 1)
    disc, ring = float(wrong[:500].double().mean()), float(wrong[500:].double().mean())
    if disc + ring > 1.5:
        raise WrongAnswer("The sign is the other way round: positive on the disc.")
    if max(disc, ring) > 0.98:
        raise WrongAnswer("All scores have one sign. Has the network been trained?")
    if disc + ring > 0.04:
        raise WrongAnswer(
            f"Wrong on {disc:.0%} of the disc and {ring:.0%} of the ring; 2% of all are allowed. A "
            "flow cannot carry the disc through the ring: where is there room?"
        )
    return f"Right: wrong on {disc:.1%} of the disc and {ring:.1%} of the ring."


RINGS = Exercise(
    id="residual-ex-rings",
    check=_check_rings,
    solution=lambda x: 2.25 - x.square().sum(1),
    wrong={
        "a straight line": lambda x: x[:, 0],
        "a narrow strip": lambda x: 0.5 - x[:, 0].abs(),
        "the other way round": lambda x: x.square().sum(1) - 2.25,
        "not trained": lambda x: torch.ones(len(x)),
        "the states": lambda x: x,
        "one number": lambda x: x.sum(),
    },
)


# Open: with room to turn


def _check_turn(answer: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Follow the line at equal and at random times, and probe the field between neighbours."""
    line = torch.linspace(-1, 1, 21, dtype=torch.float64)
    start = torch.stack([line, torch.zeros_like(line)], dim=1)

    def field(t: Tensor, x: Tensor) -> Tensor:
        return tensor(answer(t, x), x.shape, "The field must return a velocity for every state.")

    equal, times = torch.linspace(0, 1, 1025).double(), _random_times()
    try:
        # Midpoint steps never read the field at their ends, so a jump at a node costs nothing.
        coarse, path = (odeint(field, start, t, method="midpoint", steps=1) for t in (equal, times))
    except (TypeError, ValueError) as error:
        raise WrongAnswer(f"The field could not be solved: {error}") from None
    end = path[-1]
    _check_apart(field, times, path)
    if not torch.allclose(coarse[-1], end, rtol=0, atol=2e-4):
        raise WrongAnswer(
            "The end depends on the step: the field is too steep, or jumps at another t than 1/2."
        )
    if not torch.allclose(end[:, 0], -line, rtol=0, atol=2e-4):
        factor = float((end[:, 0] @ line) / (line @ line))
        if torch.allclose(end[:, 0], -line, rtol=0, atol=0.05):
            raise WrongAnswer(
                f"Almost: the factor is about {factor:.4f}. Use exact constants, such as torch.pi."
            )
        raise WrongAnswer(
            f"The first coordinate ends at about {factor:.3f} times its start, not at -1 times. "
            "Pairs have to pass each other without meeting: where is there room?"
        )
    gap = end.diff(dim=0).norm(dim=1).min()
    return f"Right: x becomes -x, and neighbours end {float(gap):.2f} apart."


def _random_times() -> Tensor:
    """Return 2049 times from 0 to 1, 1/2 among them and the others at random."""
    generator = torch.Generator().manual_seed(5)
    between = torch.rand(2046, generator=generator, dtype=torch.float64)
    return torch.cat([between, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)]).sort().values


def _check_apart(field: Callable[[Tensor, Tensor], Tensor], times: Tensor, path: Tensor) -> None:
    """Ask at random times that neighbours do not rush at each other as fast as if they met.

    Where two trajectories meet at t*, the rate at which the field changes their distance is at
    least as large as some multiple of 1/|t - t*|; random times come close to t*.
    """
    for (early, late), x in zip(pairwise(times), path[:-1], strict=True):
        t = (early + late) / 2
        gaps, speeds = (v.diff(dim=0).norm(dim=1) for v in (x, field(t, x)))
        rate = float((speeds / gaps).max())
        if not rate <= _STEEPEST:
            raise WrongAnswer(
                f"At t = {float(t):.2f} the field changes the distance of two neighbours at "
                f"{rate:.3g} times that distance per unit of time: they meet there, or nearly so. "
                f"Keep the Lipschitz constant below {_STEEPEST}."
            )


_STEEPEST = 100


def _turn(t: Tensor, x: Tensor) -> Tensor:
    return math.pi * torch.stack([-x[:, 1], x[:, 0]], dim=1)


def _rotation(angle: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda t, x: angle * torch.stack([-x[:, 1], x[:, 0]], dim=1)


TURN = Exercise(
    id="residual-ex-turn",
    check=_check_turn,
    solution=_turn,
    wrong={
        "a quarter turn": _rotation(math.pi / 2),
        "a full turn": _rotation(2 * math.pi),
        "the target as the field": lambda t, x: -x,
        "twice the target as the field": lambda t, x: -2 * x,
        "a rounded half turn": _rotation(3.1),
        "one coordinate": lambda t, x: -x[:, :1],
        "too steep": lambda t, x: -300 * torch.sin(300 * x),
        "all meet on the way": lambda t, x: -x / (0.3 - t) if t < 0.5 else 2 * math.log(1.5) * x,
        "jumps at another time": lambda t, x: (
            _rotation(math.pi / 0.3)(t, x) if t < 0.3 + 1e-4 else 0 * x
        ),
    },
)


# Explore: factors between 1/N and 1


def _check_between(answer: Sequence[float]) -> str:
    """Compare the two powers of N with 1 and 1/2, within what a measurement can tell."""
    tied, untied = listed(answer, 2, "Answer with two numbers: p for tied layers, p for others.")
    if abs(tied - 0.5) < 0.1 and abs(untied - 1) < 0.1:
        raise WrongAnswer("These are the two powers, the other way round.")
    if abs(tied - 1) > 0.1:
        raise WrongAnswer(
            "With one W for all layers the output is (1 + N**-p W)^N x. Compare its norm at "
            "N = 64 and at N = 1024, with your p."
        )
    if abs(untied - 0.5) > 0.1:
        raise WrongAnswer(
            "Fresh layers push in independent directions. How large is a sum of N random pushes of "
            "length N**-p?"
        )
    return "Right: 1/N for tied layers, 1/sqrt(N) for independent ones."


BETWEEN = Exercise(
    id="residual-ex-between",
    check=_check_between,
    solution=(1.0, 0.5),
    wrong={
        "the same power": (1.0, 1.0),
        "the other way round": (0.5, 1.0),
        "no factor": (0.0, 0.0),
        "half of each": (0.5, 0.25),
        "one number": 1.0,
    },
)


EXERCISES = (COMPOUND, STACK, SCHEME, THRESHOLD, RINGS, TURN, BETWEEN)
