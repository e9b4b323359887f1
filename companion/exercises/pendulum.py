"""Exercises of the chapter "Did it learn the equation or the data?"."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from scipy.special import ellipk
from torch import Tensor

from companion import odeint
from companion.data import pendulum
from companion.exercises.checking import Exercise, WrongAnswer, close, listed, number, tensor
from companion.observe import fit_slope
from companion.schemes import get_scheme

__all__ = ["ERROR", "EXERCISES", "HEUN", "PERIOD", "RECOVER", "TRAIN"]

F64 = torch.float64
Field = Callable[[Tensor], Tensor]


# Warm-up: the period


def _check_period(answer: Callable[[float], Any]) -> str:
    """Compare ``answer(rho0)`` with the exact period, for small and large swings."""
    for rho0 in (0.5, 2.0, -2.9):
        got = number(answer(rho0), _ONE_NUMBER)
        wanted = pendulum.period(rho0)
        if not close(got, wanted):
            raise WrongAnswer(f"At rho0 = {rho0:g} that is {got:.4f} s. {_period_hint(got, rho0)}")
    return "Right: the wider the swing, the longer it takes."


def _period_hint(got: float, rho0: float) -> str:
    k, omega = math.sin(rho0 / 2), math.sqrt(9.81)
    if math.isclose(got, 2 * math.pi / omega, rel_tol=1e-6):
        return "That is the period of small swings. It depends on rho0."
    if math.isclose(got, 4 * ellipk(abs(k)) / omega, rel_tol=1e-6):
        return "SciPy's ellipk takes the parameter m = k^2, not the modulus k."
    if math.isclose(got * 4, pendulum.period(rho0), rel_tol=1e-6):
        return "K is a quarter of the way round: the time from rest to the lowest point."
    if math.isclose(got * 2, pendulum.period(rho0), rel_tol=1e-6):
        return "After 2K the pendulum rests on the other side. When is it back?"
    if math.isnan(got):
        return "Which root is taken of a negative number? The frequency is sqrt(9.81)."
    return (
        "sn has the period 4 K(m), with m = sin(rho0 / 2)^2, and its argument runs at sqrt(9.81)."
    )


_ONE_NUMBER = "Return one number."


PERIOD = Exercise(
    id="pendulum-ex-period",
    check=_check_period,
    solution=lambda rho0: 4 * ellipk(math.sin(rho0 / 2) ** 2) / math.sqrt(9.81),
    wrong={
        "small swings": lambda rho0: 2 * math.pi / math.sqrt(9.81),
        "modulus for parameter": lambda rho0: 4 * ellipk(abs(math.sin(rho0 / 2))) / math.sqrt(9.81),
        "a quarter": lambda rho0: ellipk(math.sin(rho0 / 2) ** 2) / math.sqrt(9.81),
        "a half": lambda rho0: 2 * ellipk(math.sin(rho0 / 2) ** 2) / math.sqrt(9.81),
        "the whole angle": lambda rho0: 4 * ellipk(math.sin(rho0) ** 2) / math.sqrt(9.81),
        "frequency squared": lambda rho0: 4 * ellipk(math.sin(rho0 / 2) ** 2) / 9.81,
        "a negative gravity": lambda rho0: math.nan,
        "two numbers": lambda rho0: (rho0, rho0),
        "unfilled": lambda rho0: ...,
    },
)


# Core: the error of a rollout

Step = Callable[[Tensor, float], Tensor]


def _check_error(answer: Callable[[Step, float, float], Any]) -> str:
    """Run ``answer(step, h, time)`` with three schemes; compare the error, count the steps."""
    for method, h, time in (("euler", 0.1, 0.3), ("midpoint", 0.05, 1.15), ("rk4", 0.1, 0.7)):
        taken: list[float] = []

        def step(x: Tensor, h: float, method: str = method, taken: list[float] = taken) -> Tensor:
            taken.append(h)
            return get_scheme(method).step(lambda i, y: pendulum.field(y), x, h)

        got, steps = number(answer(step, h, time), _ONE_NUMBER), len(taken)
        wanted = _error(step, h, time)
        if not math.isclose(got, wanted, rel_tol=1e-6):
            hint = _error_hint(got, wanted, steps, round(time / h))
            raise WrongAnswer(f"{method}, step {h:g}, time {time:g}: {got:.3g}. {hint}")
    return "Right: the distance from the truth at the end, after the right number of steps."


def _error_hint(got: float, wanted: float, steps: int, right: int) -> str:
    if steps == 1:
        return "One step gives a local error. Roll the step out to the time asked."
    if steps != right:
        return (
            f"You took {steps} steps, not {right}. In floating point 0.3 / 0.1 is below 3: round."
        )
    if math.isclose(got, wanted**2, rel_tol=1e-6):
        return "That is the square, as the paper prints it. It has twice the slope; take the norm."
    if math.isclose(got, wanted / math.sqrt(2), rel_tol=1e-6):
        return "The norm is the root of the sum of the squares, not of their mean."
    return (
        "The number of steps is right. The norm is the root of the sum of squares, over both "
        "entries of x - pendulum.exact(time)."
    )


def _error(step: Step, h: float, time: float) -> float:
    return _distance(step, h, time, round(time / h))


def _distance(step: Step, h: float, time: float, steps: int) -> float:
    x = pendulum.exact(0.0)
    for _ in range(steps):
        x = step(x, h)
    return float((x - pendulum.exact(time)).norm())


def _angle_alone(step: Step, h: float, time: float) -> float:
    x = pendulum.exact(0.0)
    for _ in range(round(time / h)):
        x = step(x, h)
    return float((x - pendulum.exact(time))[0].abs())


ERROR = Exercise(
    id="pendulum-ex-error",
    check=_check_error,
    solution=_error,
    wrong={
        "squared": lambda step, h, time: _error(step, h, time) ** 2,
        "rounded down": lambda step, h, time: _distance(step, h, time, int(time / h)),
        "one step too many": lambda step, h, time: _distance(step, h, time, round(time / h) + 1),
        "one step": lambda step, h, time: _distance(step, h, h, 1),
        "against the start": lambda step, h, time: _distance(step, h, 0.0, round(time / h)),
        "the angle alone": _angle_alone,
        "the mean of squares": lambda step, h, time: _error(step, h, time) / math.sqrt(2),
        "no step": lambda step, h, time: 0.0,
        "unfilled": lambda step, h, time: ...,
    },
)


# Core: the inverse modified equation of Heun's method


def _square(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return -(x**2), -2 * x, torch.full_like(x, -2.0)


def _decay(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.exp(-x), -torch.exp(-x), torch.exp(-x)


def _square_flow(x: Tensor, h: float) -> Tensor:
    return x / (1 + h * x)


def _decay_flow(x: Tensor, h: float) -> Tensor:
    return torch.log(torch.exp(x) + h)


LINES = ((_square, _square_flow), (_decay, _decay_flow))
"""Fields of the line with their first two derivatives, and their exact flows."""


def _check_heun(answer: Any) -> str:
    """Correct two fields by the terms of ``answer = (a, b)``, and fit orders of Heun's error."""
    a, b = listed(answer, 2, "Answer with two numbers, (a, b).")
    worst = min(_local_order(field, flow, a, b) for field, flow in LINES)
    if worst < 3.7:
        raise WrongAnswer(
            f"With these terms the error of one step falls like h^{worst:.1f}, and it should like "
            f"h^4. {_heun_hint(a, b)}"
        )
    return f"Right: with these terms the error of one step falls like h^{worst:.1f}."


