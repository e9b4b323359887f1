"""C18-A7: how many bytes wait for the backward pass, by gradient method?

The counts are those of :func:`companion.observe.saved_bytes`: what autograd keeps between the
forward and the backward pass. They are exact and the same on every machine.
"""

import math

import numpy as np
import torch

from companion import odeint
from companion.experiments import Findings, Part, Run, experiment, grid
from companion.experiments.adjoint.random_field import TanhField
from companion.gradients import Checkpoint, get_gradient
from companion.observe import saved_bytes

METHODS = ("backprop", "checkpoint", "adjoint")


@experiment(
    "C18-A7",
    "Bytes kept for the backward pass against steps and output times",
    paper="Chen et al. 2018, section 2 and Table 1",
    full={"steps": (8, 16, 32, 64, 128, 256, 512, 1024), "batch": 2048},
    tiny={"steps": (8, 16, 64), "outputs": (2, 5, 10), "batch": 4},
    claims=(
        ("CL06", "growth_adjoint", 1, 1, "bytes of the adjoint, {steps[-1]} steps over {steps[0]}"),
        ("CL06", "over_output", 1, 1,
         "bytes of the adjoint over those of its output, 2 to {outputs[-1]} times"),
        ("CL06", "over_factor", 0.94, 1.06,
         "bytes of backprop, {steps[-1]} steps over {steps[0]}, over {factor:g}"),
        ("CL65", "over_parameters", 100, None,
         "bytes of backprop over those of the parameters, {steps[-1]} steps"),
    ),
)  # fmt: skip
def c18_a7(
    run: Run, *, steps: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512),
    outputs: tuple[int, ...] = (2, 5, 10, 20, 50, 100), batch: int = 32,
) -> Findings:  # fmt: skip
    """Count for rk4 with several numbers of steps, then with several numbers of output times.

    Curves: ``steps`` and ``outputs``; ``bytes_METHOD`` over steps and ``output_bytes_METHOD`` over
    outputs with two steps between neighbours, for ``backprop``, ``checkpoint`` (``every`` is
    half the root of the steps) and ``adjoint``. Scalars: ``state_bytes``, ``parameter_bytes``,
    ``megabytes_METHOD`` at the last number of steps, and ``growth_METHOD``, bytes at the last
    number of steps over those at the first.
    """
    generator = torch.Generator().manual_seed(run.seed)
    field = TanhField(16, 32, generator, torch.float32, run.device)
    x0 = torch.randn(batch, 16, generator=generator, dtype=torch.float32).to(run.device)
    inputs = (x0.requires_grad_(), *field.parameters())

    def count(part: Part, method: str, steps: int = 2, outputs: int = 2) -> int:
        every = max(1, math.isqrt(steps) // 2)  # near the cheapest: rk4 stores four slopes a step
        gradient = Checkpoint(every) if method == "checkpoint" else get_gradient(method)
        t = [i / (outputs - 1) for i in range(outputs)]
        with saved_bytes(exclude=inputs) as saved:
            odeint(field, x0, t, method="rk4", steps=steps, gradient=gradient)
        return saved.total

    deep = grid(run, count, method=METHODS, steps=steps)
    wide = grid(run, count, method=METHODS, outputs=outputs)
    curves = {**deep.named("bytes", "method"), **wide.named("output_bytes", "method")}
    state, parameters = x0.nbytes, sum(p.nbytes for p in field.parameters())
    scalars: dict[str, float] = {"state_bytes": state, "parameter_bytes": parameters}
    for method in METHODS:
        kept = curves[f"bytes_{method}"].tolist()
        scalars[f"growth_{method}"] = kept[-1] / kept[0]
        scalars[f"megabytes_{method}"] = kept[-1] / 1e6
    factor = steps[-1] / steps[0]
    deciding = {
        "factor": factor,
        "over_factor": scalars["growth_backprop"] / factor,
        "over_output": max(curves["output_bytes_adjoint"] / (np.array(outputs) * state)),
        "over_parameters": curves["bytes_backprop"][-1] / parameters,
    }
    curves |= {"steps": steps, "outputs": outputs}
    return Findings(scalars, curves, deciding=deciding)
