r"""Q20-F7: does refinement disturb training, and what does it save?

Queiruga et al. (2020, Fig. 7) train ContinuousNets on CIFAR-10 and double cells and steps at preset
epochs. Here a perceptron on scikit-learn's digits grows from one cell and one step to eight, in
both tiers: ``full`` has more seeds. (The curve of a network on CIFAR-10 is recorded by Q20-T1a.)
Momentum is split with the weights, or dropped, as the paper's is. Time is CPU time, measured on
single epochs at every size.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from companion.basis import PiecewiseConstant
from companion.data import Samples, load_digits
from companion.experiments.continuous_digits import (
    CELLS,
    REFINEMENTS,
    Variant,
    digits_net,
    digits_options,
    error_of,
    logits,
    train_digits,
)
from companion.experiments.gradient_rules import classification_loss
from companion.experiments.refinement.q20_cm_evaluation_costs import line, r_squared
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models import ContinuousMLP
from companion.results import Claim, Findings
from companion.train import fit

VARIANTS = {
    "rk4": (Variant("rk4", refined=True), "split"),
    "rk4_drop": (Variant("rk4", refined=True), "drop"),
    "euler": (Variant("euler", refined=True), "split"),
}
"""How the refined networks are trained, and what becomes of momentum."""


@experiment(
    "Q20-F7",
    "Refinement while training on digits: errors at the splits, evaluations and time",
    paper="Queiruga et al. 2020, Fig. 7 and section 5",
    claims=("CL33", "CL34"),
    full={"variants": ("rk4", "euler", "rk4_drop"), "seeds": 12, "repeats": 20},
)
def q20_f7(
    run: Run,
    *,
    variants: tuple[str, ...] = ("rk4", "euler"),
    seeds: int = 4,
    epochs: int = 30,
    rate: float = 0.05,
    repeats: int = 3,
) -> Findings:
    """Train refined networks from every seed, and deep ones to compare with.

    Curves: ``steps`` of each epoch; for each variant ``error_VARIANT`` of shape
    ``(seeds, epochs)``, the test error after each epoch, ``before_VARIANT`` and ``after_VARIANT``
    of shape ``(seeds, splits)``; ``error_deep``, the final errors at full depth from the start;
    ``sizes`` and ``seconds``, CPU time of an RK4 epoch. Scalars: ``mean_error_VARIANT`` and
    ``mean_error_deep``; ``evaluations_ratio``, ``time_ratio``, ``r_squared``, ``fixed``,
    ``per_step``.
    """
    if not {"rk4", "euler"} <= set(variants) <= set(VARIANTS):
        raise ValueError(
            f"variants must be some of {', '.join(VARIANTS)}, with rk4 and euler; got {variants}"
        )
    if epochs < 5:
        raise ValueError(f"epochs must be at least 5, so that each size has one; got {epochs}")
    data = load_digits(device=run.device)
    options = {"epochs": epochs, "rate": rate}

    def train(part: Part, variant: str, seed: int) -> dict[str, list[float]]:
        return _refined(part, variant, seed, data, options)

    def deep(part: Part) -> list[float]:
        nets = train_digits(
            part, Variant("rk4"), [run.seed + seed for seed in range(seeds)], data, **options
        )
        return [error_of(logits(net, data), data) for net in nets]

    pairs = [(variant, run.seed + seed) for variant in variants for seed in range(seeds)]
    rows = run.map(train, {f"{variant}, seed {seed}": (variant, seed) for variant, seed in pairs})
    errors = run.map(deep, {"full depth": ()})["full depth"]
    sizes = [2**k for k in range(REFINEMENTS + 1)]
    seconds = run.map(_seconds, {"time": (data, sizes, repeats)})["time"]
    tables = _tables(variants, list(rows.values()), seeds)
    scalars = {f"mean_error_{name}": table["error"][:, -1].mean() for name, table in tables.items()}
    scalars["mean_error_deep"] = np.mean(errors)
    steps = tables["rk4"]["steps"][0]
    scalars |= _cost(steps, sizes, seconds)
    curves: dict[str, Any] = {
        f"{what}_{name}": table[what]
        for name, table in tables.items()
        for what in ("error", "before", "after")
    }
    curves |= {"steps": steps, "error_deep": errors, "sizes": sizes, "seconds": seconds}
    return Findings(scalars, curves, _claims(tables, scalars), data.provenance)


def _refined(
    part: Part, name: str, seed: int, data: Samples, options: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Train one network; return its errors after each epoch, and around each split."""
    variant, momentum = VARIANTS[name]
    net = digits_net(variant, seed).to(data.x_train)
    settings = digits_options(variant, **options)
    settings["refinement"] = replace(settings["refinement"], momentum=momentum)
    history = fit(
        net, classification_loss, (data.x_train, data.y_train),
        generator=torch.Generator().manual_seed(seed),
        on_epoch=lambda: {"error": error_of(logits(net, data), data), "steps": net.block.steps},
        snapshot=part.snapshot, report=part.report, **settings,
    )  # fmt: skip
    before = [history["error"][epoch - 1] for epoch in settings["refinement"].at]
    return {
        "error": history["error"],
        "before": before,
        "after": history["refined_error"],
        "steps": history["steps"],
    }