def _heun_hint(a: float, b: float) -> str:
    if math.isclose(a, -1 / 12, rel_tol=0.01) and math.isclose(b, 1 / 6, rel_tol=0.01):
        return "Close: give fractions."
    if math.isclose(a, 1 / 24, rel_tol=1e-6) and math.isclose(b, 1 / 6, rel_tol=1e-6):
        return "Those are the midpoint method's."
    if math.isclose(a, 1 / 12, rel_tol=1e-6) and math.isclose(b, -1 / 6, rel_tol=1e-6):
        return (
            "Those are the terms of the method minus those of the flow. The field makes up for it."
        )
    if math.isclose(a, 1 / 4, rel_tol=1e-6) or math.isclose(a, -1 / 4, rel_tol=1e-6):
        return "The flow has a term h^3 f''(f, f) too, with 1/6."
    return "Expand f(x + h f) to h^2, and compare the terms of h^3 with those of the flow."


def _local_order(
    field: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    flow: Callable[[Tensor, float], Tensor],
    a: float,
    b: float,
) -> float:
    """Return the fitted order of one step's error, with the corrected field."""
    x, sizes, errors = torch.tensor(0.7, dtype=F64), (0.08, 0.04, 0.02, 0.01), []
    for h in sizes:

        def corrected(i: int, x: Tensor, h: float = h) -> Tensor:
            f, df, ddf = field(x)
            return f + h**2 * (a * ddf * f**2 + b * df**2 * f)

        end = get_scheme("heun").step(corrected, x, h)
        errors.append(float((end - flow(x, h)).abs()) + 1e-300)
    return fit_slope(sizes, errors).value


