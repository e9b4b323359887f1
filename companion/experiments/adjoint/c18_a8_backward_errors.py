r"""C18-A8: what happens to an error when a solve is run backwards?

Solving backwards is how the adjoint gets its states again. A field that contracts forwards expands
backwards: an error in the final state grows by exactly $e^\lambda$ for $\dot x = -\lambda x$. A
rotation at the same rate leaves errors as they are.

Does the gradient suffer? For $\dot x = -\lambda x$ it does not: the adjoint decays as fast as the
error of the state grows, and the gradient reads their product. A braking body, $\dot x = v$,
$\dot v = -\lambda v$, has a fast error and a slow adjoint: there it does.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from companion import odeint
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.adjoint.random_field import relative_error

_ERROR = 1e-6


@experiment(
    "C18-A8",
    "Growth of an error when a contracting field is solved backwards",
    paper="Gholami et al. 2019, section 3; a critique of Chen et al. 2018",
    full={"rates": (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0), "steps": 4000},
    tiny={"rates": (10.0, 20.0), "steps": 100},
    claims=(
        ("CL21", "worst", None, 0.01,
         "largest relative deviation of an error's growth from exp(lambda)"),
        ("CL21", "rotation", 0.99, 1.01, "growth of an error under rotation"),
    ),
)  # fmt: skip
def c18_a8(
    run: Run, *, rates: tuple[float, ...] = (1.0, 5.0, 10.0, 20.0, 40.0), steps: int = 200
) -> Findings:
    """Perturb the final state by 1e-6, solve backwards over unit time, compare the starts.

    Curves over ``rates``: ``growth_contraction`` and ``growth_rotation``, error at the start over
    error at the end; for a braking body and one solve with dopri5 at a tolerance of 1e-6, the
    relative errors ``forward`` of x(1) and ``gradient_adjoint``, ``gradient_backprop`` of
    dx(1)/dlambda. Scalars: these three at every rate, and what decides claims.
    """

    def measure(part: Part, rate: float) -> dict[str, float]:
        braking = Braking(rate, run.device)
        forward, by_backprop = _braking_errors(braking, "backprop")
        return {
            "growth_contraction": _growth(linear(rate, False), steps, run.device),
            "growth_rotation": _growth(linear(rate, True), steps, run.device),
            "forward": forward,
            "gradient_adjoint": _braking_errors(braking, "adjoint")[1],
            "gradient_backprop": by_backprop,
        }

    curves = named(grids(run, measure, rate=rates))
    grown = zip(curves["growth_contraction"], rates, strict=True)
    scalars = {
        "worst": max(abs(growth * math.exp(-rate) - 1) for growth, rate in grown),
        "rotation": curves["growth_rotation"].max(),
    }
    for name in ("forward", "gradient_adjoint", "gradient_backprop"):
        values = zip(rates, curves[name], strict=True)
        scalars |= {f"{name}_{rate:g}": value for rate, value in values}
    return Findings(scalars, {"rates": rates, **curves})


def linear(rate: float, rotates: bool) -> Callable[[Tensor, Tensor], Tensor]:
    r"""Return the field $-\lambda x$ in the plane, or $\lambda$ times a turn by a right angle."""
    if rotates:
        return lambda t, x: rate * torch.stack([-x[..., 1], x[..., 0]], dim=-1)
    return lambda t, x: -rate * x


class Braking(nn.Module):
    r"""A body that brakes: the field $(v, -\lambda v)$ of the state $(x, v)$."""

    def __init__(self, rate: float, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64, device=device))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the velocity and the braking."""
        v = x[..., 1]
        return torch.stack([v, -self.rate * v], dim=-1)


def _growth(field: Callable[[Tensor, Tensor], Tensor], steps: int, device: torch.device) -> float:
    """Return how much larger an error of the end is at the start, reached by solving back."""
    start = torch.tensor([1.0, 0.0], dtype=torch.float64, device=device)
    end = odeint(field, start, (0.0, 1.0), method="rk4", steps=steps)[-1]
    ends = torch.stack([end, end + end.new_tensor([_ERROR, 0.0])])
    starts = odeint(field, ends, (1.0, 0.0), method="rk4", steps=steps)[-1]
    return float(torch.linalg.vector_norm(starts[1] - starts[0])) / _ERROR


def _braking_errors(field: Braking, gradient: str) -> tuple[float, float]:
    r"""Return the relative errors of $x(1)$ and of $dx(1)/d\lambda$, from $x = 0$ and $v = 1$.

    Closed form: $x(1) = (1 - e^{-\lambda}) / \lambda$.
    """
    start = torch.tensor([0.0, 1.0], dtype=torch.float64, device=field.rate.device)
    x = odeint(field, start, (0.0, 1.0), method="dopri5", rtol=1e-6, atol=1e-6,
               gradient=gradient)[-1, 0]  # fmt: skip
    got = torch.autograd.grad(x, (field.rate,))
    rate = field.rate.detach()
    exact = -torch.expm1(-rate) / rate
    slope = (torch.exp(-rate) - exact) / rate
    return relative_error((x.detach(),), (exact,)), relative_error(got, (slope,))
