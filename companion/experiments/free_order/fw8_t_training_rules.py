r"""FW8-T: where do better reverse rules help training?

Perceptrons learn digits by every rule. To go back through a layer is to solve
$x = x_{n+1} - f_n(x)/N$, and the rules differ in the iterates of this map that they take. The
iterates are certain to converge where $L/N < 1$, with the Lipschitz constant $L$ of the layer. So
that number is the axis of a grid: the initial weights of every network are scaled until its largest
$L/N$ over layers and a hundred samples has a given value.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.analysis.reconstruction import trajectory
from companion.data import load_digits
from companion.experiments import Findings, Grid, Run, experiment
from companion.experiments.digits_company import mean_excess, paired_excess, train_together
from companion.experiments.gradient_rules import RULES, digits_net
from companion.gradients import Reconstruct
from companion.models import ResidualMLP

_FEW = ("backprop", "reverse", "sweeps", "corrected", "predicted")


@experiment(
    "FW8-T",
    "Test error against the steepness of layers for every gradient rule",
    paper="beyond Sander et al. 2022, Fig. 4",
    claims=(
        ("FW8-T", "excess_flat", None, 0.01,
         "mean test error, memory-free minus backprop, largest over rules, L/N at most 1"),
        ("FW8-T", "won_corrected", 2.36, None,
         "share of runs that corrected ends with a lower test error than reverse, minus the share "
         "the other way, over its standard error over seeds, L/N above 1, at most 2; 2.36 is the "
         "97.5 % point of Student's t for 8 seeds"),
        ("FW8-T", "excess_steep", 0.1, None,
         "mean test error, memory-free minus backprop, smallest over rules, L/N at least 2.5"),
        ("FW7", "excess_sweeps", None, 0.02,
         "mean test error, two more sweeps minus backprop, {depths[0]} layers, L/N = {moderate}"),
        ("CL59", "excess_reverse_steepest", 0.1, None,
         "mean test error, memory-free minus backprop, largest L/N"),
        ("CL60", "apart_reverse_flattest", None, 0.01,
         "mean test error, memory-free against backprop, smallest L/N"),
    ),
    full={
        "rules": (*_FEW, "heun_backprop", "heun_reverse", "heun_corrected"),
        "steepness": (0.8, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0), "seeds": 16,
    },
    tiny={
        "rules": ("backprop", "reverse", "sweeps", "corrected"), "depths": (4,),
        "steepness": (0.8, 1.6, 3.0), "seeds": 2, "epochs": 1,
    },
    tolerance=1e-2,  # trained in single precision
)  # fmt: skip
def fw8_t(
    run: Run, *, rules: tuple[str, ...] = _FEW, depths: tuple[int, ...] = (8,),
    steepness: tuple[float, ...] = (0.8, 1.3, 1.6, 3.0), seeds: int = 8,
    epochs: int = 12, rate: float = 0.02,
) -> Findings:  # fmt: skip
    r"""Train a perceptron by every rule, at every depth and steepness, from every seed.

    Curves: ``depths``, ``steepness``; for each rule ``error_RULE`` and ``diverged_RULE`` of shape
    ``(depths, steepness, seeds)``; ``gains``, the factors on the initial weights, of the same
    shape. What decides claims is taken at the first depth; where no steepness lies in a claim's
    range, at the nearest end of the grid.
    """
    data = load_digits(device=run.device, dtype=run.dtype)
    x = data.x_test[:100].cpu()
    gains = {
        (n, s, k): gain_for(n, s, k, x) for n in depths for s in steepness for k in run.seeds(seeds)
    }

    def make(rule: str, depth: int, steepness: float, seed: int) -> ResidualMLP:
        return digits_net(rule, depth, seed, gains[depth, steepness, seed])

    errors, diverged = train_together(
        run, make, data, rules=rules, seeds=seeds, epochs=epochs, rate=rate,
        needed=("backprop", "reverse", "sweeps", "corrected"), depth=depths, steepness=steepness,
    )  # fmt: skip
    table = np.array(list(gains.values())).reshape(len(depths), len(steepness), seeds)
    curves = {"depths": depths, "steepness": steepness, "gains": table}
    curves |= errors.named("error", "rule") | diverged.named("diverged", "rule")
    return Findings(decisive(errors.at(depth=depths[0])), curves, data=data.provenance,
                    deciding={"moderate": nearest(steepness, 1.6)})  # fmt: skip


def gain_for(depth: int, steepness: float, seed: int, x: Tensor) -> float:
    r"""Return the factor on the initial weights with which the largest $L/N$ is ``steepness``.

    Both matrices of a layer have it, so that a layer's Jacobian has its square where no unit
    crosses its kink; a few corrections find the rest.
    """
    gain = 1.0
    for _ in range(5):
        net = digits_net("backprop", depth, seed, gain).to(x.dtype)
        gain *= math.sqrt(steepness / steepest(net, x))
    return gain


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


def nearest(steepness: Sequence[float], wanted: float) -> float:
    """Return the value on the grid that lies nearest to the one wanted."""
    return min(steepness, key=lambda own: abs(own - wanted))


def decisive(errors: Grid) -> dict[str, float]:
    """Return what decides the claims, of errors over the axes rule, steepness and seed."""
    grid = errors.axes["steepness"]
    rules = [r for r in errors.axes["rule"] if isinstance(RULES[r].gradient, Reconstruct)]
    flat = [s for s in grid if s <= 1] or [min(grid)]
    between = [s for s in grid if 1 < s <= 2] or [nearest(grid, 1.6)]
    steep = [s for s in grid if s >= 2.5] or [max(grid)]
    # A run that fails is worse by so much that it alone would decide a mean: so count who wins.
    won = [np.sign(paired_excess(errors, "reverse", "corrected", steepness=s)) for s in between]
    return {
        "excess_flat": max(mean_excess(errors, r, steepness=s) for r in rules for s in flat),
        "excess_steep": min(mean_excess(errors, r, steepness=s) for r in rules for s in steep),
        "won_corrected": in_standard_errors(np.mean(won, axis=0)),
        "excess_sweeps": mean_excess(errors, "sweeps", steepness=nearest(grid, 1.6)),
        "excess_reverse_steepest": mean_excess(errors, "reverse", steepness=max(grid)),
        "apart_reverse_flattest": abs(mean_excess(errors, "reverse", steepness=min(grid))),
    }


def in_standard_errors(differences: NDArray[np.float64]) -> float:
    r"""Return the mean over its standard error, Student's $t$; NaN where all are equal.

    Example:
        >>> in_standard_errors(np.array([1.0, 2.0, 3.0])) / math.sqrt(12)
        1.0
    """
    if len(differences) < 2 or not np.ptp(differences):
        return math.nan
    return float(np.mean(differences) / np.std(differences, ddof=1) * len(differences) ** 0.5)