HEUN = Exercise(
    id="pendulum-ex-heun",
    check=_check_heun,
    solution=(-1 / 12, 1 / 6),
    wrong={
        "midpoint's": (1 / 24, 1 / 6),
        "the other sign": (1 / 12, -1 / 6),
        "the flow alone": (1 / 6, 1 / 6),
        "the method alone": (-1 / 4, 0),
        "exchanged": (1 / 6, -1 / 12),
        "rounded": (-0.0833, 0.1667),
        "right for one field only": (1 / 12, 0),
        "one number": (1 / 6,),
        "a word": "heun",
        "unfilled": (..., ...),
    },
)


# Core: train a network that has learnt the equation

Learner = Callable[[Tensor, Tensor, float], Any]


def _check_train(answer: Learner) -> str:
    """Let ``answer(now, later, h)`` learn a field; solve it with half the step, from new states."""
    drawn = torch.Generator().manual_seed(0)
    now, later = pendulum.region(200, 0.1, amplitude=2.0, generator=drawn)
    others, _ = pendulum.region(100, 0.1, amplitude=1.5, generator=drawn)
    field = answer(now.clone(), later.clone(), 0.1)
    if not callable(field):
        raise WrongAnswer("Return the learnt field, a function of states of shape (n, 2).")
    hint = "The field should return a velocity for every state, of the same shape."
    with torch.no_grad():
        tensor(field(others.clone()), others.shape, hint)
        found = _solved(field, others, 0.05)
        wanted = _solved(pendulum.field, others, 0.01)
    off = float((found - wanted).norm() / wanted.norm())
    if not off < 0.02:
        raise WrongAnswer(_train_hint(off))
    return f"Right: with half the step your network is {off:.2%} off after 0.8 s."


def _solved(field: Field, x: Tensor, h: float) -> Tensor:
    def velocity(t: Tensor | float, y: Tensor) -> Tensor:
        return torch.as_tensor(field(y), dtype=y.dtype)

    end: Tensor = odeint(velocity, x, [0.0, 0.8], method="rk4", steps=round(0.8 / h))[-1]
    return end


def _train_hint(off: float) -> str:
    where = f"With half the step it is {off:.1%} off after 0.8 s, and should be below 2 %."
    if off > 0.5:
        return f"{where} That is far: has the network been trained?"
    if off > 0.15:
        return (
            f"{where} The chord (later - now) / h is no velocity, nor is what Euler's step learns."
        )
    return f"{where} Put the network inside a step of higher order, or train it longer."