def _tables(
    variants: tuple[str, ...], rows: list[dict[str, list[float]]], seeds: int
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return for each variant its numbers, one row a seed."""
    tables = {}
    for k, name in enumerate(variants):
        own = rows[k * seeds : (k + 1) * seeds]
        tables[name] = {what: np.array([row[what] for row in own]) for what in own[0]}
    return tables


def _seconds(part: Part, data: Samples, sizes: list[int], repeats: int) -> list[float]:
    """Return the shortest CPU time of an epoch of RK4 at every number of cells and steps."""
    shortest = [float("inf")] * len(sizes)
    for repeat in range(repeats):
        for k, size in enumerate(sizes):
            net = ContinuousMLP(64, 10, basis=PiecewiseConstant(size), method="rk4", steps=size).to(
                data.x_train
            )
            options = digits_options(Variant("rk4"), epochs=1)
            start = time.process_time()
            fit(
                net, classification_loss, (data.x_train, data.y_train),
                generator=torch.Generator().manual_seed(0), **options,
            )  # fmt: skip
            shortest[k] = min(shortest[k], time.process_time() - start)
        part.report((repeat + 1) / repeats)
    return shortest


def _cost(steps: NDArray[np.float64], sizes: list[int], seconds: list[float]) -> dict[str, float]:
    """Return what the epochs at ``steps`` cost, against as many at full depth."""
    of_size = dict(zip(sizes, seconds, strict=True))
    fixed, per_step = line(sizes, seconds)
    return {
        "evaluations_ratio": float(steps.sum() / (CELLS * len(steps))),
        "time_ratio": sum(of_size[int(n)] for n in steps) / (of_size[CELLS] * len(steps)),
        "r_squared": r_squared(sizes, seconds),
        "fixed": fixed,
        "per_step": per_step,
    }


def _claims(
    tables: Mapping[str, Mapping[str, NDArray[np.float64]]], scalars: Mapping[str, float]
) -> list[Claim]:
    change = {
        name: np.abs(table["after"] - table["before"]).max() for name, table in tables.items()
    }
    text = "change of the test error at a split, {}, largest over seeds and splits"
    ratio = scalars["evaluations_ratio"]
    return [
        Claim("CL33", text.format("RK4"), float(change["rk4"]), high=0.005),
        Claim("CL33", text.format("Euler"), float(change["euler"]), high=0.02),
        Claim(
            "CL34",
            "evaluations of refined training over those at full depth",
            ratio,
            low=0.575,
            high=0.575,
        ),
        Claim("CL34", "CPU time of them, in the same ratio", scalars["time_ratio"], high=0.85),
        Claim("CL34", "CPU time of an epoch, R^2 of a + b N", scalars["r_squared"], low=0.9),
    ]
