r"""Q20-X5: epsilon is a gauge; do its larger start or its larger rate take networks off the flow?

A block with the factor epsilon is one with the factor 1 whose last layer starts epsilon times as
large, learns epsilon squared times as fast and decays by as much less. Here epsilon stays 1, and
start and rate vary one without the other. Decay falls by what the rate gains, so that weights
shrink alike in all runs. Gradients are not clipped, because clipping depends on epsilon; the rate
is a fifth of that in the other experiments, or the larger ones diverge.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from companion.data import Samples, load_digits
from companion.experiments import Findings, Grid, Part, Run, experiment, grids, named
from companion.experiments import continuous_digits as digits
from companion.experiments.continuous_digits import CELLS, Variant
from companion.experiments.recipes import deviation, digits_recipe, error_of
from companion.experiments.side_by_side import fit_side_by_side
from companion.models import ContinuousMLP
from companion.observe import geometric_mean

RATE, DECAY = 0.01, 5e-4


class Gauge(NamedTuple):
    """The factor of the residual, and factors on the last layer's start and rate."""

    scale: float = 1.0
    start: float = 1.0
    rate: float = 1.0


KINDS = {
    "unit": Gauge(),
    "start": Gauge(start=CELLS),
    "rate": Gauge(rate=CELLS**2),
    "both": Gauge(start=CELLS, rate=CELLS**2),
    "eps8": Gauge(scale=CELLS),
}
"""Nothing changed, one of two factors, both, and epsilon = 8, which is to equal both."""


@experiment(
    "Q20-X5",
    "Euler-trained perceptrons with epsilon = 1 and the start or the rate of epsilon = 8",
    paper="beyond Queiruga et al. 2020, Fig. 9",
    full={"seeds": 32},
    tiny={"seeds": 1, "epochs": 1},
    claims=(
        ("Q20-X5", "start_effect", 1.0, None,
         "move to the flow, start times 8 over start times 1, factors of ten, {seeds} seeds"),
        ("Q20-X5", "rate_effect", 1.0, None,
         "move to the flow, rate times 64 over rate times 1, factors of ten, {seeds} seeds"),
        ("Q20-X5", "gauge_gap", None, 1e-3,
         "largest relative difference of scores, both factors against epsilon = 8"),
    ),
)  # fmt: skip
def q20_x5(run: Run, *, seeds: int = 8, epochs: int = 30) -> Findings:
    """Train every kind from every seed.

    Curves, one entry a seed: ``limit_KIND``, how far the scores move to the flow; ``error_KIND``
    and ``flow_error_KIND``, test errors under the graph of the training and on the flow;
    ``steepness_KIND``. Scalars: ``mean_limit_KIND``, geometric means; ``mean_error_KIND``,
    ``mean_flow_error_KIND`` and ``mean_steepness_KIND``.
    """
    data = load_digits(device=run.device, dtype=run.dtype)
    own = run.seeds(seeds)

    def measure(part: Part, kind: str) -> dict[str, Any]:
        nets = _trained(part, KINDS[kind], own, data, epochs)
        rows = [_measured(net, data) for net in nets]
        return {name: [row[name] for row in rows] for name in rows[0]}

    found = grids(run, measure, kind=KINDS)
    scores = found.pop("scores")
    return Findings(effects(found, scores), named(found, "kind"), data=data.provenance)


def _trained(
    part: Part, gauge: Gauge, seeds: Sequence[int], data: Samples, epochs: int
) -> list[ContinuousMLP]:
    x, variant = data.x_train, Variant("euler", scale=gauge.scale)
    nets = [digits.digits_net(variant, seed, x.dtype).to(x.device) for seed in seeds]
    for net in nets:
        for param in list(net.block.parameters())[-2:]:
            param.data *= gauge.start
    recipe = digits_recipe(epochs) | {"optimiser": optimiser(gauge), "clip": math.inf}
    fit_side_by_side(
        nets, x, data.y_train, seeds, snapshot=part.snapshot, report=part.report, **recipe
    )
    for net, seed in zip(nets, seeds, strict=True):
        part.keep(net, f"seed {seed}")
    return nets


def optimiser(gauge: Gauge) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Return what makes the optimiser of networks whose last layers have a rate of their own."""

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        given = list(parameters)
        last = given[4:6]  # after two of the stem and two of the residual's first layer
        groups: list[dict[str, Any]] = [
            {"params": [*given[:4], *given[6:]]},
            {"params": last, "lr": RATE * gauge.rate, "weight_decay": DECAY / gauge.rate},
        ]
        return SGD(groups, lr=RATE, momentum=0.9, weight_decay=DECAY)

    return make


def _measured(net: ContinuousMLP, data: Samples) -> dict[str, Any]:
    own, flow = digits.logits(net, data), digits.logits(net, data, *digits.LIMIT)
    return {
        "limit": deviation(flow, own),
        "error": error_of(own, data.y_test),
        "flow_error": error_of(flow, data.y_test),
        "steepness": steepness(net, data.x_test),
        "scores": own.tolist(),
    }


@torch.no_grad()
def steepness(net: ContinuousMLP, x: Tensor) -> float:
    r"""Return the root mean square of $\lVert\epsilon h\,\partial\mathcal R/\partial x\rVert$.

    That is over the steps of an Euler net and the samples, along their own trajectories.
    """
    block, states, norms = net.block, net.stem(x), []
    h = block.scale / block.steps
    stacks = dict(block.weights.stacks.named_parameters())
    for cell in range(block.steps):
        values = {name: stack[cell] for name, stack in stacks.items()}
        residual = partial(torch.func.functional_call, block.weights.template, values)
        slopes = torch.func.vmap(torch.func.jacrev(residual))(states)
        norms.append(h * torch.linalg.matrix_norm(slopes, 2))
        states = states + h * residual(states)
    return float(torch.stack(norms).square().mean().sqrt())


def effects(found: dict[str, Grid], scores: Grid) -> dict[str, float]:
    """Return means over seeds, the effects in factors of ten, and how well the gauge is kept."""
    scalars: dict[str, float] = {}
    for kind in KINDS:
        for name, table in found.items():
            mean = geometric_mean if name == "limit" else np.mean
            scalars[f"mean_{name}_{kind}"] = float(mean(table.at(kind=kind).values))
    for kind in ("start", "rate", "both"):
        ratio = scalars[f"mean_limit_{kind}"] / scalars["mean_limit_unit"]
        scalars[f"{kind}_effect"] = math.log10(ratio)
    both, eps = (torch.tensor(scores.at(kind=kind).values) for kind in ("both", "eps8"))
    gaps = (both - eps).flatten(1).norm(dim=1) / eps.flatten(1).norm(dim=1)
    return scalars | {"gauge_gap": float(gaps.max())}
