r"""C18-E1b: one equation in the place of six layers, where nothing goes without them.

On images a stem and a head classify nearly as well alone (C18-E1). Here the stem is the identity
and the head is linear, so that only the middle can separate a disc from the annulus around it.
"""

from typing import Any

import numpy as np
from torch import nn
from torch.optim import Adam

from companion.basis import PiecewiseConstant
from companion.block import OdeBlock
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.annulus import annulus_samples
from companion.experiments.ode_nets.networks import middle, step_costs
from companion.experiments.recipes import classification_loss, splits, train
from companion.models import TanhMLP
from companion.models.residual_mlp import residual
from companion.train import cosine, error_rate, seeded

LAYERS = 6
BATCH = 100


@experiment(
    "C18-E1b",
    "ResNet, RK-Net and ODE-Net where a linear classifier fails",
    paper="Chen et al. 2018, section 3, on a task of Dupont et al. 2019",
    full={"samples": 10_000, "hidden": 64, "seeds": 10},
    tiny={"samples": 200, "hidden": 4, "epochs": 1, "seeds": 1},
    claims=(
        ("C18-E1b", "gap", -0.02, 0.02,
         "test error of the ODE-Net minus that of the ResNet, mean of {seeds}"),
        ("C18-E1b", "mean_error_control", 0.3, None, "test error with nothing in the middle"),
    ),
)  # fmt: skip
def c18_e1b(
    run: Run, *,
    nets: tuple[str, ...] = ("control", "resnet", "rk4_backprop", "dopri5_backprop",
                             "dopri5_adjoint"),
    samples: int = 1000, hidden: int = 32, epochs: int = 40, seeds: int = 5, rate: float = 1e-2,
    tolerance: float = 1e-3, steps: int = 4,
) -> Findings:  # fmt: skip
    """Train every network from every seed, each on its own points.

    Curves: for every net, one number a seed, ``error_NET`` on as many new points, ``forward_NET``
    and ``backward_NET`` evaluations of a step of training at the end, ``kept_NET`` megabytes.
    Scalars: the means of these over seeds, ``mean_WHAT_NET``, the standard deviation ``spread_NET``
    of the errors, ``parameters_NET``; and ``gap``, the mean error of the ODE-Net (dopri5, adjoint)
    minus that of the ResNet.
    """

    def make(name: str, seed: int) -> nn.Sequential:
        with seeded(seed, dtype=run.dtype):
            block = middle(
                name, lambda: TanhMLP(2, (hidden, hidden)), lambda: layers(hidden), steps=steps,
                tolerance=tolerance,
            )  # fmt: skip
            return nn.Sequential(block, nn.Linear(2, 2)).to(run.device)

    def compute(part: Part, net: str, seed: int) -> dict[str, Any]:
        data = annulus_samples(seed, samples, samples, run.dtype)
        (x, y), test = (tuple(z.to(run.device) for z in split) for split in splits(data))
        made = make(net, seed)
        train(
            part, made, (x, y), seed, optimiser=lambda parameters: Adam(parameters, lr=rate),
            epochs=epochs, batch_size=BATCH, schedule=cosine,
        )  # fmt: skip
        costs = step_costs(made, lambda net: classification_loss(net, x[:BATCH], y[:BATCH]))
        return {"error": error_rate(made, test), **costs}

    found = grids(run, compute, net=nets, seed=run.seeds(seeds))
    means = named({f"mean_{what}": table.mean("seed") for what, table in found.items()}, "net")
    error = {net: found["error"].at(net=net).values for net in nets}
    scalars = {name: float(value) for name, value in means.items()}
    scalars |= {f"spread_{net}": float(np.std(error[net])) for net in nets}
    scalars |= {f"parameters_{net}": sum(p.numel() for p in make(net, 0).parameters())
                for net in nets}  # fmt: skip
    scalars["gap"] = float((error["dopri5_adjoint"] - error["resnet"]).mean())
    return Findings(scalars, named(found, "net"))


def layers(hidden: int) -> OdeBlock:
    """Return six residual perceptrons on the plane, each with weights of its own.

    Example:
        >>> import torch
        >>> layers(4)(torch.zeros(3, 2)).shape
        torch.Size([3, 2])
    """
    return OdeBlock(
        lambda: residual(2, hidden), PiecewiseConstant(LAYERS), steps=LAYERS, scale=float(LAYERS)
    )
