"""What do the gradient methods that store little cost in time?"""

from functools import partial

import torch
import torchdiffeq

from benchmarks.harness import Candidate, Row, agree, compare
from benchmarks.problems import TanhField, forward_backward, normal, rk4_loop, seeded
from companion import odeint

QUESTION = "What do the adjoint and checkpoints cost in time, beside backprop through a plain loop?"
EXCLUDED = (
    "torchdiffeq's rk4 is the 3/8 rule, with as many evaluations. The adjoint's gradient differs "
    "from that of the discretised loss by the scheme's order; all agree to 1e-5 in double "
    "precision, checkpoints to rounding."
)
FULL = {"steps": 100}
TINY = {"steps": 8}


def run(rounds: int, steps: int) -> list[Row]:
    precise = end_only(steps, torch.float64)
    agree(precise, rtol=1e-5)
    agree({name: precise[name] for name in ("plain loop", "checkpoint")}, rtol=1e-10)
    agree(many_outputs(steps, torch.float64, ends_only=True), rtol=1e-10)
    bars = {"adjoint": 2.2, "checkpoint": 1.6}
    return [
        *compare(
            f"rk4, {steps} steps, forward + backward", end_only(steps, torch.float32), rounds, bars
        ),
        *compare(
            f"adjoint, rk4, {steps} steps, forward + backward",
            many_outputs(steps, torch.float32),
            rounds,
            {f"{steps + 1} output times": 1.2},
        ),
    ]


def end_only(steps: int, dtype: torch.dtype) -> dict[str, Candidate]:
    field = seeded(TanhField, dtype)
    y0, t = normal(64, 2, dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)

    def solve(gradient, y):
        return odeint(field, y, t, method="rk4", steps=steps, gradient=gradient)[-1]

    def other(y):
        options = {"step_size": 1 / steps}
        return torchdiffeq.odeint_adjoint(field, y, t, method="rk4", options=options)[-1]

    solves = {
        "plain loop": lambda y: rk4_loop(field, y, steps),
        "checkpoint": partial(solve, "checkpoint"),
        "adjoint": partial(solve, "adjoint"),
        "torchdiffeq's adjoint": other,
    }
    params = list(field.parameters())
    return {name: partial(forward_backward, f, y0, params) for name, f in solves.items()}


def many_outputs(steps: int, dtype: torch.dtype, ends_only: bool = False) -> dict[str, Candidate]:
    """The same steps with an output at the two ends, or after every step.

    With ``ends_only`` the loss reads the last output alone, so that results can be compared.
    """
    field = seeded(TanhField, dtype)
    y0 = normal(64, 2, dtype=dtype)

    def solve(outputs, y):
        t = torch.linspace(0, 1, outputs, dtype=dtype)
        each = steps // (outputs - 1)
        ys = odeint(field, y, t, method="rk4", steps=each, gradient="adjoint")
        return ys[-1] if ends_only else ys

    params = list(field.parameters())
    return {
        f"{outputs} output times": partial(forward_backward, partial(solve, outputs), y0, params)
        for outputs in (2, steps + 1)
    }
