"""How do adaptive solves compare with torchdiffeq's?"""

from functools import partial

import torch
import torchdiffeq
from torch import Tensor

from benchmarks.harness import Candidate, Row, agree, compare
from benchmarks.problems import TanhField, forward_backward, normal, seeded
from companion import counting, odeint

QUESTION = "What do adaptive solves and their adjoint cost beside torchdiffeq's?"
EXCLUDED = (
    "Both use dopri5 and the same tolerances, 1e-6 and 1e-8, with controllers of their own. The "
    "evaluations of backward solves are counted apart. All gradients agree to 1e-4 in double "
    "precision."
)
FULL = {"outputs": 100, "end": 10.0}
TINY = {"outputs": 3, "end": 0.5}

TOLERANCES = {"rtol": 1e-6, "atol": 1e-8}


def run(rounds: int, outputs: int, end: float) -> list[Row]:
    rows = []
    for name, count, make in (
        ("dopri5, backprop", 2, backprop),
        ("dopri5, adjoint, 2 output times", 2, adjoint),
        (f"dopri5, adjoint, {outputs} output times", outputs, adjoint),
    ):
        t = torch.linspace(0, end, count, dtype=torch.float64)
        agree(make(t, torch.float64), rtol=1e-4)
        rows += compare(f"{name}, forward + backward", make(t.float(), torch.float32), rounds)
        if make is adjoint:
            theirs, ours = evaluations(t.float(), torch.float32)
            rows.append(
                Row(f"{name}, backward", "companion", "torchdiffeq", "evaluations", ours / theirs)
            )
    return rows


def backprop(t: Tensor, dtype: torch.dtype) -> dict[str, Candidate]:
    field = seeded(TanhField, dtype)
    return _candidates(field, t, dtype, torchdiffeq.odeint, "backprop")


def adjoint(t: Tensor, dtype: torch.dtype) -> dict[str, Candidate]:
    field = seeded(TanhField, dtype)
    return _candidates(field, t, dtype, torchdiffeq.odeint_adjoint, "adjoint")


def _candidates(field, t: Tensor, dtype: torch.dtype, other, gradient) -> dict[str, Candidate]:
    y0, params = normal(64, 2, dtype=dtype), list(field.parameters())
    solves = {
        "torchdiffeq": lambda y: other(field, y, t, **TOLERANCES),
        "companion": lambda y: odeint(field, y, t, gradient=gradient, **TOLERANCES),
    }
    return {name: partial(forward_backward, f, y0, params) for name, f in solves.items()}


def evaluations(t: Tensor, dtype: torch.dtype) -> tuple[int, int]:
    """Count the evaluations of the backward solve: torchdiffeq's, ours."""
    field = seeded(TanhField, dtype)
    y0, calls = normal(64, 2, dtype=dtype).requires_grad_(), []
    handle = field.register_forward_pre_hook(lambda *_: calls.append(1))
    ys = torchdiffeq.odeint_adjoint(field, y0, t, **TOLERANCES)
    before = len(calls)
    ys.square().mean().backward()
    handle.remove()
    with counting() as stats:
        ys = odeint(field, y0, t, gradient="adjoint", **TOLERANCES)
    ys.square().mean().backward()
    return len(calls) - before, stats.nfe_backward
