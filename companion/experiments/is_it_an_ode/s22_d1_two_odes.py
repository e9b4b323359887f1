r"""S22-D1: two ODEs through the same layers, for random and for trained networks.

Sander et al. (2022, Definition 1) interpolate a network's residuals or its weights. Their Section
3.1 shows that either ODE can stay away from the network. Here both distances are measured

- for random layers :math:`\tanh(Wx + b)` whose weights are ``smooth`` in depth, a ``zigzag``
  between two sets, or independent (``iid``);
- for networks trained on scikit-learn's digits, in both tiers, with layers that are drawn
  independently at the start, or all start ``equal``.

Our bound for the residual interpolation holds for all of them.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.analysis.interpolation import (
    from_block,
    network,
    ode_distance,
    residual_bound,
    residual_interpolation,
    solution,
    speed,
    weight_interpolation,
)
from companion.analysis.smoothness import smoothness
from companion.data import load_digits
from companion.experiments.is_it_an_ode.digits_nets import error_of, train_perceptron
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models import ResidualMLP
from companion.observe import fit_slope
from companion.results import Claim, Findings

FAMILIES = ("smooth", "zigzag", "iid")
STARTS = ("equal", "independent")
KINDS = ("residual", "weight")
_MEASURES = ("slope", "variation", "moved", *KINDS, "error", "error_residual", "error_weight")


@experiment(
    "S22-D1",
    "The distance of random and trained networks to two ODEs through their layers",
    paper="Sander et al. 2022, Definition 1 and Section 3.1",
    claims=("CL49", "S22-X4"),
    full={
        "depths": (8, 16, 32, 64, 128, 256, 512, 1024),
        "copies": 50,
        "trained_depths": (4, 8, 16, 32, 64, 128),
        "seeds": 10,
    },
)
def s22_d1(
    run: Run,
    *,
    depths: tuple[int, ...] = (8, 16, 32, 64, 128),
    copies: int = 20,
    dimension: int = 8,
    trained_depths: tuple[int, ...] = (4, 8, 16, 32),
    seeds: int = 3,
    epochs: int = 6,
) -> Findings:
    """Measure random and trained networks.

    Random networks: ``depths``, and for each family and kind ``random_FAMILY_KIND``, the largest
    distance over the nodes, and ``ratio_FAMILY``, the residual distance over its bound, largest
    over the nodes, both of shape ``(depths, copies)``. Trained networks: ``trained_depths``, and
    for each start, of shape ``(trained_depths, seeds)``, ``slope_START``, ``variation_START``
    (smoothness of the weights), ``moved_START`` (mean distance from the first state to the last),
    ``residual_START`` and ``weight_START`` (mean largest distance over ``moved``), and the test
    errors ``error_START``, ``error_residual_START`` and ``error_weight_START`` of the network and
    of its two ODEs.
    """
    data = load_digits(device=run.device)

    def measure(part: Part, what: str, depth: int, seed: int) -> dict[str, Any]:
        if what in FAMILIES:
            return _random(what, depth, copies, dimension, seed, run.device)
        net = train_perceptron(
            part, data.x_train, data.y_train,
            layers=depth, scaled=True, equal=what == "equal", seed=seed, epochs=epochs,
        )  # fmt: skip
        return _describe(net.double(), data.x_test.double(), data.y_test)

    parts = {f"{name}, {n} layers": (name, n, run.seed) for name in FAMILIES for n in depths}
    parts |= {
        f"{start}, {n} layers, seed {seed}": (start, n, run.seed + seed)
        for start in STARTS
        for n in trained_depths
        for seed in range(seeds)
    }
    found = run.map(measure, parts)
    curves: dict[str, Any] = {"depths": depths, "trained_depths": trained_depths}
    for name in FAMILIES:
        rows = [found[f"{name}, {n} layers"] for n in depths]
        curves |= {f"random_{name}_{kind}": [row[kind] for row in rows] for kind in KINDS}
        curves[f"ratio_{name}"] = [row["ratio"] for row in rows]
    for start in STARTS:
        names = [[f"{start}, {n} layers, seed {s}" for s in range(seeds)] for n in trained_depths]
        for measure_name in _MEASURES:
            table = [[found[name][measure_name] for name in row] for row in names]
            curves[f"{measure_name}_{start}"] = table
    scalars = _scalars(curves, depths, trained_depths)
    return Findings(scalars, curves, _claims(scalars), data.sha256)


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
        "residual": residual_interpolation(functions[:-1], last=functions[-1]),
        "weight": weight_interpolation(layer, weights[:-1], last=weights[-1]),
    }
    gaps = {kind: ode_distance(field, x, steps=4) for kind, field in fields.items()}
    lipschitz = torch.linalg.matrix_norm(weights[..., :-1], 2).amax(0)
    largest = speed(fields["residual"], x, steps=4)
    bounds = [
        residual_bound(c.item(), lip.item(), layers)[1:]
        for c, lip in zip(largest, lipschitz, strict=True)
    ]
    ratio = gaps["residual"][1:] / torch.stack(bounds, dim=1).to(device)
    found = {kind: gap.amax(0).tolist() for kind, gap in gaps.items()}
    return {**found, "ratio": ratio.amax(0).tolist()}


def _draw(
    family: str, layers: int, copies: int, dimension: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw weights and biases (layers + 1, copies, dimension, dimension + 1), and states."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (copies, dimension, dimension + 1)
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
    fields = {kind: from_block(net.block, kind) for kind in KINDS}
    states = network(fields["residual"], first)
    moved = (states[-1] - first).norm(dim=1).mean().item()
    found = {"slope": smooth.slope, "variation": smooth.variation, "moved": moved}
    found["error"] = error_of(net.head(states[-1]), y)
    for kind, field in fields.items():
        nodes = solution(field, first)
        found[kind] = (states - nodes).norm(dim=2).amax(0).mean().item() / moved
        found[f"error_{kind}"] = error_of(net.head(nodes[-1]), y)
    return found


def _scalars(
    curves: dict[str, Any], depths: tuple[int, ...], trained: tuple[int, ...]
) -> dict[str, float]:
    """Fit slopes to medians over copies and seeds; name the numbers of the deepest networks."""

    def rate(values: Any, grid: tuple[int, ...]) -> float:
        return fit_slope(grid, _median(values).tolist()).value if len(grid) > 1 else math.nan

    scalars = {"ratio": max(float(np.max(curves[f"ratio_{name}"])) for name in FAMILIES)}
    for kind in KINDS:
        for name in FAMILIES:
            scalars[f"rate_{name}_{kind}"] = rate(curves[f"random_{name}_{kind}"], depths)
        for start in STARTS:
            scalars[f"rate_{start}_{kind}"] = rate(curves[f"{kind}_{start}"], trained)
    for start in STARTS:
        for name in _MEASURES:
            scalars[f"deepest_{name}_{start}"] = float(_median(curves[f"{name}_{start}"])[-1])
    return scalars


def _median(values: Any) -> NDArray[np.float64]:
    medians: NDArray[np.float64] = np.median(np.asarray(values, dtype=np.float64), axis=1)
    return medians


def _claims(scalars: dict[str, float]) -> list[Claim]:
    rate = "slope in N of the distance"
    claims = [
        Claim("S22-X4", "largest residual distance over its bound", scalars["ratio"], high=1.0)
    ]
    for name in FAMILIES:
        text = f"{rate} to the residual ODE, random, {name}"
        claims.append(Claim("S22-X4", text, scalars[f"rate_{name}_residual"], -1.2, -0.8))
    for start in STARTS:
        text = f"{rate} to the residual ODE, trained, {start} start"
        claims.append(Claim("S22-X4", text, scalars[f"rate_{start}_residual"], high=-0.7))
    for name in ("zigzag", "iid"):
        text = f"{rate} to the weight ODE, random, {name}"
        claims.append(Claim("CL49", text, scalars[f"rate_{name}_weight"], low=-0.3))
    text = f"{rate} to the weight ODE, trained, independent start"
    claims.append(Claim("CL49", text, scalars["rate_independent_weight"], low=-0.3))
    return claims
