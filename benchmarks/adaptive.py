"""How do adaptive solves compare with those of other libraries?"""

from functools import partial

import torch
import torchdiffeq
from torch import Tensor, nn

from benchmarks.harness import Candidate, Row, agree, compare
from benchmarks.peers import Jax, diffrax_solve, installed, torchode_solve, zuko_solve
from benchmarks.problems import (
    TanhField,
    dopri5_loop,
    forward,
    forward_backward,
    normal,
    rk4_loop,
    seeded,
)
from companion import counting, odeint
from companion.observe import saved_bytes

QUESTION = "What do adaptive solves and their gradients cost beside those of other libraries?"
EXCLUDED = (
    "All use dopri5 at a tolerance of 1e-6, relative and absolute. The plain loop is a textbook's, "
    "recorded by autograd. torchode gives each row its own steps. zuko's gradient and that of the "
    "checkpoint are exact for the accepted steps. With 100 outputs, the tolerance is 1e-5 and the "
    "time half as long, then both as elsewhere; the plain loop is rk4 with a step from output to "
    "output. Gradients agree to 1e-3 in double precision; the notes say how far they are from a "
    "solve at 1e-11. diffrax compiles the whole solve. Our field is a straight line of operations "
    "from its first evaluation on (`flat=True`)."
)
FULL = {"outputs": 100, "end": 100.0}
TINY = {"outputs": 3, "end": 1.0, "compiling": False}

TOLERANCE, LOOSE = 1e-6, 1e-5
BARS = {"checkpoint": 1.35, "checkpoint, compiled": 0.40}
KEPT = 20_000


def run(rounds: int, outputs: int, end: float, compiling: bool = True) -> list[Row]:
    ends = candidates(end, torch.float32, compiling)
    agree(candidates(end, torch.float64), rtol=1e-3)
    agree(ends, rtol=1e-3)  # compiles, so that no round pays for it
    errors = {name: f"gradient error {error(one, end):.1e}" for name, one in ends.items() if one}
    few, many = (partial(latent, outputs, *at) for at in ((end / 2, LOOSE), (end, TOLERANCE)))
    for work in (few, many):
        agree(work(torch.float64), rtol=1e-3)
    inside = f"{outputs} outputs inside steps, forward + backward"
    harder = f"the same, twice the time, tolerance {TOLERANCE:g}"
    theirs, ours = evaluations(end)
    adjoints = ("dopri5, adjoint, backward", "companion", "torchdiffeq", "evaluations")
    return [
        *compare("dopri5, forward", forwards(end), rounds, {"companion": 0.5}),
        *compare("dopri5, forward + backward", ends, rounds, BARS, errors),
        kept(end),
        Row(*adjoints, ours / theirs),
        *compare(inside, few(torch.float32), rounds, {"checkpoint": 0.55}),
        *compare(harder, many(torch.float32), rounds),
    ]


def solves(field: nn.Module, end: float) -> dict:
    t = torch.tensor([0.0, end], dtype=next(field.parameters()).dtype)
    at = {"rtol": TOLERANCE, "atol": TOLERANCE}

    def own(y: Tensor, **knobs) -> Tensor:
        return odeint(field, y, t, flat=True, **at, **knobs)[-1]

    found = {
        "plain loop": lambda y: dopri5_loop(field, y, end, TOLERANCE),
        "companion": own,
        "checkpoint": partial(own, gradient="checkpoint"),
        "checkpoint, compiled": partial(own, gradient="checkpoint", compile=True),
        "adjoint": partial(own, gradient="adjoint"),
        "torchdiffeq": lambda y: torchdiffeq.odeint(field, y, t, **at)[-1],
        "torchdiffeq's adjoint": lambda y: torchdiffeq.odeint_adjoint(field, y, t, **at)[-1],
        "torchode": lambda y: torchode_solve(field, y, t, TOLERANCE, TOLERANCE)[-1],
        "zuko": lambda y: zuko_solve(field, y, t, TOLERANCE, TOLERANCE),
    }
    return {name: f for name, f in found.items() if name not in PEERS or installed(name)}


PEERS = ("torchode", "zuko")


