"""What does a solve with fixed steps cost, by every gradient, beside peers?"""

from functools import partial

import torch
import torchdiffeq
from torch import Tensor

from benchmarks.harness import Candidate, Row, agree, compare
from benchmarks.peers import Jax, diffrax_solve, installed
from benchmarks.problems import TanhField, forward, forward_backward, normal, rk4_loop, seeded
from companion import odeint

QUESTION = "What does a solve with fixed steps cost over the loop one would write by hand?"
EXCLUDED = (
    "torchdiffeq's rk4 is the 3/8 rule: another four-stage scheme, with as many evaluations. "
    "diffrax compiles the whole solve; its compilation and ours are not counted. The adjoint's "
    "gradient differs from that of the discretised loss by the scheme's order; all agree to 1e-5 "
    "in double precision, exact gradients to 1e-10. The loop checks nothing. Our field is a "
    "straight line of operations from its first evaluation on (`flat=True`); by default it is one "
    "after many. The row with modules calls them each time."
)
FULL = {"steps": 100}
TINY = {"steps": 8, "compiling": False}

GRADIENTS = {"companion": "backprop", "checkpoint": "checkpoint", "adjoint": "adjoint"}
MODULES = "companion, modules"
BARS = {"companion": 0.85, "companion, compiled": 0.30, "checkpoint": 1.6, "adjoint": 2.2}


def run(rounds: int, steps: int, compiling: bool = True) -> list[Row]:
    both = f"rk4, {steps} steps, forward + backward"
    precise, names = candidates(steps, torch.float64), list(candidates(steps, torch.float64))
    approximate = ("adjoint", "torchdiffeq", "torchdiffeq's adjoint")
    agree({name: precise[name] for name in names if name not in approximate}, rtol=1e-10)
    agree(precise, rtol=1e-5)
    agree(many_outputs(steps, torch.float64, ends_only=True), rtol=1e-10)
    works = candidates(steps, torch.float32, compiling)
    agree(works, rtol=1e-4)  # compiles, so that no round pays for it
    peer = {("companion, compiled", "diffrax"): 1.5} if compiling else {}
    return [
        *compare(f"rk4, {steps} steps, forward", forwards(steps), rounds, {MODULES: 1.10}),
        *compare(both, works, rounds, BARS, over=peer),
        *compare(
            f"adjoint, rk4, {steps} steps, forward + backward",
            many_outputs(steps, torch.float32),
            rounds,
            {f"{steps + 1} output times": 1.2},
        ),
    ]


def solves(field, steps: int) -> dict:
    t = torch.tensor([0.0, 1.0], dtype=next(field.parameters()).dtype)
    options = {"step_size": 1 / steps}

    def own(gradient, y, flat=True, **knobs):
        knobs |= {"steps": steps, "flat": flat}
        return odeint(field, y, t, method="rk4", gradient=gradient, **knobs)[-1]

    return {
        "plain loop": lambda y: rk4_loop(field, y, steps),
        **{name: partial(own, gradient) for name, gradient in GRADIENTS.items()},
        MODULES: partial(own, "backprop", flat=False),
        "companion, compiled": partial(own, "backprop", compile=True),
        "torchdiffeq": lambda y: torchdiffeq.odeint(field, y, t, method="rk4", options=options)[-1],
        "torchdiffeq's adjoint": lambda y: torchdiffeq.odeint_adjoint(
            field, y, t, method="rk4", options=options
        )[-1],
    }


def forwards(steps: int) -> dict[str, Candidate]:
    field, y0 = seeded(TanhField, torch.float32), normal(64, 2, dtype=torch.float32)
    found = solves(field, steps)
    names = ("plain loop", "companion", MODULES, "torchdiffeq")
    return {name: partial(forward, found[name], y0) for name in names}


def candidates(
    steps: int, dtype: torch.dtype, compiling: bool = False
) -> dict[str, Candidate | None]:
    field, y0 = seeded(TanhField, dtype), normal(64, 2, dtype=dtype)
    found = solves(field, steps)
    if not compiling:
        del found["companion, compiled"]
    params = list(field.parameters())
    runs: dict[str, Candidate | None] = {
        name: partial(forward_backward, solve, y0, params) for name, solve in found.items()
    }
    runs["diffrax"] = None
    if installed("diffrax"):
        jax = Jax(field, y0)
        runs["diffrax"] = jax.candidate(diffrax_solve(jax, 1.0, steps))
    return runs


def many_outputs(steps: int, dtype: torch.dtype, ends_only: bool = False) -> dict[str, Candidate]:
    """The same steps of the adjoint with an output at the two ends, or after every step.

    With ``ends_only`` the loss reads the last output alone, so that results can be compared.
    """
    field = seeded(TanhField, dtype)
    y0 = normal(64, 2, dtype=dtype)

    def solve(outputs: int, y: Tensor) -> Tensor:
        t = torch.linspace(0, 1, outputs, dtype=dtype)
        each = steps // (outputs - 1)
        ys = odeint(field, y, t, method="rk4", steps=each, gradient="adjoint")
        return ys[-1] if ends_only else ys

    params = list(field.parameters())
    return {
        f"{outputs} output times": partial(forward_backward, partial(solve, outputs), y0, params)
        for outputs in (2, steps + 1)
    }