def _trained(method: str, now: Tensor, later: Tensor, h: float, steps: int) -> Field:
    drawn = torch.Generator().manual_seed(0)
    sizes = ((0.5, (32, 2)), (1.0, (32,)), (0.1, (2, 32)))
    W, b, A = (s * torch.randn(n, generator=drawn, dtype=F64) for s, n in sizes)
    weights = [w.requires_grad_() for w in (W, b, A)]

    def field(x: Tensor) -> Tensor:
        return torch.tanh(x @ W.T + b) @ A.T

    optimiser = torch.optim.LBFGS(
        weights, max_iter=steps, history_size=50, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        end = get_scheme(method).step(lambda i, x: field(x), now, h)
        loss = (end - later).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return field


TRAIN = Exercise(
    id="pendulum-ex-train",
    check=_check_train,
    solution=lambda now, later, h: _trained("rk4", now, later, h, 300),
    wrong={
        "inside Euler's method": lambda now, later, h: _trained("euler", now, later, h, 60),
        "inside the midpoint rule": lambda now, later, h: _trained("midpoint", now, later, h, 120),
        "untrained": lambda now, later, h: _trained("rk4", now, later, h, 1),
        "speeds alone": lambda now, later, h: lambda x: x[..., 1],
        "the slopes of the chords": lambda now, later, h: (later - now) / h,
        "unfilled": lambda now, later, h: ...,
    },
)


# Open: the equation out of a discrete model


def _van_der_pol(x: Tensor) -> Tensor:
    position, speed = x.unbind(-1)
    return torch.stack([speed, (1 - position**2) * speed - position], dim=-1)


SYSTEMS: dict[str, Field] = {"pendulum": pendulum.field, "Van der Pol": _van_der_pol}
Model = Callable[[Tensor], Tensor]
Recovery = Callable[[Model, Tensor, float], Any]


def _check_recover(answer: Recovery) -> str:
    """Run ``answer(step, x, h)`` on two perfect discrete models, and compare with their fields."""
    x, _ = pendulum.region(64, 0.1, amplitude=1.0, generator=torch.Generator().manual_seed(0))
    errors: dict[float, float] = {}
    for name, field in SYSTEMS.items():
        errors = {h: _recovery_error(answer, field, x, h) for h in (0.1, 0.05)}
        if errors[0.1] > 0.04:
            raise WrongAnswer(f"{name}: off by {errors[0.1]:.1%} with h = 0.1. {_RECOVER_HINT}")
        if errors[0.05] > errors[0.1] / 3:
            raise WrongAnswer(
                f"{name}: off by {errors[0.1]:.2%} with h = 0.1 and by {errors[0.05]:.2%} with "
                "h = 0.05. The error should fall to less than a third."
            )
    order = math.log2(errors[0.1] / errors[0.05])
    return f"Right: off by {errors[0.1]:.2%}, and of order {order:.1f}. How far can you go?"


_RECOVER_HINT = (
    "(step(x) - x) / h alone is off by h/2 G'G. Either subtract that, or take more steps and "
    "differentiate the polynomial through the states."
)


def _recovery_error(answer: Recovery, field: Field, x: Tensor, h: float) -> float:
    def step(x: Tensor) -> Tensor:
        end: Tensor = odeint(lambda t, y: field(y), x, [0.0, h], method="rk4", steps=16)[-1]
        return end

    stopped = None
    try:
        found = answer(step, x.clone(), h)
    except RuntimeError as error:
        stopped = str(error)
    if stopped is not None:
        raise WrongAnswer(
            f"Your answer raises RuntimeError: {stopped}. Differentiate step with torch.func.jvp "
            "or with autograd; torch.func.vmap does not go through it."
        )
    got = tensor(found, x.shape, "Return a tensor shaped like x: the field at every state.")
    truth = field(x)
    return float((got - truth).norm() / truth.norm())


def _recover(step: Model, x: Tensor, h: float) -> Tensor:
    states = [x]
    for _ in range(4):
        states.append(step(states[-1]))
    weights = (-25, 48, -36, 16, -3)
    return sum((w * y for w, y in zip(weights, states, strict=True)), torch.zeros_like(x)) / (
        12 * h
    )


RECOVER = Exercise(
    id="pendulum-ex-recover",
    check=_check_recover,
    solution=_recover,
    wrong={
        "the discrete model's own field": lambda step, x, h: (step(x) - x) / h,
        "the wrong sign": lambda step, x, h: -_recover(step, x, h),
        "two steps in a line": lambda step, x, h: (step(step(x)) - x) / (2 * h),
        "the pendulum's field, looked up": lambda step, x, h: pendulum.field(x),
        "no division by h": lambda step, x, h: step(x) - x,
        "a number": lambda step, x, h: 0.0,
        "mapped over the states": lambda step, x, h: torch.func.vmap(torch.func.jacrev(step))(x),
        "a call without h": lambda step, x: step(x) - x,
        "unfilled": lambda step, x, h: ...,
    },
)  # fmt: skip

EXERCISES = (PERIOD, ERROR, HEUN, TRAIN, RECOVER)
