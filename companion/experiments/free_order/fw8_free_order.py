r"""FW8: a free order of accuracy in training without stored activations.

A memory-free sweep guesses the input of each layer from its output and evaluates the layer there
for the vector-Jacobian product. The paper's rule forgets the value. The corrected rule goes on from
it; the predicted rule makes the guess from the values of later layers. The gradients of all rules
are compared with backprop's on random networks, with weights that vary with depth smoothly, in
zigzag, or at random.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.analysis.reconstruction import reconstruction, trajectory
from companion.experiments.free_order.networks import KINDS, RULES, Task, draw_task, measure_cost
from companion.experiments.registry import experiment
from companion.experiments.running import Run
from companion.gradients import Gradient, Reconstruct
from companion.gradients.reverse_sweep import TRUST
from companion.observe import fit_slope
from companion.results import Claim, Findings
from companion.train import seeded

_NETWORKS = ("mlp", "conv", "tokens")
_DROPOUT_RULES = ("reverse", "corrected", "predicted", "predicted_2")
_COSTED = ("backprop", "checkpoint", *RULES)

Curve = NDArray[np.float64]


@experiment(
    "FW8",
    "Gradient errors of memory-free rules against depth and cost",
    paper="beyond Sander et al. 2022, section 4",
    claims=("FW8",),
    full={"depths": (16, 64, 256), "fine": (4, 8, 16, 32, 64, 128, 256, 512, 1024), "networks": 4},
)
def fw8(
    run: Run,
    *,
    depths: tuple[int, ...] = (16, 64),
    fine: tuple[int, ...] = (16, 32, 64, 128, 256),
    fitted: int = 64,
    networks: int = 2,
) -> Findings:
    r"""Measure every rule on every kind of network.

    Curves: ``depths``; for each measure (``relative`` and ``absolute`` error of the gradient,
    largest error of a ``state``), network (``mlp``; ``conv`` with batch norm; ``tokens``, with
    layer norm), kind of weights and rule ``MEASURE_NETWORK_KIND_RULE``; the same for ``relu``, a
    ``conv`` with kinks, smooth weights only; ``relative_dropout_RULE``; all of one network.
    ``fine``; for smooth perceptrons ``MEASURE_RULE`` of shape ``(fine, networks)``,
    ``units_RULE`` and ``seconds_RULE``. Scalars: ``relative_slope_RULE`` and
    ``absolute_slope_RULE``, fitted from ``fitted`` layers on.
    """
    seeds = range(run.seed, run.seed + networks)
    groups = {
        f"{network}_{kind}_": Group(errors_of_rules, (network, kind), depths, seeds[:1])
        for network in _NETWORKS
        for kind in KINDS
    }
    groups |= {"relu_smooth_": Group(errors_of_rules, ("relu", "smooth"), depths, seeds[:1])}
    groups |= {"dropout_": Group(errors_with_dropout, (), depths, seeds[:1])}
    groups |= {"": Group(errors_of_rules, ("mlp", "smooth"), fine, seeds)}
    parts = {
        f"{label}{depth}_{seed}": (group.measure, *group.arguments, depth, seed, run.device)
        for label, group in groups.items()
        for depth in group.layers
        for seed in group.seeds
    }
    parts |= {f"cost_{depth}": (costs, depth, run.seed, run.device) for depth in fine}
    found = run.map(lambda part, measure, *arguments: measure(*arguments), parts)
    curves = {"depths": np.array(depths), "fine": np.array(fine)}
    for label, group in groups.items():
        rows = [found[f"{label}{n}_{seed}"] for n in group.layers for seed in group.seeds]
        shape = (len(fine), networks) if not label else (len(depths),)
        curves |= _stacked(rows, label, shape)
    curves |= _stacked([found[f"cost_{depth}"] for depth in fine], "", (len(fine),))
    scalars = _slopes(curves, fitted)
    claims = [*_bars(curves, scalars, fitted), *_rough(curves), *_cost_claims(curves)]
    return Findings(scalars, curves, claims)


class Group(NamedTuple):
    """Networks of one kind: what to measure on them, for which depths and seeds."""

    measure: Callable[..., dict[str, float]]
    arguments: tuple[str, ...]
    layers: tuple[int, ...]
    seeds: range


def errors_of_rules(
    network: str, kind: str, depth: int, seed: int, device: torch.device
) -> dict[str, float]:
    """Return ``MEASURE_RULE`` for all rules: errors of the gradient against backprop, of states."""
    errors: dict[str, float] = {}
    for method in dict.fromkeys(rule.method for rule in RULES.values()):
        task = draw_task(network, kind, depth, method, seed, device)
        true = task.gradients("backprop")
        for name, rule in RULES.items():
            if rule.method == method:
                relative, absolute = _distance(task.gradients(rule.gradient), true)
                errors |= {f"relative_{name}": relative, f"absolute_{name}": absolute}
                if isinstance(rule.gradient, Reconstruct):
                    errors[f"state_{name}"] = _state_error(task, rule.gradient)
    return errors


def errors_with_dropout(depth: int, seed: int, device: torch.device) -> dict[str, float]:
    """Return ``relative_RULE``: errors with the same masks, against sweeps up to rounding."""
    task = draw_task("dropout", "smooth", depth, "euler", seed, device)

    def gradients(gradient: str | Gradient) -> tuple[Tensor, ...]:
        with seeded(seed):
            return task.gradients(gradient)

    true = gradients(Reconstruct(sweeps=40))
    return {
        f"relative_{name}": _distance(gradients(RULES[name].gradient), true)[0]
        for name in _DROPOUT_RULES
    }


def costs(depth: int, seed: int, device: torch.device) -> dict[str, float]:
    """Return ``units_RULE`` and ``seconds_RULE`` for a smooth perceptron."""
    found: dict[str, float] = {}
    for name in _COSTED:
        method, gradient = RULES.get(name, ("euler", name))
        cost = measure_cost(draw_task("mlp", "smooth", depth, method, seed, device), gradient, 2)
        found |= {f"units_{name}": cost.units, f"seconds_{name}": cost.seconds}
    return found


def _distance(found: Sequence[Tensor], true: Sequence[Tensor]) -> tuple[float, float]:
    """Return the relative distance of two gradients, and the largest one over layers."""
    layers = torch.stack(
        [(a - b).flatten(1).square().sum(1) for a, b in zip(found, true, strict=True)]
    ).sum(0)
    size = sum(float(b.square().sum()) for b in true)
    return (float(layers.sum()) / size) ** 0.5, float(layers.max()) ** 0.5


def _state_error(task: Task, gradient: Reconstruct) -> float:
    states = trajectory(task.block, task.x)
    seen = reconstruction(task.block, states[-1], gradient)
    return float((seen - states).flatten(1).norm(dim=1).max())


def _stacked(
    rows: Sequence[Mapping[str, float]], label: str, shape: tuple[int, ...]
) -> dict[str, Curve]:
    """Return a curve for each ``MEASURE_RULE`` of the rows, called ``MEASURE_LABELRULE``."""
    return {
        name.replace("_", f"_{label}", 1): np.array([row[name] for row in rows]).reshape(shape)
        for name in rows[0]
    }


def _slopes(curves: Mapping[str, Curve], fitted: int) -> dict[str, float]:
    """Fit the geometric means over networks of smooth perceptrons' gradient errors."""
    deep = curves["fine"] >= fitted
    layers = curves["fine"][deep].tolist()
    return {
        f"{measure}_slope_{rule}": fit_slope(
            layers, _middle(curves[f"{measure}_{rule}"][deep])
        ).value
        for measure in ("relative", "absolute")
        for rule in RULES
        if rule != "reversible"  # its errors are rounding
    }


