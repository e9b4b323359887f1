"""C18-A5: is the adjoint's gradient right, for the state, the parameters and every time?

The loss reads the state at three times, so that the adjoint jumps. Its gradients are compared with
central differences of the loss, which know nothing of adjoints, and with backprop.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from companion import odeint
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.adjoint.random_field import TanhField, relative_error

_TIMES = (0.2, 0.7, 1.1, 1.5)
_SHIFT = 1e-5
"""Of the central differences: their error is about its square."""


@experiment(
    "C18-A5",
    "Gradients of the adjoint against central differences and backprop",
    paper="Chen et al. 2018, section 2, algorithm 1 and appendix B",
    full={"fields": 20, "steps": 100},
    # So few steps that their errors are far above those of rounding in the differences; these are
    # the ones that depend on the processor.
    tiny={"fields": 2, "steps": 2},
    tolerance=1e-3,
    claims=(
        ("CL03", "max_state", None, 1e-6, "relative error of dL/dx0 along a random direction"),
        ("CL04", "max_params", None, 1e-6, "relative error of dL/dtheta along a random direction"),
        ("CL05", "max_times", None, 1e-6, "largest relative error of dL/dt over four times"),
    ),
)
def c18_a5(run: Run, *, fields: int = 5, steps: int = 40) -> Findings:
    """Differentiate a loss at three output times through ``fields`` random fields.

    Curves, one entry per field: ``state``, ``params`` and ``times``, the largest relative error of
    a derivative against central differences; ``backprop``, that of the whole gradient against
    backprop. Scalars: the largest entry of each, ``max_state`` and so on.
    """

    def compare(part: Part, seed: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        field = TanhField(3, 8, generator, device=run.device)
        x0, targets = (
            torch.randn(*shape, generator=generator, dtype=torch.float64).to(run.device)
            for shape in ((3,), (3, 3))
        )
        t = torch.tensor(_TIMES, dtype=torch.float64, device=run.device)
        inputs = [x0.requires_grad_(), t.requires_grad_(), *field.parameters()]

        def loss(gradient: str = "backprop") -> Tensor:
            xs = odeint(field, x0, t, method="rk4", steps=steps, gradient=gradient)
            total: Tensor = 0.5 * (xs[1:] - targets).square().sum()
            return total

        grads, exact = (torch.autograd.grad(loss(name), inputs) for name in ("adjoint", "backprop"))
        lines = [torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x) for x in inputs]
        axes = torch.eye(len(t), dtype=t.dtype, device=run.device)
        return {
            "state": _direction_error(loss, inputs[:1], lines[:1], grads[:1]),
            "params": _direction_error(loss, inputs[2:], lines[2:], grads[2:]),
            "times": max(_direction_error(loss, [t], [axis], [grads[1]]) for axis in axes),
            "backprop": relative_error(grads, exact),
        }

    curves = named(grids(run, compare, seed=run.seeds(fields)))
    return Findings({f"max_{name}": values.max() for name, values in curves.items()}, curves)


def _direction_error(
    loss: Callable[[], Tensor],
    inputs: Sequence[Tensor],
    direction: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> float:
    """Return the relative error of ``grads`` along ``direction`` against a central difference."""

    @torch.no_grad()
    def shifted(shift: float) -> float:
        for x, d in zip(inputs, direction, strict=True):
            x += shift * d
        return loss().item()

    wanted = (shifted(_SHIFT) - shifted(-2 * _SHIFT)) / (2 * _SHIFT)
    shifted(_SHIFT)
    got = sum((g * d).sum().item() for g, d in zip(grads, direction, strict=True))
    return abs(got - wanted) / abs(wanted)
