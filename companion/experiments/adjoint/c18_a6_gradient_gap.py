"""C18-A6: how far is the adjoint's gradient from the gradient of the discretised loss?

Backprop differentiates the computed steps. The adjoint differentiates the equation and then takes
steps. Both tend to the true gradient; at a finite number of steps they are two vectors.
"""

import torch

from companion import odeint
from companion.experiments import Findings, Part, Run, experiment, grid
from companion.experiments.adjoint.random_field import TanhField, relative_error

ORDERS = {"euler": 1, "midpoint": 2, "heun": 3, "rk4": 4}
"""The order of the difference, by scheme."""


@experiment(
    "C18-A6",
    "Adjoint minus backprop against the number of steps",
    paper="not in the papers",
    full={"fields": 20, "steps": (8, 16, 32, 64, 128)},
    tiny={"fields": 1, "steps": (2, 4, 8)},
    claims=tuple(
        ("C18-A6", f"slope_{method}", -order - 0.25, -order + 0.25,
         f"slope of adjoint minus backprop against steps, {method}")
        for method, order in ORDERS.items()
    ),
)  # fmt: skip
def c18_a6(run: Run, *, fields: int = 5, steps: tuple[int, ...] = (8, 16, 32, 64)) -> Findings:
    """Compare the two gradients of the parameters for four schemes.

    Curves: ``steps``; for each scheme ``difference_SCHEME`` of shape ``(steps, fields)``, the norm
    of the difference relative to backprop's gradient. Scalars: ``slope_SCHEME``, fitted to the
    geometric mean over fields against the number of steps, and ``slope_error_SCHEME``.
    """

    def difference(part: Part, method: str, step: int, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        field = TanhField(3, 8, generator, device=run.device)
        x0, target = torch.randn(2, 16, 3, generator=generator, dtype=torch.float64).to(run.device)
        grads = []
        for gradient in ("adjoint", "backprop"):
            x = odeint(field, x0, (0.0, 1.0), method=method, steps=step, gradient=gradient)[-1]
            loss = 0.5 * (x - target).square().sum()
            grads.append(torch.autograd.grad(loss, tuple(field.parameters())))
        return relative_error(*grads)

    found = grid(run, difference, method=ORDERS, step=steps, seed=run.seeds(fields))
    slope, error = found.geometric("seed").slopes("step")
    scalars = {**slope.named("slope", "method"), **error.named("slope_error", "method")}
    return Findings(scalars, {"steps": steps, **found.named("difference", "method")})
