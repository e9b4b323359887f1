"""What does `odeint` add to the steps themselves?"""

from functools import partial

import torch
import torchdiffeq

from benchmarks.harness import Candidate, Row, agree, compare
from benchmarks.problems import TanhField, forward, forward_backward, normal, rk4_loop, seeded
from companion import odeint

QUESTION = "What does a solve with fixed steps cost over the loop one would write by hand?"
EXCLUDED = (
    "torchdiffeq's rk4 is the 3/8 rule: another four-stage scheme, with as many evaluations and "
    "as many steps. The loop checks nothing."
)
FULL = {"steps": 100}
TINY = {"steps": 2}


def run(rounds: int, steps: int) -> list[Row]:
    bars = {"companion": 1.10}
    rows = []
    for name, run_one in (("forward", forward), ("forward + backward", forward_backward)):
        precise = candidates(run_one, steps, torch.float64)
        agree({name: precise[name] for name in ("plain loop", "companion")}, rtol=1e-12)
        agree({name: precise[name] for name in ("companion, 3/8 rule", "torchdiffeq")}, rtol=1e-12)
        rows += compare(
            f"rk4, {steps} steps, {name}", candidates(run_one, steps, torch.float32), rounds, bars
        )
    return rows


def candidates(run_one, steps: int, dtype: torch.dtype) -> dict[str, Candidate]:
    field = seeded(TanhField, dtype)
    y0, t = normal(64, 2, dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)
    options = {"step_size": 1 / steps}
    solves = {
        "plain loop": lambda y: rk4_loop(field, y, steps),
        "companion": lambda y: odeint(field, y, t, method="rk4", steps=steps)[-1],
        "companion, 3/8 rule": lambda y: odeint(field, y, t, method="rk4_38", steps=steps)[-1],
        "torchdiffeq": lambda y: torchdiffeq.odeint(field, y, t, method="rk4", options=options)[-1],
    }
    params = () if run_one is forward else (list(field.parameters()),)
    return {name: partial(run_one, solve, y0, *params) for name, solve in solves.items()}
