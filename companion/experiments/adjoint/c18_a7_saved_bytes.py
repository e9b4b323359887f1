"""C18-A7: how many bytes wait for the backward pass, by gradient method?

The counts are those of :func:`companion.observe.saved_bytes`: what autograd keeps between the
forward and the backward pass. They are exact and the same on every machine.
"""

import math

import torch

from companion import odeint
from companion.experiments.adjoint.random_field import TanhField
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.gradients import Adjoint, Backprop, Checkpoint, Gradient
from companion.observe import saved_bytes
from companion.results import Claim, Findings


@experiment(
    "C18-A7",
    "Bytes kept for the backward pass against steps and output times",
    paper="Chen et al. 2018, section 2 and Table 1",
    claims=("CL06", "CL65"),
    full={"steps": (8, 16, 32, 64, 128, 256, 512, 1024), "batch": 2048},
)
def c18_a7(
    run: Run,
    *,
    steps: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512),
    outputs: tuple[int, ...] = (2, 5, 10, 20, 50, 100),
    batch: int = 32,
) -> Findings:
    """Count for rk4 with several numbers of steps, then with several numbers of output times.

    Curves: ``steps`` and ``outputs``; ``bytes_METHOD`` over steps and ``output_bytes_METHOD`` over
    outputs with two steps between neighbours, for ``backprop``, ``checkpoint`` (``every`` is
    half the root of the steps) and ``adjoint``. Scalars: ``state_bytes``, ``parameter_bytes``,
    ``megabytes_METHOD`` at the last number of steps, and ``growth_METHOD``, bytes at the last
    number of steps over those at the first.
    """

    def count(part: Part, method: str, times: int, n: int) -> int:
        return _count(_methods(n)[method], times, n, batch, run)

    names = tuple(_methods(1))
    deep = run.map(count, {f"{m}, {n} steps": (m, 2, n) for m in names for n in steps})
    wide = run.map(count, {f"{m}, {k} times": (m, k, 2) for m in names for k in outputs})
    curves = {f"bytes_{m}": [deep[f"{m}, {n} steps"] for n in steps] for m in names}
    curves |= {f"output_bytes_{m}": [wide[f"{m}, {k} times"] for k in outputs] for m in names}
    field, x0 = _problem(batch, run)
    sizes = {"parameter_bytes": _size(*field.parameters()), "state_bytes": _size(x0)}
    growth = {f"growth_{m}": curves[f"bytes_{m}"][-1] / curves[f"bytes_{m}"][0] for m in names}
    largest = {f"megabytes_{m}": curves[f"bytes_{m}"][-1] / 1e6 for m in names}
    over_output = max(
        count / (k * sizes["state_bytes"])
        for count, k in zip(curves["output_bytes_adjoint"], outputs, strict=True)
    )
    factor = steps[-1] / steps[0]
    claims = [
        Claim("CL06", f"bytes of the adjoint, {steps[-1]} steps over {steps[0]}",
              growth["growth_adjoint"], low=1, high=1),
        Claim("CL06", f"bytes of the adjoint over those of its output, 2 to {outputs[-1]} times",
              over_output, low=1, high=1),
        Claim("CL06", f"bytes of backprop, {steps[-1]} steps over {steps[0]}, over {factor:g}",
              growth["growth_backprop"] / factor, low=0.94, high=1.06),
        Claim("CL65", f"bytes of backprop over those of the parameters, {steps[-1]} steps",
              curves["bytes_backprop"][-1] / sizes["parameter_bytes"], low=100),
    ]  # fmt: skip
    return Findings(
        {**growth, **largest, **sizes}, {"steps": steps, "outputs": outputs, **curves}, claims
    )


def _methods(steps: int) -> dict[str, Gradient]:
    """Return the gradient methods by name; checkpoints near the spacing that costs least."""
    every = max(1, math.isqrt(steps) // 2)  # rk4 stores about four evaluations a step
    return {"backprop": Backprop(), "checkpoint": Checkpoint(every), "adjoint": Adjoint()}


def _problem(batch: int, run: Run) -> tuple[TanhField, torch.Tensor]:
    generator = torch.Generator().manual_seed(run.seed)
    field = TanhField(16, 32, generator, torch.float32, run.device)
    x0 = torch.randn(batch, 16, generator=generator, dtype=torch.float32).to(run.device)
    return field, x0.requires_grad_()


def _count(gradient: Gradient, times: int, steps: int, batch: int, run: Run) -> int:
    field, x0 = _problem(batch, run)
    t = [i / (times - 1) for i in range(times)]
    with saved_bytes(exclude=(x0, *field.parameters())) as saved:
        odeint(field, x0, t, method="rk4", steps=steps, gradient=gradient)
    return saved.total


def _size(*tensors: torch.Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
