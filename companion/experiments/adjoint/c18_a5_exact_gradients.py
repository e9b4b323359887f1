"""C18-A5: is the adjoint's gradient right, for the state, the parameters and every time?

The loss reads the state at three times, so that the adjoint jumps. Its gradients are compared with
central differences of the loss, which know nothing of adjoints, and with backprop.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from companion import odeint
from companion.experiments.adjoint.random_field import TanhField, relative_error
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.results import Claim, Findings

_TIMES = (0.2, 0.7, 1.1, 1.5)
_SHIFT = 1e-5
"""Of the central differences: their error is about its square."""


@experiment(
    "C18-A5",
    "Gradients of the adjoint against central differences and backprop",
    paper="Chen et al. 2018, section 2, algorithm 1 and appendix B",
    claims=("CL03", "CL04", "CL05"),
    full={"fields": 20, "steps": 100},
)
def c18_a5(run: Run, *, fields: int = 5, steps: int = 40) -> Findings:
    """Differentiate a loss at three output times through ``fields`` random fields.

    Curves, one entry per field: ``state``, ``params`` and ``times``, the largest relative error of
    a derivative against central differences; ``backprop``, that of the whole gradient against
    backprop. Scalars: the largest entry of each, ``max_state`` and so on.
    """

    def compare(part: Part, seed: int) -> list[float]:
        return _compare(seed, steps, run.device)

    parts = {f"field {seed}": (run.seed + seed,) for seed in range(fields)}
    table = torch.tensor(list(run.map(compare, parts).values()), dtype=torch.float64)
    names = ("state", "params", "times", "backprop")
    largest = {
        f"max_{name}": column.max().item() for name, column in zip(names, table.T, strict=True)
    }
    claims = [
        Claim("CL03", "relative error of dL/dx0 along a random direction", largest["max_state"],
              high=1e-6),
        Claim("CL04", "relative error of dL/dtheta along a random direction",
              largest["max_params"], high=1e-6),
        Claim("CL05", "largest relative error of dL/dt over four times", largest["max_times"],
              high=1e-6),
    ]  # fmt: skip
    return Findings(largest, dict(zip(names, table.T, strict=True)), claims)


def _compare(seed: int, steps: int, device: torch.device) -> list[float]:
    """Return the four errors for one field."""
    generator = torch.Generator().manual_seed(seed)
    field = TanhField(3, 8, generator, device=device)
    x0, targets = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)
        for shape in ((3,), (3, 3))
    )
    t = torch.tensor(_TIMES, dtype=torch.float64, device=device)
    inputs = [x0.requires_grad_(), t.requires_grad_(), *field.parameters()]

    def loss(gradient: str = "backprop") -> Tensor:
        xs = odeint(field, x0, t, method="rk4", steps=steps, gradient=gradient)
        total: Tensor = 0.5 * (xs[1:] - targets).square().sum()
        return total

    grads = torch.autograd.grad(loss("adjoint"), inputs)
    exact = torch.autograd.grad(loss(), inputs)
    directions = [torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x) for x in inputs]
    axes = torch.eye(len(t), dtype=t.dtype, device=device)
    return [
        _direction_error(loss, inputs[:1], directions[:1], grads[:1]),
        _direction_error(loss, inputs[2:], directions[2:], grads[2:]),
        max(_direction_error(loss, [t], [axis], [grads[1]]) for axis in axes),
        relative_error(grads, exact),
    ]


def _direction_error(
    loss: Callable[[], Tensor],
    inputs: list[Tensor],
    direction: list[Tensor],
    grads: list[Tensor] | tuple[Tensor, ...],
) -> float:
    """Return the relative error of ``grads`` along ``direction`` against a central difference."""
    values = []
    with torch.no_grad():
        for shift in (_SHIFT, -2 * _SHIFT):
            for x, d in zip(inputs, direction, strict=True):
                x += shift * d
            values.append(loss().item())
        for x, d in zip(inputs, direction, strict=True):
            x += _SHIFT * d
    wanted = (values[0] - values[1]) / (2 * _SHIFT)
    got = sum((g * d).sum().item() for g, d in zip(grads, direction, strict=True))
    return abs(got - wanted) / abs(wanted)