def forwards(end: float) -> dict[str, Candidate]:
    field, y0 = seeded(TanhField, torch.float32), normal(64, 2, dtype=torch.float32)
    found = solves(field, end)
    return {name: partial(forward, found[name], y0) for name in ("torchdiffeq", "companion")}


def candidates(
    end: float, dtype: torch.dtype, compiling: bool = False
) -> dict[str, Candidate | None]:
    field, y0 = seeded(TanhField, dtype), normal(64, 2, dtype=dtype)
    found, params = solves(field, end), list(field.parameters())
    if not compiling:
        del found["checkpoint, compiled"]
    runs: dict[str, Candidate | None] = {
        name: partial(forward_backward, solve, y0, params) for name, solve in found.items()
    }
    runs |= {name: None for name in PEERS if name not in runs}
    runs["diffrax"] = None
    if installed("diffrax"):
        jax = Jax(field, y0)
        runs["diffrax"] = jax.candidate(diffrax_solve(jax, end, None, TOLERANCE))
    return runs


def latent(outputs: int, end: float, tolerance: float, dtype: torch.dtype) -> dict[str, Candidate]:
    """The work of a latent ODE: one solve, read at many times."""
    field, y0 = seeded(TanhField, dtype), normal(64, 2, dtype=dtype)
    t = torch.linspace(0, end, outputs + 1, dtype=dtype)
    at = {"rtol": tolerance, "atol": tolerance}

    def grid(y: Tensor) -> Tensor:
        states = [y]
        for _ in range(outputs):
            states.append(rk4_loop(field, states[-1], 1, end / outputs))
        return torch.stack(states)

    found = {
        "plain rk4": grid,
        "companion": lambda y: odeint(field, y, t, flat=True, **at),
        "checkpoint": lambda y: odeint(field, y, t, flat=True, gradient="checkpoint", **at),
        "torchdiffeq": lambda y: torchdiffeq.odeint(field, y, t, **at),
    }
    params = list(field.parameters())
    return {name: partial(forward_backward, f, y0, params) for name, f in found.items()}


def error(candidate: Candidate, end: float) -> float:
    """Return the distance of a candidate's gradients from those of a solve at 1e-11."""
    field, y0 = seeded(TanhField, torch.float64), normal(64, 2, dtype=torch.float64)
    at = {"rtol": 1e-11, "atol": 1e-11}
    _, _, *exact = forward_backward(
        lambda y: odeint(field, y, [0.0, end], **at)[-1], y0, list(field.parameters())
    )
    _, _, *found = candidate()
    mine, right = (torch.cat([g.double().reshape(-1) for g in gs]) for gs in (found, exact))
    return float((mine - right).norm() / right.norm())


def kept(end: float) -> Row:
    """Count what the exact gradient of the accepted steps keeps, over what it may."""
    field, y0 = seeded(TanhField, torch.float32), normal(64, 2, dtype=torch.float32)
    y0.requires_grad_()
    with saved_bytes(exclude=list(field.parameters())) as saved:  # the start is kept too
        odeint(field, y0, [0.0, end], rtol=TOLERANCE, atol=TOLERANCE, gradient="checkpoint")
    work, note = "dopri5, forward + backward", f"{saved.total} bytes kept"
    return Row(work, "checkpoint", "20 kB", "bytes", saved.total / KEPT, bar=1.0, note=note)


def evaluations(end: float) -> tuple[int, int]:
    """Count the evaluations of the adjoint's backward solve: torchdiffeq's, ours."""
    field, t = seeded(TanhField, torch.float32), torch.tensor([0.0, end])
    y0, calls = normal(64, 2, dtype=torch.float32).requires_grad_(), []
    at = {"rtol": TOLERANCE, "atol": TOLERANCE}
    handle = field.register_forward_pre_hook(lambda *_: calls.append(1))
    ys = torchdiffeq.odeint_adjoint(field, y0, t, **at)
    before = len(calls)
    ys.square().mean().backward()
    handle.remove()
    with counting() as stats:
        ys = odeint(field, y0, t, gradient="adjoint", **at)
    ys.square().mean().backward()
    return len(calls) - before, stats.nfe_backward
