r"""C18-E1: one equation in the place of six layers, on images (Chen et al. 2018, Table 1).

Every network has the same stem and the same head, :class:`~companion.models.ODENet`. The control
has nothing between them, so that the table says what the block is good for.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.block import OdeBlock
from companion.data import Samples, load_digits, load_mnist
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.ode_nets.networks import NETS, middle, step_costs
from companion.experiments.recipes import classification_loss, sgd, splits, train
from companion.models import ConvField, ODENet, residual_layers
from companion.observe import saved_bytes
from companion.train import cosine, error_rate, seeded

BATCH = 128

DEEP = 16
"""Steps of rk4, four evaluations each, at which the bytes of the gradients are compared."""

WITHIN = 0.02
"""How close the errors of ODE-Net and ResNet are to be on digits. On MNIST the networks train for
different numbers of epochs, all of them few, and nothing is decided."""


@experiment(
    "C18-E1",
    "ResNet, RK-Net and ODE-Net on images, and the same shell with nothing in the middle",
    paper="Chen et al. 2018, Table 1",
    full={
        "dataset": "mnist", "nets": ("control", "resnet", "rk4_backprop", "dopri5_adjoint"),
        "channels": 64, "halvings": 2, "epochs": (5, 5, 2, 2), "seeds": 1, "rate": 0.1,
        "tolerance": 1e-3, "steps": 4,
    },
    tiny={
        "nets": ("control", "resnet", "rk4_backprop", "dopri5_adjoint"), "channels": 4,
        "epochs": (1,), "seeds": 1, "samples": 128,
    },
    claims=(
        ("CL07", "gap", {"digits": -WITHIN}, {"digits": WITHIN},
         "{dataset}, test error of the ODE-Net minus that of the ResNet, mean of {seeds}"),
        ("CL08", "parameter_ratio", None, 0.6,
         "{dataset}, parameters of the ODE-Net over those of the ResNet"),
        ("CL08", "public_ode_net", 208_266, 208_266, "parameters of the ODE-Net for MNIST"),
        ("CL08", "public_resnet", 576_778, 576_778, "parameters of the ResNet for MNIST"),
        ("CL06", "kept_adjoint", None, 0.1,
         "{dataset}, bytes kept by the adjoint over backprop's, 64 evaluations"),
        ("CL06", "kept_checkpoint", None, 0.1,
         "{dataset}, bytes kept by checkpoints over backprop's, 64 evaluations"),
    ),
)  # fmt: skip
def c18_e1(
    run: Run, *, dataset: str = "digits", nets: tuple[str, ...] = NETS, channels: int = 16,
    halvings: int = 1, epochs: tuple[int, ...] = (9,), seeds: int = 5, rate: float = 0.2,
    tolerance: float = 1e-2, steps: int = 2, samples: int = 60_000,
) -> Findings:  # fmt: skip
    """Train every network from every seed, and count what a step of its training costs at the end.

    The learning rate falls to zero like a cosine. The published run takes 160 epochs and shifts its
    images at random; neither is done here. ``epochs`` holds one number, or one for every net.
    ``samples`` is the most to train on.

    Curves: for every net, one number a seed, ``error_NET`` on the test samples, ``forward_NET`` and
    ``backward_NET`` evaluations of the field, ``kept_NET``, the megabytes that wait for the
    backward pass of a batch. Scalars: the means over seeds of these four, ``mean_WHAT_NET``, and
    the standard deviation ``spread_NET`` of the errors; ``parameters_NET``; ``gap``, the mean error
    of the ODE-Net (dopri5, adjoint) minus that of the ResNet, with the standard error of that mean
    of paired differences, ``gap_error``, NaN for one seed; ``control_gap``, the same with the
    control for the ResNet; ``kept_GRADIENT``, the bytes that a block of 64 evaluations keeps, over
    those of backprop.
    """
    data = _data(dataset, run)
    (x, y), test = splits(data)
    x, y = x[:samples], y[:samples]
    each = epochs * len(nets) if len(epochs) == 1 else epochs
    lengths = dict(zip(nets, each, strict=True))

    def make(name: str, seed: int) -> ODENet:
        with seeded(seed, dtype=run.dtype):
            block = middle(
                name, lambda: ConvField(channels), lambda: residual_layers(channels),
                steps=steps, tolerance=tolerance,
            )  # fmt: skip
            return ODENet(block, channels=channels, halvings=halvings).to(run.device)

    def compute(part: Part, net: str, seed: int) -> dict[str, Any]:
        made = make(net, seed)
        train(
            part, made, (x, y), seed, optimiser=sgd(rate), epochs=lengths[net], batch_size=BATCH,
            schedule=cosine, clip=1.0,
        )  # fmt: skip
        costs = step_costs(made, lambda net: classification_loss(net, x[:BATCH], y[:BATCH]))
        return {"error": error_rate(made, test), **costs}

    found = grids(run, compute, net=nets, seed=run.seeds(seeds))
    scalars = {
        f"mean_{what}_{net}": float(found[what].at(net=net).values.mean())
        for what in ("error", "forward", "backward", "kept")
        for net in nets
    }
    error = {net: found["error"].at(net=net).values for net in nets}
    scalars |= {f"spread_{net}": float(error[net].std(ddof=1 if seeds > 1 else 0)) for net in nets}
    counts = {net: sum(p.numel() for p in make(net, 0).parameters()) for net in nets}
    scalars |= {f"parameters_{net}": counts[net] for net in nets}
    apart = error["dopri5_adjoint"] - error["resnet"]
    scalars |= {
        "gap": float(apart.mean()),
        "gap_error": float(apart.std(ddof=1) / np.sqrt(seeds)) if seeds > 1 else float("nan"),
        "control_gap": float((error["dopri5_adjoint"] - error["control"]).mean()),
        "parameter_ratio": counts["dopri5_adjoint"] / counts["resnet"],
        **_kept(make("control", 0).stem(x[:BATCH]).detach(), channels),
        **public_counts(),
    }
    return Findings(scalars, named(found, "net"), data=data.provenance)


def _data(dataset: str, run: Run) -> Samples:
    if dataset == "digits":
        return load_digits(as_images=True, device=run.device, dtype=run.dtype)
    if dataset == "mnist":
        return load_mnist(run.data, device=run.device, dtype=run.dtype)
    raise ValueError(f"dataset must be one of digits, mnist; got {dataset!r}")


def _kept(state: Tensor, channels: int) -> dict[str, float]:
    """Return the bytes that a block of 64 evaluations keeps, relative to backprop's."""
    block = OdeBlock(ConvField(channels), method="rk4", steps=DEEP, time=True).to(state)
    kept = {}
    for gradient in ("backprop", "checkpoint", "adjoint"):
        view = block.with_graph(gradient=gradient)
        with saved_bytes(exclude=(state, *block.parameters())) as saved:
            view(state)
        kept[gradient] = saved.total
    return {f"kept_{name}": kept[name] / kept["backprop"] for name in ("checkpoint", "adjoint")}


def public_counts() -> dict[str, float]:
    """Return the numbers of parameters of the published example's two networks.

    Example:
        >>> public_counts()
        {'public_ode_net': 208266, 'public_resnet': 576778}
    """
    with torch.device("meta"):
        nets = {
            "public_ode_net": ODENet(OdeBlock(ConvField(64), time=True)),
            "public_resnet": ODENet(residual_layers(64)),
        }
    return {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
