r"""Q20-F7: does refinement disturb training, and what does it save?

Queiruga et al. (2020, Fig. 7) train ContinuousNets on CIFAR-10 and double cells and steps at preset
epochs; Q20-T1a does so. Here a perceptron on digits grows from one cell and one step to eight.
Momentum is split with the weights, or dropped, as the paper's is. Time is CPU time, measured on
single epochs at every size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from companion.basis import PiecewiseConstant
from companion.data import Samples, load_digits
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments import continuous_digits as digits
from companion.experiments.continuous_digits import CELLS, Table, Tables, Variant
from companion.experiments.recipes import classification_loss, shortest, splits
from companion.observe import fit_line
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
    full={"variants": ("rk4", "euler", "rk4_drop"), "seeds": 12, "repeats": 20},
    tiny={"variants": ("rk4", "euler", "rk4_drop"), "seeds": 1, "epochs": 5, "repeats": 1},
    machine_dependent=("seconds", "time_ratio", "r_squared", "fixed", "per_step"),
    claims=(
        ("CL33", "split_rk4", None, 0.005,
         "change of the test error at a split, RK4, largest over seeds and splits"),
        ("CL33", "split_euler", None, 0.02,
         "change of the test error at a split, Euler, largest over seeds and splits"),
        ("CL33", "over_deep_rk4", -0.008, 0.008,
         "final test error minus that of full depth from the start, RK4, mean over {seeds} seeds"),
        ("CL33", "over_deep_euler", -0.008, 0.008,
         "final test error minus that of full depth with RK4, Euler, mean over {seeds} seeds"),
        ("CL34", "evaluations_ratio", 0.575, 0.575,
         "evaluations of refined training over those at full depth"),
        ("CL34", "time_ratio", None, 0.85, "CPU time of them, in the same ratio"),
        ("CL34", "r_squared", 0.9, None, "CPU time of an epoch, R^2 of a + b N"),
    ),
)  # fmt: skip
def q20_f7(
    run: Run, *, variants: tuple[str, ...] = ("rk4", "euler"), seeds: int = 8, epochs: int = 30,
    rate: float = 0.05, repeats: int = 3,
) -> Findings:  # fmt: skip
    """Train refined networks from every seed, and deep ones to compare with.

    Curves: ``steps`` of each epoch; for each variant ``error_VARIANT`` of shape
    ``(seeds, epochs)``, the test error after each epoch, ``before_VARIANT`` and ``after_VARIANT``
    of shape ``(seeds, splits)``; ``error_deep``, the final errors at full depth from the start;
    ``sizes`` and ``seconds``, CPU time of an RK4 epoch. Scalars: ``mean_error_VARIANT`` and
    ``mean_error_deep``, and ``over_deep_VARIANT``, their difference; ``split_VARIANT``, the largest
    change at a split; ``fixed``, ``per_step``.
    """
    if not {"rk4", "euler"} <= set(variants) <= set(VARIANTS):
        raise ValueError(
            f"variants: {variants} is not allowed; it must hold some of {', '.join(VARIANTS)}, "
            "with rk4 and euler"
        )
    if epochs < 5:
        raise ValueError(f"epochs: {epochs} is not allowed; from 5 on each size has one")
    data = load_digits(device=run.device, dtype=run.dtype)
    options, own = {"epochs": epochs, "rate": rate}, run.seeds(seeds)

    def train(part: Part, variant: str, seed: int) -> dict[str, list[float]]:
        return _refined(part, variant, seed, data, options)

    def deep(part: Part) -> list[float]:
        nets = digits.train_digits(part, Variant("rk4"), own, data, **options)
        return [digits.net_error(net, data) for net in nets]

    found = grids(run, train, variant=variants, seed=own)
    steps = found.pop("steps").at(variant="rk4", seed=own[0]).values
    errors = run.map(deep, {"full depth": ()})["full depth"]
    sizes = [2**k for k in range(digits.REFINEMENTS + 1)]
    seconds = run.map(_seconds, {"time": (data, sizes, repeats)})["time"]
    tables = {v: {what: t.at(variant=v).values for what, t in found.items()} for v in variants}
    scalars = split_errors(tables, errors)
    curves = {"steps": steps, "error_deep": errors, "sizes": sizes, "seconds": seconds}
    curves |= named(found, "variant")
    return Findings(scalars | cost(steps, sizes, seconds), curves, data=data.provenance)


def _refined(
    part: Part, name: str, seed: int, data: Samples, options: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Train one network; return its errors after each epoch, and around each split."""
    variant, momentum = VARIANTS[name]
    net = digits.digits_net(variant, seed, data.x_train.dtype).to(data.x_train.device)
    recipe = digits.digits_options(variant, **options)
    recipe["refinement"] = replace(recipe["refinement"], momentum=momentum)
    history = fit(
        net, classification_loss, splits(data)[0],
        generator=torch.Generator().manual_seed(seed),
        on_epoch=lambda: {"error": digits.net_error(net, data), "steps": net.block.steps},
        snapshot=part.snapshot, report=part.report, **recipe,
    )  # fmt: skip
    part.keep(net)
    before = [history["error"][epoch - 1] for epoch in recipe["refinement"].at]
    found = {"error": history["error"], "steps": history["steps"]}
    return found | {"before": before, "after": history["refined_error"]}


def split_errors(tables: Tables, deep: Sequence[float]) -> dict[str, float]:
    """Return the final errors, means over seeds, and the largest change at a split."""
    scalars = {"mean_error_deep": float(np.mean(deep))}
    for name, row in tables.items():
        scalars[f"mean_error_{name}"] = float(row["error"][:, -1].mean())
        scalars[f"over_deep_{name}"] = scalars[f"mean_error_{name}"] - scalars["mean_error_deep"]
        scalars[f"split_{name}"] = float(np.abs(row["after"] - row["before"]).max())
    return scalars


def _seconds(part: Part, data: Samples, sizes: list[int], repeats: int) -> list[float]:
    """Return the shortest CPU time of an epoch of RK4 at every number of cells and steps."""
    epochs = []
    for size in sizes:
        variant = Variant("rk4", weights=PiecewiseConstant(size), steps=size)
        net = digits.digits_net(variant, 0, data.x_train.dtype).to(data.x_train.device)
        options = digits.digits_options(variant, epochs=1) | {"generator": torch.Generator()}
        epochs.append(partial(fit, net, classification_loss, splits(data)[0], **options))
    return shortest(part, epochs, repeats)


def cost(steps: Table, sizes: Sequence[int], seconds: Sequence[float]) -> dict[str, float]:
    """Return what the epochs at ``steps`` cost, against as many at full depth."""
    of_size = dict(zip(sizes, seconds, strict=True))
    line = fit_line(sizes, seconds)
    return {
        "evaluations_ratio": float(steps.sum() / (CELLS * len(steps))),
        "time_ratio": sum(of_size[int(n)] for n in steps) / (of_size[CELLS] * len(steps)),
        "r_squared": line.r_squared,
        "fixed": line.start,
        "per_step": line.slope,
    }
