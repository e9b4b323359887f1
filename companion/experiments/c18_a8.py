r"""C18-A8: what happens to an error when a solve is run backwards?

Solving backwards is how the adjoint gets its states again. A field that contracts forwards expands
backwards: an error in the final state grows by exactly $e^\lambda$ for $\dot x = -\lambda x$. A
rotation at the same rate leaves errors as they are.
"""

import math

import torch
from torch import Tensor, nn

from companion import odeint
from companion.experiments.adjoint_common import relative_error
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.results import Claim, Findings

_ERROR = 1e-6


@experiment(
    id="C18-A8",
    title="Growth of an error when a contracting field is solved backwards",
    paper="Gholami et al. 2019, section 3; a critique of Chen et al. 2018",
    claims=("CL21",),
    tiers={
        "smoke": {"rates": (1.0, 5.0, 10.0, 20.0, 40.0), "steps": 200},
        "full": {"rates": (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0), "steps": 4000},
    },
)
def c18_a8(run: Run, *, rates: tuple[float, ...], steps: int) -> Findings:
    """Perturb the final state by 1e-6, solve backwards over unit time, compare the starts.

    Curves over ``rates``: ``growth_contraction`` and ``growth_rotation``, error at the start over
    error at the end; ``gradient_adjoint`` and ``gradient_checkpoint``, relative errors of
    dL/dlambda for x' = -lambda x: the adjoint with dopri5 at a tolerance of 1e-6, the checkpoint
    with ``steps`` steps of rk4.
    """

    def measure(part: Part, rate: float) -> list[float]:
        return [
            _growth(Linear(rate, False, run.device), steps),
            _growth(Linear(rate, True, run.device), steps),
            _gradient_error(Linear(rate, False, run.device), steps, "adjoint"),
            _gradient_error(Linear(rate, False, run.device), steps, "checkpoint"),
        ]

    table = list(run.map(measure, {f"rate {rate:g}": (rate,) for rate in rates}).values())
    names = ("growth_contraction", "growth_rotation", "gradient_adjoint", "gradient_checkpoint")
    curves = dict(zip(names, zip(*table, strict=True), strict=True))
    worst = max(
        abs(growth * math.exp(-rate) - 1)
        for growth, rate in zip(curves["growth_contraction"], rates, strict=True)
    )
    claims = [
        Claim("CL21", "largest relative deviation of an error's growth from exp(lambda)", worst,
              high=0.01),
        Claim("CL21", "growth of an error under rotation", max(curves["growth_rotation"]),
              low=0.99, high=1.01),
    ]  # fmt: skip
    scalars = {f"gradient_adjoint_{rate:g}": row[2] for rate, row in zip(rates, table, strict=True)}
    return Findings({"worst": worst, **scalars}, {"rates": rates, **curves}, claims)


class Linear(nn.Module):
    r"""The field $-\lambda x$ in the plane, or $\lambda$ times a rotation by a right angle."""

    def __init__(self, rate: float, rotates: bool, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64, device=device))
        self.rotates = rotates

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate the field."""
        if self.rotates:
            x = torch.stack([x[..., 1], -x[..., 0]], dim=-1)
        return -self.rate * x


def _start(field: Linear) -> Tensor:
    return torch.tensor([1.0, 0.0], dtype=torch.float64, device=field.rate.device)


def _growth(field: Linear, steps: int) -> float:
    """Return how much larger an error of the end is at the start, reached by solving back."""
    with torch.no_grad():
        end = odeint(field, _start(field), (0.0, 1.0), method="rk4", steps=steps)[-1]
        ends = torch.stack([end, end + end.new_tensor([_ERROR, 0.0])])
        starts = odeint(field, ends, (1.0, 0.0), method="rk4", steps=steps)[-1]
    return float(torch.linalg.vector_norm(starts[1] - starts[0])) / _ERROR


def _gradient_error(field: Linear, steps: int, gradient: str) -> float:
    r"""Return the relative error of $dL/d\lambda$ for $L = x_1(1)$, which is $-e^{-\lambda}$."""
    method = "dopri5" if gradient == "adjoint" else "rk4"
    x = odeint(field, _start(field), (0.0, 1.0), method=method, rtol=1e-6, atol=1e-6, steps=steps,
               gradient=gradient)[-1]  # fmt: skip
    got = torch.autograd.grad(x[0], (field.rate,))
    return relative_error(got, (-torch.exp(-field.rate.detach()),))
