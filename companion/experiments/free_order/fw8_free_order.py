r"""FW8: a free order of accuracy in training without stored activations.

A memory-free sweep guesses the input of each layer from its output and evaluates the layer there
for the vector-Jacobian product. The paper's rule forgets the value. The corrected rule goes on from
it; the predicted rule makes the guess from the values of later layers. Here their gradients are
compared with backprop's on random networks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.experiments import Findings, Run, experiment
from companion.experiments.free_order import networks as nets
from companion.experiments.free_order.networks import KINDS, RULES
from companion.gradients import Gradient, Reconstruct
from companion.gradients.reverse_sweep import TRUST
from companion.observe import fit_slope, geometric_mean
from companion.train import seeded

_NETWORKS = ("mlp", "conv", "tokens")
_DROPOUT_RULES = ("reverse", "corrected", "predicted", "predicted_2")
_COSTED = ("backprop", "checkpoint", *RULES)

Curve = NDArray[np.float64]


@experiment(
    "FW8",
    "Gradient errors of memory-free rules against depth and cost",
    paper="beyond Sander et al. 2022, section 4",
    claims=(
        ("FW8", "over_reverse_corrected", None, 1 / 20,
         "relative gradient error over that of reverse, corrected, smooth weights, {fitted} layers,"
         " mean over networks"),
        ("FW8", "over_reverse_predicted_2", None, 1 / 30,
         "relative gradient error over that of reverse, predicted_2, smooth weights, {fitted} "
         "layers, mean over networks"),
        ("FW8", "relative_reversible_fitted", None, 1e-12,
         "relative gradient error, reversible, smooth weights, {fitted} layers, mean over "
         "networks"),
        *(
            ("FW8", f"{measure}_slope_{rule}", low, high,
             f"slope of the {measure} gradient error, {rule}, smooth weights")
            for measure, rule, low, high in (
                ("relative", "reverse", -1.15, -0.85),
                ("relative", "sweeps", -3.15, -2.85),
                ("relative", "corrected", None, -1.85),
                ("relative", "predicted", None, -1.85),
                ("relative", "predicted_2", None, -2.5),
                ("relative", "predicted_2_swept", None, -3.5),
                ("absolute", "heun_reverse", None, -3.7),
                ("absolute", "heun_corrected", None, -4.7),
            )
        ),
        ("FW8", "rough_slope_corrected", None, -1.7,
         "slope of the relative gradient error, corrected, rough weights, flattest of all "
         "networks"),
        *(
            ("FW8", f"over_corrected_{rule}_{cause}", None, TRUST,
             "relative gradient error over that of corrected, largest over networks and depths, "
             f"{rule}, {text}")
            for rule in ("predicted", "predicted_2")
            for cause, text in (("weights", "rough weights"), ("dropout", "dropout"))
        ),
        *(
            ("FW8", f"units_a_layer_{rule}", units, units + 0.05,
             f"units of work a layer, smooth weights, deepest network, {rule}")
            for rule, units in (
                ("reverse", 5.0), ("corrected", 5.0), ("predicted_2", 4.0),
                ("predicted_2_swept", 5.0),
            )
        ),
    ),
    full={"depths": (16, 64, 256), "fine": (4, 8, 16, 32, 64, 128, 256, 512, 1024), "networks": 4},
    tiny={"depths": (1, 2), "fine": (2, 4), "fitted": 2, "networks": 1},
    machine_dependent=(
        *(f"seconds_{rule}" for rule in _COSTED),
        "relative_reversible_fitted",  # rounding
        *(
            f"{measure}_{label}reversible"
            for measure in ("relative", "absolute")
            for label in ("", "relu_smooth_", *(f"{n}_{k}_" for n in _NETWORKS for k in KINDS))
        ),
    ),
)  # fmt: skip
def fw8(
    run: Run, *, depths: tuple[int, ...] = (16, 64),
    fine: tuple[int, ...] = (16, 32, 64, 128, 256), fitted: int = 64, networks: int = 2,
) -> Findings:  # fmt: skip
    r"""Measure every rule on every kind of network.

    Curves: ``depths``; for each measure (``relative`` and ``absolute`` error of the gradient,
    largest error of a ``state``), network (``mlp``; ``conv`` with batch norm; ``tokens``, with
    layer norm), kind of weights and rule ``MEASURE_NETWORK_KIND_RULE``; the same for ``relu``, a
    ``conv`` with kinks, smooth weights only; ``relative_dropout_RULE``; all of one network.
    ``fine``; for smooth perceptrons ``MEASURE_RULE`` of shape ``(fine, networks)``,
    ``units_RULE`` and ``seconds_RULE``. Scalars: ``relative_slope_RULE`` and
    ``absolute_slope_RULE``, fitted from ``fitted`` layers on; what decides claims.
    """
    seeds = run.seeds(networks)
    one, rules = seeds[:1], errors_of_rules
    groups: dict[str, tuple[Callable[..., dict[str, float]], Any, Any, range]] = {
        **{f"{n}_{k}_": (rules, (n, k), depths, one) for n in _NETWORKS for k in KINDS},
        "relu_smooth_": (rules, ("relu", "smooth"), depths, one),
        "dropout_": (errors_with_dropout, (), depths, one),
        "": (rules, ("mlp", "smooth"), fine, seeds),
        "cost ": (costs, (), fine, one),
    }  # the label of networks: what to measure on them, of which kind, depths and seeds
    parts = {
        f"{label}{depth}_{seed}": (measure, *kind, depth, seed, run.device)
        for label, (measure, kind, layers, own) in groups.items()
        for depth in layers
        for seed in own
    }
    found = run.map(lambda part, measure, *arguments: measure(*arguments), parts)
    curves: dict[str, Curve] = {}
    for label, (_, _, layers, own) in groups.items():
        rows = [found[f"{label}{depth}_{seed}"] for depth in layers for seed in own]
        shape = (len(layers), len(own)) if not label else (len(layers),)
        for name in rows[0]:
            named = name if label == "cost " else name.replace("_", f"_{label}", 1)
            curves[named] = np.array([row[name] for row in rows]).reshape(shape)
    scalars = _smooth(curves, fine, fitted) | _rough(curves, depths)
    for rule in ("reverse", "corrected", "predicted_2", "predicted_2_swept"):
        scalars[f"units_a_layer_{rule}"] = curves[f"units_{rule}"][-1] / fine[-1]
    return Findings(scalars, {"depths": depths, "fine": fine, **curves})


def errors_of_rules(
    network: str, kind: str, depth: int, seed: int, device: torch.device
) -> dict[str, float]:
    """Return ``MEASURE_RULE`` for all rules: errors of the gradient against backprop, of states."""
    errors: dict[str, float] = {}
    for method in dict.fromkeys(rule.method for rule in RULES.values()):
        task = nets.draw_task(network, kind, depth, method, seed, device)
        true = task.gradients("backprop")
        for name, rule in RULES.items():
            if rule.method == method:
                relative, absolute = _distance(task.gradients(rule.gradient), true)
                errors |= {f"relative_{name}": relative, f"absolute_{name}": absolute}
                if isinstance(rule.gradient, Reconstruct):
                    errors[f"state_{name}"] = nets.state_error(task, rule.gradient)
    return errors


def errors_with_dropout(depth: int, seed: int, device: torch.device) -> dict[str, float]:
    """Return ``relative_RULE``: errors with the same masks, against sweeps up to rounding."""
    task = nets.draw_task("dropout", "smooth", depth, "euler", seed, device)

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
        task = nets.draw_task("mlp", "smooth", depth, method, seed, device)
        cost = nets.measure_cost(task, gradient, 2)
        found |= {f"units_{name}": cost.units, f"seconds_{name}": cost.seconds}
    return found


def _distance(found: Sequence[Tensor], true: Sequence[Tensor]) -> tuple[float, float]:
    """Return the relative distance of two gradients, and the largest one over layers."""
    layers = torch.stack(
        [(a - b).flatten(1).square().sum(1) for a, b in zip(found, true, strict=True)]
    ).sum(0)
    size = sum(float(b.square().sum()) for b in true)
    return (float(layers.sum()) / size) ** 0.5, float(layers.max()) ** 0.5


def _smooth(curves: Mapping[str, Curve], fine: tuple[int, ...], fitted: int) -> dict[str, float]:
    """Fit the geometric means over networks of smooth perceptrons' gradient errors."""
    start, scalars = fine.index(fitted), {}
    for rule in (rule for rule in RULES if rule != "reversible"):  # its errors are rounding
        for measure in ("relative", "absolute"):
            means = geometric_mean(curves[f"{measure}_{rule}"][start:], 1).tolist()
            scalars[f"{measure}_slope_{rule}"] = fit_slope(fine[start:], means).value
    at = {rule: geometric_mean(curves[f"relative_{rule}"][[start]], 1).item() for rule in RULES}
    for rule in ("corrected", "predicted_2"):
        scalars[f"over_reverse_{rule}"] = at[rule] / at["reverse"]
    return scalars | {"relative_reversible_fitted": at["reversible"]}


def _rough(curves: Mapping[str, Curve], depths: tuple[int, ...]) -> dict[str, float]:
    """Compare errors on weights that jump with depth, and with dropout."""

    def rough(rule: str) -> Curve:
        return np.array([curves[f"relative_{n}_{k}_{rule}"] for n in _NETWORKS for k in KINDS[1:]])

    ends, corrected = (depths[0], depths[-1]), rough("corrected")
    slopes = [fit_slope(ends, errors[[0, -1]].tolist()).value for errors in corrected]
    scalars: dict[str, Any] = {"rough_slope_corrected": max(slopes)}
    for rule in ("predicted", "predicted_2"):
        by_chance = curves[f"relative_dropout_{rule}"] / curves["relative_dropout_corrected"]
        scalars[f"over_corrected_{rule}_weights"] = (rough(rule) / corrected).max()
        scalars[f"over_corrected_{rule}_dropout"] = by_chance.max()
    return scalars
