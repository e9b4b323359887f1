r"""S22-D1: two ODEs through the same layers, for random and for trained networks.

Sander et al. (2022, Definition 1) interpolate a network's residuals or its weights. Their Section
3.1 shows that either ODE can stay away from the network. Here both distances are measured, and our
bound for the first,

- for random layers $\tanh(Wx + b)$ whose weights are ``smooth`` in depth, a ``zigzag``
  between two sets, or independent (``iid``);
- for networks trained on digits, whose layers start ``independent`` or ``equal``.
"""

import math
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.analysis import interpolation as between
from companion.analysis.smoothness import smoothness
from companion.data import load_digits
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.is_it_an_ode.digits_nets import train_perceptron
from companion.experiments.recipes import normal
from companion.models import ResidualMLP
from companion.observe import fit_slope
from companion.train import error_rate

FAMILIES = ("smooth", "zigzag", "iid")
STARTS = ("equal", "independent")
KINDS = ("residual", "weight")


@experiment(
    "S22-D1",
    "The distance of random and trained networks to two ODEs through their layers",
    paper="Sander et al. 2022, Definition 1 and Section 3.1",
    claims=(
        ("S22-X4", "ratio", None, 1.0, "largest residual distance over its bound"),
        *(
            ("S22-X4", f"rate_{name}_residual", -1.2, -0.8,
             f"slope in N of the distance to the residual ODE, random, {name}")
            for name in FAMILIES
        ),
        *(
            ("S22-X4", f"rate_{start}_residual", None, -0.7,
             f"slope in N of the distance to the residual ODE, trained, {start} start")
            for start in STARTS
        ),
        *(
            ("CL49", f"rate_{name}_weight", -0.3, None,
             f"slope in N of the distance to the weight ODE, {what}")
            for name, what in (
                ("zigzag", "random, zigzag"), ("iid", "random, iid"),
                ("independent", "trained, independent start"),
            )
        ),
    ),
    full={
        "depths": (8, 16, 32, 64, 128, 256, 512, 1024), "copies": 50,
        "trained_depths": (4, 8, 16, 32, 64, 128), "seeds": 10,
    },
    tiny={
        "depths": (4, 8), "copies": 2, "dimension": 3, "trained_depths": (2, 3), "seeds": 1,
        "epochs": 1,
    },
    tolerance=1e-2,  # the networks are trained in single precision
)  # fmt: skip
def s22_d1(
    run: Run, *, depths: tuple[int, ...] = (8, 16, 32, 64, 128), copies: int = 20,
    dimension: int = 8, trained_depths: tuple[int, ...] = (4, 8, 16, 32), seeds: int = 3,
    epochs: int = 6,
) -> Findings:  # fmt: skip
    """Measure random and trained networks.

    Random networks: ``depths``, and for each family and kind ``random_FAMILY_KIND``, the largest
    distance over the nodes, and ``ratio_FAMILY``, the residual distance over its bound, largest
    over the nodes, both of shape ``(depths, copies)``. Trained networks: ``trained_depths``, and
    for each start, of shape ``(trained_depths, seeds)``, ``slope_START``, ``variation_START``
    (smoothness of the weights), ``moved_START`` (mean distance from the first state to the last),
    ``residual_START`` and ``weight_START`` (mean largest distance over ``moved``), and the test
    errors ``error_START``, ``error_residual_START`` and ``error_weight_START`` of the network and
    of its two ODEs. Scalars: ``rate_FAMILY_KIND`` and ``rate_START_KIND``, slopes in N of the
    medians over copies and seeds; ``deepest_NAME_START``, the medians of the deepest networks.
    """
    data = load_digits(device=run.device)
    x, y = data.x_test.double(), data.y_test

    def draw(part: Part, family: str, depth: int) -> dict[str, list[float]]:
        return _random(family, depth, copies, dimension, run.seed, run.device)

    def train(part: Part, start: str, depth: int, seed: int) -> dict[str, float]:
        net = train_perceptron(
            part, data.x_train, data.y_train,
            layers=depth, scaled=True, equal=start == "equal", seed=seed, epochs=epochs,
        )  # fmt: skip
        return _describe(net.double(), x, y)

    def rate(values: Any, depths: tuple[int, ...]) -> float:
        medians = np.median(values, axis=1).tolist()
        return fit_slope(depths, medians).value if len(depths) > 1 else math.nan

    random = grids(run, draw, family=FAMILIES, depth=depths)
    trained = grids(run, train, start=STARTS, depth=trained_depths, seed=run.seeds(seeds))
    curves: dict[str, Any] = {"depths": depths, "trained_depths": trained_depths}
    curves |= random["ratio"].named("ratio", "family") | named(trained, "start")
    scalars = {"ratio": random["ratio"].values.max()}
    for family, kind in product(FAMILIES, KINDS):
        values = curves[f"random_{family}_{kind}"] = random[kind].at(family=family).values
        scalars[f"rate_{family}_{kind}"] = rate(values, depths)
    for start in STARTS:
        for name in trained:
            scalars[f"deepest_{name}_{start}"] = np.median(curves[f"{name}_{start}"][-1])
        for kind in KINDS:
            scalars[f"rate_{start}_{kind}"] = rate(curves[f"{kind}_{start}"], trained_depths)
    return Findings(scalars, curves, data=data.sha256)