def _middle(errors: Curve) -> list[float]:
    means: list[float] = np.exp(np.log(errors).mean(axis=1)).tolist()
    return means


def _bars(curves: Mapping[str, Curve], slopes: Mapping[str, float], fitted: int) -> list[Claim]:
    """Decide the claims on smooth perceptrons."""
    row = curves["fine"].tolist().index(fitted)
    at = {rule: _middle(curves[f"relative_{rule}"][[row]])[0] for rule in RULES}
    text, where = "relative gradient error", f"smooth weights, {fitted} layers, mean over networks"
    claims = [
        Claim("FW8", f"{text} over that of reverse, {rule}, {where}", at[rule] / at["reverse"],
              high=1 / factor)
        for rule, factor in (("corrected", 20), ("predicted_2", 30))
    ]  # fmt: skip
    claims.append(Claim("FW8", f"{text}, reversible, {where}", at["reversible"], high=1e-12))
    ranges: list[tuple[str, str, float | None, float]] = [
        ("relative", "reverse", -1.15, -0.85),
        ("relative", "sweeps", -3.15, -2.85),
        ("relative", "corrected", None, -1.85),
        ("relative", "predicted", None, -1.85),
        ("relative", "predicted_2", None, -2.5),
        ("relative", "predicted_2_swept", None, -3.5),
        ("absolute", "heun_reverse", None, -3.7),
        ("absolute", "heun_corrected", None, -4.7),
    ]
    claims += [
        Claim("FW8", f"slope of the {measure} gradient error, {rule}, smooth weights",
              slopes[f"{measure}_slope_{rule}"], low=low, high=high)
        for measure, rule, low, high in ranges
    ]  # fmt: skip
    return claims


def _rough(curves: Mapping[str, Curve]) -> list[Claim]:
    """Decide the claims on weights that jump with depth, and on dropout."""
    ends = curves["depths"][[0, -1]].tolist()

    def rough(rule: str) -> Iterable[Curve]:
        return (curves[f"relative_{n}_{k}_{rule}"] for n in _NETWORKS for k in KINDS[1:])

    slope = max(fit_slope(ends, errors[[0, -1]].tolist()).value for errors in rough("corrected"))
    claims = [
        Claim("FW8", "slope of the relative gradient error, corrected, rough weights, flattest of "
              "all networks", slope, high=-1.7)
    ]  # fmt: skip
    text = "relative gradient error over that of corrected, largest over networks and depths"
    for rule in ("predicted", "predicted_2"):
        pairs = zip(rough(rule), rough("corrected"), strict=True)
        by_weights = max(float((p / c).max()) for p, c in pairs)
        by_chance = curves[f"relative_dropout_{rule}"] / curves["relative_dropout_corrected"]
        claims.append(Claim("FW8", f"{text}, {rule}, rough weights", by_weights, high=TRUST))
        claims.append(Claim("FW8", f"{text}, {rule}, dropout", float(by_chance.max()), high=TRUST))
    return claims


def _cost_claims(curves: Mapping[str, Curve]) -> list[Claim]:
    """Decide the claims on the cost of a layer, evaluation 1 and vector-Jacobian product 2."""
    text = "units of work a layer, smooth weights, deepest network"
    expected = {"reverse": 5.0, "corrected": 5.0, "predicted_2": 4.0, "predicted_2_swept": 5.0}
    return [
        Claim("FW8", f"{text}, {rule}", float(curves[f"units_{rule}"][-1] / curves["fine"][-1]),
              low=units, high=units + 0.05)
        for rule, units in expected.items()
    ]  # fmt: skip
