r"""FW8-T: do better gradients let shallower networks train without stored activations?

Perceptrons learn digits by every rule of this package. Their layers start with Lipschitz constants
$L$ that do not depend on the depth $N$. To go back through a layer is to solve
$x = x_{n+1} - f_n(x)/N$, and the rules differ in the iterates of this map that they take. The
iterates are certain to converge where $L/N < 1$.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.analysis.reconstruction import trajectory
from companion.data import load_digits
from companion.experiments import Findings, Part, Run, experiment
from companion.experiments import gradient_rules as training
from companion.experiments.gradient_rules import RULES, Study
from companion.gradients import Reconstruct
from companion.models import ResidualMLP

_CLOSE = 0.02
"""A mean test error this much above backprop's counts as equal."""

_SLOW = ("predicted_2", "heun_reverse")
"""Rules that the ``smoke`` tier leaves out."""


@experiment(
    "FW8-T",
    "Test error against depth for every gradient rule",
    paper="beyond Sander et al. 2022, Fig. 4",
    claims=(
        ("FW8-T", "excess_flat", None, _CLOSE,
         "mean test error, memory-free minus backprop, largest over rules and depths, L/N < 1"),
        ("FW8-T", "excess_steep", 0.1, None,
         "mean test error, memory-free minus backprop, smallest over rules and depths, L/N >= 2"),
        ("FW7", "excess_sweeps", None, _CLOSE,
         "mean test error, two more sweeps minus backprop, {eight} layers",
         "L/N starts at {steepness:.2f} on average; where it is above 1, further sweeps need not "
         "come closer to a layer's input."),
    ),
    full={"rules": tuple(RULES), "depths": (2, 4, 8, 16, 32, 64), "seeds": 5, "epochs": 12},
    tiny={
        "rules": ("backprop", "sweeps", "reversible"), "depths": (2, 16), "seeds": 1, "epochs": 1,
    },
    tolerance=1e-2,  # trained in single precision
)  # fmt: skip
def fw8_t(
    run: Run, *,
    rules: tuple[str, ...] = tuple(rule for rule in RULES if rule not in _SLOW),
    depths: tuple[int, ...] = (4, 8, 16), seeds: int = 2, epochs: int = 6, rate: float = 0.02,
    gain: float = 2.0,
) -> Findings:  # fmt: skip
    r"""Train a perceptron by every rule, at every depth, from every seed.

    Curves: ``depths``; for each rule ``error_RULE`` and ``diverged_RULE`` of shape
    ``(depths, seeds)``; ``contraction``, of the same shape: the largest $L/N$ over the layers of
    the network that backprop starts from. Scalars: ``error_RULE_DEPTH`` and
    ``median_RULE_DEPTH``, the means and medians over seeds; ``enough_RULE``, the shallowest depth
    whose mean is at most 0.02 above that of backprop with the same scheme (Euler's for
    ``reversible``), infinite if none is; ``enough_median_RULE``, the same with medians;
    ``contraction_DEPTH``, the means over seeds; ``excess_flat`` (at the deepest, where no depth has
    a mean $L/N < 1$) and ``excess_steep`` (or the shallowest).
    """
    data = load_digits(device=run.device)

    def train(part: Part, rule: str, depth: int, seed: int) -> list[float]:
        net = training.digits_net(rule, depth, seed, gain)
        return training.digits_error(part, data, net, seed, epochs=epochs, rate=rate)

    needed = ("backprop", "sweeps")
    study = training.train_all(run, train, rules=rules, depths=depths, seeds=seeds, needed=needed)
    starts = [
        [training.digits_net("backprop", n, k, gain) for k in run.seeds(seeds)] for n in depths
    ]
    contraction = np.array([[steepest(net, data.x_test.cpu()) for net in row] for row in starts])
    scalars = study.scalars()
    for rule in rules:
        scalars[f"enough_{rule}"] = enough(study, rule, np.mean)
        scalars[f"enough_median_{rule}"] = enough(study, rule, np.median)
        for depth in depths:
            median = np.median(study.errors.at(rule=rule, depth=depth).values)
            scalars[f"median_{training.at_depth(rule, depth)}"] = float(median)
    means = contraction.mean(axis=1)
    scalars |= {f"contraction_{n}": x for n, x in zip(depths, means, strict=True)}
    scalars["excess_flat"], scalars["excess_steep"] = _excess(study, means)
    curves = study.curves() | {"contraction": contraction}
    return Findings(scalars, curves, data=data.provenance, deciding=deciding(study, means))


@torch.no_grad()
def steepest(net: ResidualMLP, x: Tensor) -> float:
    r"""Return the largest norm of a layer's Jacobian along the trajectories, over the depth.

    For $f_n(x) = V_n\,\mathrm{relu}(W_n x + b_n) + c_n$ that is

    $$\max_{n, x} \tfrac1N \lVert V_n \operatorname{diag}(W_n x_n + b_n > 0)\, W_n \rVert_2.$$
    """
    inner, shift, outer, _ = net.block.weights.parameters()
    states = trajectory(net.block, net.stem(x))
    largest = 0.0
    for n in range(len(inner)):
        active = (states[n] @ inner[n].T + shift[n] > 0).to(x.dtype)
        jacobians = torch.einsum("ih,bh,hj->bij", outer[n], active, inner[n])
        largest = max(largest, torch.linalg.matrix_norm(jacobians, 2).max().item())
    return largest / len(inner)


def enough(study: Study, rule: str, average: Callable[[NDArray[np.float64]], np.float64]) -> float:
    """Return the shallowest depth at which a rule does as well as backprop, by some average."""
    for depth in sorted(study.depths):
        own, reference = (
            average(study.errors.at(rule=name, depth=depth).values)
            for name in (rule, RULES[rule].reference)
        )
        if own - reference < _CLOSE + 1e-9:
            return float(depth)
    return math.inf


def _excess(study: Study, contraction: NDArray[np.float64]) -> tuple[float, float]:
    """Return the largest excess of a memory-free rule where L/N < 1, the smallest from 2 on."""
    rules = [r for r in study.errors.axes["rule"] if isinstance(RULES[r].gradient, Reconstruct)]
    pairs = list(zip(study.depths, contraction, strict=True))
    flat = [depth for depth, x in pairs if x < 1] or [max(study.depths)]
    steep = [depth for depth, x in pairs if x >= 2] or [min(study.depths)]
    return (
        max(study.excess(rule, depth) for rule in rules for depth in flat),
        min(study.excess(rule, depth) for rule in rules for depth in steep),
    )


def deciding(study: Study, contraction: NDArray[np.float64]) -> dict[str, float]:
    """Return what decides the claim on two more sweeps, at the depth nearest to 8."""
    eight = study.nearest(8)
    steepness = contraction[study.depths.index(eight)]
    excess = study.excess("sweeps", eight)
    return {"eight": eight, "steepness": steepness, "excess_sweeps": excess}
