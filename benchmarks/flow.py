"""What does the density of a flow cost, with the trace in closed form?"""

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import Candidate, Row, agree, compare
from benchmarks.problems import TanhField, forward_backward, normal, rk4_loop, seeded
from companion import odeint

QUESTION = "What does a flow's change of log-density cost beside a trace by products?"
EXCLUDED = (
    "The plain loop takes the exact trace of the field's Jacobian by one vector-Jacobian product a "
    "dimension, as in most public code. The others know the trace of a network with one hidden "
    "layer in closed form: tr W2 diag(1 - tanh^2) W1. All agree to 1e-10 in double precision."
)
FULL = {"steps": 20}
TINY = {"steps": 2, "compiling": False}

BARS = {"companion": 0.50, "companion, compiled": 0.40}


class ByProducts(nn.Module):
    """Moves a point and its log-density; the trace by one product a dimension."""

    def __init__(self, field: TanhField) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor | float, z: Tensor) -> Tensor:
        with torch.enable_grad():
            y = z[:, :-1]
            y = y if y.requires_grad else y.requires_grad_()
            f = self.field(t, y)
            rows = (
                torch.autograd.grad(f[:, i].sum(), y, create_graph=True)[0][:, i]
                for i in range(y.shape[1])
            )
            return torch.cat([f, -sum(rows).unsqueeze(1)], dim=1)


class ClosedForm(nn.Module):
    """The same field; the trace in closed form."""

    def __init__(self, field: TanhField) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor | float, z: Tensor) -> Tensor:
        first, _, second = self.field.net
        hidden = torch.tanh(first(z[:, :-1]))
        diagonal = (second.weight.t() * first.weight).sum(1)
        trace = (1 - hidden.square()) @ diagonal
        return torch.cat([second(hidden), -trace.unsqueeze(1)], dim=1)


def run(rounds: int, steps: int, compiling: bool = True) -> list[Row]:
    agree(candidates(steps, torch.float64), rtol=1e-10)
    works = candidates(steps, torch.float32, compiling)
    agree(works, rtol=1e-3)  # compiles, so that no round pays for it
    return compare(f"flow, rk4, {steps} steps, forward + backward", works, rounds, BARS)


def candidates(steps: int, dtype: torch.dtype, compiling: bool = False) -> dict[str, Candidate]:
    field = seeded(TanhField, dtype)
    start = torch.cat([normal(256, 2, dtype=dtype), torch.zeros(256, 1, dtype=dtype)], dim=1)
    plain, closed = ByProducts(field), ClosedForm(field)
    options = {"method": "rk4", "steps": steps}
    solves = {
        "plain loop": lambda z: rk4_loop(plain, z, steps),
        "plain loop, closed form": lambda z: rk4_loop(closed, z, steps),
        "companion": lambda z: odeint(closed, z, [0.0, 1.0], flat=True, **options)[-1],
    }
    if compiling:
        solves["companion, compiled"] = lambda z: odeint(
            closed, z, [0.0, 1.0], compile=True, **options
        )[-1]
    params = list(field.parameters())
    return {name: partial(forward_backward, f, start, params) for name, f in solves.items()}
