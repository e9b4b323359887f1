"""FW2a: adaptive inference, with and without a restart where the weights jump.

Queiruga et al. (2020, section 6) leave adaptive solvers to future work. Here perceptrons trained on
digits with fixed steps are run by dopri5, in double precision. Their weights jump at the knots
between cells. An :class:`~companion.OdeBlock` solves cell by cell; beside it, one solve goes across
all knots and lets the step size control find them.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from companion.data import Samples, load_digits
from companion.experiments import Findings, Run, experiment
from companion.experiments.continuous_digits import CELLS, Variant, measure_digits, net_error
from companion.experiments.recipes import deviation, error_of
from companion.models import ContinuousMLP
from companion.observe import count_nfe
from companion.ode import odeint

VARIANTS = (
    Variant("euler", scale=CELLS),
    Variant("rk4", scale=CELLS),
    Variant("rk4", refined=True),
)

ROUGH, REFINED = VARIANTS[0].name, VARIANTS[-1].name

WAYS = ("restart", "across")
"""How the knots are treated: a new solve in every cell, or one solve across all."""

OWN = 4 * CELLS
"""Evaluations of the graph that the RK4 networks were trained with."""

_EXACT = 64 * CELLS
"""Steps of RK4 that stand for the exact solution, to about 5e-6: at the kinks of the ReLU its error
falls like that of a method of order 2."""


@experiment(
    "FW2a",
    "Trained perceptrons run by an adaptive solver, restarted at the knots or not",
    paper="beyond Queiruga et al. 2020, section 6",
    full={"seeds": 10, "tolerances": (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)},
    tiny={"seeds": 1, "epochs": 2, "tolerances": (1e-1, 1e-2)},
    claims=(
        ("FW2a", "cheapest_share", None, 0.7,
         "fewest evaluations of the refined net at its own error, in one solve, over its 32"),
        ("FW2a", "across_over_restart", 1.0, None,
         "evaluations in one solve over those with restarts, Euler-trained with epsilon = 8, "
         "at a deviation of 0.001"),
    ),
)  # fmt: skip
def fw2a(
    run: Run, *, seeds: int = 5, epochs: int = 30,
    tolerances: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
) -> Findings:  # fmt: skip
    """Train three variants and solve each of them adaptively.

    Curves: ``tolerances``; for each variant and for ``restart`` and ``across``, of shape
    ``(seeds, tolerances)``: ``nfe_VARIANT_HOW``, ``error_VARIANT_HOW`` and
    ``deviation_VARIANT_HOW`` from the exact solution; ``fixed_VARIANT``, the test error of the
    trained graph by seed. Scalars: ``cheapest_HOW``, the fewest evaluations at which the refined
    net keeps its error within 0.005; ``needed_VARIANT_HOW``, the fewest with a deviation of at most
    0.001. Both are means over seeds, and infinite where no tolerance gets there.
    """
    data = load_digits(device=run.device, dtype=run.dtype)

    def measure(net: ContinuousMLP) -> dict[str, Any]:
        return adaptive_table(net, data, tolerances)

    tables = measure_digits(run, VARIANTS, seeds, data, measure, epochs=epochs)
    curves: dict[str, Any] = {"tolerances": tolerances}
    for name, table in tables.items():
        curves[f"fixed_{name}"] = table["fixed"]
        for how in WAYS:
            for k, key in enumerate(("nfe", "error", "deviation")):
                curves[f"{key}_{name}_{how}"] = table[how][..., k]
    return Findings(costs(curves), curves, data=data.sha256)


def costs(curves: Mapping[str, Any]) -> dict[str, float]:
    """Return what the claims are about, from the curves."""
    scalars = {f"cheapest_{how}": cheapest(curves, how) for how in WAYS}
    for variant in VARIANTS:
        for how in WAYS:
            scalars[f"needed_{variant.name}_{how}"] = needed(curves, variant.name, how)
    scalars["cheapest_share"] = scalars["cheapest_across"] / OWN
    across, restart = (scalars[f"needed_{ROUGH}_{how}"] for how in ("across", "restart"))
    scalars["across_over_restart"] = across / restart
    return scalars


@torch.no_grad()
def adaptive_table(
    net: ContinuousMLP, data: Samples, tolerances: tuple[float, ...]
) -> dict[str, Any]:
    """Return ``fixed`` and, for both ways, evaluations, error and deviation by tolerance."""
    fixed = net_error(net, data)
    net, x = copy.deepcopy(net).double(), data.x_test.double()
    exact = net.with_graph(method="rk4", steps=_EXACT)(x)

    def row(view: nn.Module) -> list[float]:
        with count_nfe(net) as nfe:
            scores = view(x)
        return [nfe.total, error_of(scores, data.y_test), deviation(scores, exact)]

    return {
        "fixed": fixed,
        "restart": [row(restarting(net, tolerance)) for tolerance in tolerances],
        "across": [row(Across(net, tolerance)) for tolerance in tolerances],
    }


def restarting(net: ContinuousMLP, tolerance: float) -> ContinuousMLP:
    """Return the network under dopri5, which starts anew in every cell."""
    return net.with_graph(method="dopri5", rtol=tolerance, atol=tolerance)


class Across(nn.Module):
    """The network under dopri5 in one solve from 0 to 1, which knows nothing of the knots."""

    def __init__(self, net: ContinuousMLP, tolerance: float) -> None:
        super().__init__()
        self.net, self.tolerance = net, tolerance

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores."""
        block = self.net.block
        stacks, cells = dict(block.weights.stacks.named_parameters()), block.weights.basis.cells

        def field(t: Tensor, x: Tensor) -> Tensor:
            cell = min(int(float(t) * cells), cells - 1)
            values = {name: stack[cell] for name, stack in stacks.items()}
            residual: Tensor = torch.func.functional_call(block.weights.template, values, (x,))
            return block.scale * residual

        tolerance = self.tolerance
        states = odeint(field, self.net.stem(x), [0.0, 1.0], rtol=tolerance, atol=tolerance)
        scores: Tensor = self.net.head(states[-1])
        return scores


def needed(curves: Mapping[str, Any], variant: str, how: str, accuracy: float = 1e-3) -> float:
    """Return the fewest mean evaluations with a mean deviation of at most ``accuracy``."""
    reached = curves[f"deviation_{variant}_{how}"].mean(0) <= accuracy
    return float(np.where(reached, curves[f"nfe_{variant}_{how}"].mean(0), np.inf).min())


def cheapest(curves: Mapping[str, Any], how: str, slack: float = 0.005) -> float:
    """Return the fewest mean evaluations at which the refined net keeps its mean error."""
    error = curves[f"error_{REFINED}_{how}"].mean(0)
    near = np.abs(error - np.mean(curves[f"fixed_{REFINED}"])) <= slack
    return float(np.where(near, curves[f"nfe_{REFINED}_{how}"].mean(0), np.inf).min())
