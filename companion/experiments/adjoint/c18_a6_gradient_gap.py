"""C18-A6: how far is the adjoint's gradient from the gradient of the discretised loss?

Backprop differentiates the computed steps. The adjoint differentiates the equation and then takes
steps. Both tend to the true gradient; at a finite number of steps they are two vectors.
"""

import torch

from companion import odeint
from companion.experiments.adjoint.random_field import TanhField, relative_error
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.observe import fit_slope
from companion.results import Claim, Findings

_ORDERS = {"euler": 1, "midpoint": 2, "heun": 3, "rk4": 4}
"""The order of the difference, by scheme."""


@experiment(
    "C18-A6",
    "Adjoint minus backprop against the number of steps",
    paper="not in the papers",
    claims=("C18-A6",),
    full={"fields": 20, "steps": (8, 16, 32, 64, 128)},
)
def c18_a6(run: Run, *, fields: int = 5, steps: tuple[int, ...] = (8, 16, 32, 64)) -> Findings:
    """Compare the two gradients of the parameters for four schemes.

    Curves: ``steps``; for each scheme ``difference_SCHEME`` of shape ``(steps, fields)``, the norm
    of the difference relative to backprop's gradient. Scalars: ``slope_SCHEME``, fitted to the
    geometric mean over fields against the number of steps, and ``slope_error_SCHEME``.
    """

    def compare(part: Part, seed: int, method: str) -> list[float]:
        return [_difference(seed, method, n, run) for n in steps]

    parts = {
        f"{method}, field {seed}": (run.seed + seed, method)
        for method in _ORDERS
        for seed in range(fields)
    }
    table = torch.tensor(list(run.map(compare, parts).values()), dtype=torch.float64)
    curves = dict(zip(_ORDERS, table.reshape(len(_ORDERS), fields, len(steps)), strict=True))
    scalars: dict[str, float] = {}
    claims = []
    for method, curve in curves.items():
        slope = fit_slope(steps, curve.log().mean(dim=0).exp().tolist())
        scalars |= {f"slope_{method}": slope.value, f"slope_error_{method}": slope.error}
        order = _ORDERS[method]
        text = f"slope of adjoint minus backprop against steps, {method}"
        claims.append(Claim("C18-A6", text, slope.value, low=-order - 0.25, high=-order + 0.25))
    named = {f"difference_{method}": curve.T for method, curve in curves.items()}
    return Findings(scalars, {"steps": steps, **named}, claims)


def _difference(seed: int, method: str, steps: int, run: Run) -> float:
    """Return the relative difference of the two gradients of the parameters."""
    generator = torch.Generator().manual_seed(seed)
    field = TanhField(3, 8, generator, device=run.device)
    x0, target = torch.randn(2, 16, 3, generator=generator, dtype=torch.float64).to(run.device)
    grads = []
    for gradient in ("adjoint", "backprop"):
        x = odeint(field, x0, (0.0, 1.0), method=method, steps=steps, gradient=gradient)[-1]
        loss = 0.5 * (x - target).square().sum()
        grads.append(torch.autograd.grad(loss, tuple(field.parameters())))
    return relative_error(*grads)