def _random(
    family: str, layers: int, copies: int, dimension: int, seed: int, device: torch.device
) -> dict[str, list[float]]:
    """Measure ``copies`` random networks at once, one a row of the state."""
    weights, x = (part.to(device) for part in _draw(family, layers, copies, dimension, seed))

    def layer(x: Tensor, theta: Tensor) -> Tensor:
        inner = torch.einsum("cij,cj->ci", theta[..., :-1], x)
        return torch.tanh(inner + theta[..., -1])

    functions = [lambda x, theta=theta: layer(x, theta) for theta in weights]
    fields = {
        "residual": between.residual_interpolation(functions[:-1], last=functions[-1]),
        "weight": between.weight_interpolation(layer, weights[:-1], last=weights[-1]),
    }
    gaps = {kind: between.ode_distance(field, x, steps=4) for kind, field in fields.items()}
    lipschitz = torch.linalg.matrix_norm(weights[..., :-1], 2).amax(0)
    largest = between.speed(fields["residual"], x, steps=4)
    bounds = [
        between.residual_bound(c.item(), lip.item(), layers)[1:]
        for c, lip in zip(largest, lipschitz, strict=True)
    ]
    ratio = gaps["residual"][1:] / torch.stack(bounds, dim=1).to(device)
    found = {kind: gap.amax(0).tolist() for kind, gap in gaps.items()}
    return {**found, "ratio": ratio.amax(0).tolist()}


def _draw(
    family: str, layers: int, copies: int, dimension: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw weights and biases (layers + 1, copies, dimension, dimension + 1), and states."""
    draw, shape = normal(seed), (copies, dimension, dimension + 1)
    x, mean, change = draw(copies, dimension), draw(*shape), draw(*shape)
    n = torch.arange(layers + 1, dtype=torch.float64)
    if family == "iid":
        deviation = draw(layers + 1, *shape)
    else:
        factor = torch.sin(2 * math.pi * n / layers) if family == "smooth" else (-1.0) ** n
        deviation = factor[:, None, None, None] * change
    return (mean + deviation) / dimension**0.5, x


@torch.no_grad()
def _describe(net: ResidualMLP, x: Tensor, y: Tensor) -> dict[str, float]:
    """Measure a trained network in double precision, and swap its layers for its ODEs."""
    smooth = smoothness(net.block).total
    first = net.stem(x)
    fields = {kind: between.from_block(net.block, kind) for kind in KINDS}
    states = between.network(fields["residual"], first)
    moved = (states[-1] - first).norm(dim=1).mean().item()
    found = {"slope": smooth.slope, "variation": smooth.variation, "moved": moved}
    found["error"] = error_rate(net.head, (states[-1], y))
    for kind, field in fields.items():
        nodes = between.solution(field, first)
        found[kind] = (states - nodes).norm(dim=2).amax(0).mean().item() / moved
        found[f"error_{kind}"] = error_rate(net.head, (nodes[-1], y))
    return found
