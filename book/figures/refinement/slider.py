"""Train the two networks that the slider of chapter 13 shows, and draw its picture for paper.

Run `python -m figures.refinement.slider` in `book` after a change; the two files it writes are
committed.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from figures.writing import write_slider
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cross_entropy

from companion.data import load_digits
from companion.experiments.continuous_digits import Variant, digits_net, digits_options
from companion.figures import PALETTE, use_style
from companion.models import ContinuousMLP
from companion.train import error_rate, fit

EPOCHS, SEED = 30, 0
NETS = {"grown": Variant("rk4", refined=True), "deep": Variant("rk4")}
SHOWN = 6
MAGNIFIED = 10
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))


def record(variant: Variant, epochs: int = EPOCHS) -> list[dict[str, Any]]:
    """Return what a network looks like at first, after every epoch and after every refinement."""
    data = load_digits(dtype=torch.float64)
    net = digits_net(variant, SEED).double()
    test = (data.x_test, data.y_test)
    seen = [{"epoch": 0, **look(net, error_rate(net, test))}]

    def on_epoch() -> dict[str, float]:
        entry = look(net, error_rate(net, test))
        refined = entry["cells"] > seen[-1]["cells"]
        seen.append({"epoch": seen[-1]["epoch"] + (0 if refined else 1), **entry})
        return {}

    options = digits_options(variant, epochs=EPOCHS)
    rates: Callable[[float], float] = options.pop("schedule")
    fit(
        net, lambda net, x, y: cross_entropy(net(x), y), (data.x_train, data.y_train),
        **options | {"epochs": epochs}, schedule=lambda done: rates(done * epochs / EPOCHS),
        generator=torch.Generator().manual_seed(SEED), on_epoch=on_epoch,
    )  # fmt: skip
    return seen


def look(net: ContinuousMLP, error: float) -> dict[str, Any]:
    """Return the number of cells, the test error, the variation, and all weights but biases."""
    stacks = [p.detach().flatten(1) for p in net.block.weights.parameters() if p.ndim == 3]
    rows = torch.cat(stacks, dim=1)
    jumps = (rows[1:] - rows[:-1]).norm(dim=1).sum()
    return {
        "cells": len(rows),
        "error": round(error, 4),
        "variation": float(f"{float(jumps / rows.norm(dim=1).max()):.3g}"),
        "rows": rows,
    }


def chosen(seen: list[dict[str, Any]]) -> list[int]:
    """Return the weights that vary most over depth at the end, apart from each other in value."""
    rows: Tensor = seen[-1]["rows"]
    found: list[int] = []
    for k in (rows - rows.mean(0)).abs().amax(0).argsort(descending=True).tolist():
        if all(abs(float(rows[:, k].mean() - rows[:, j].mean())) > 0.09 for j in found):
            found.append(k)
        if len(found) == SHOWN:
            break
    return found


def data() -> dict[str, Any]:
    """Return all that the slider needs."""
    seen = {name: record(variant) for name, variant in NETS.items()}
    which = chosen(seen["grown"])
    nets = {name: [shown(entry, which) for entry in entries] for name, entries in seen.items()}
    return {"magnified": MAGNIFIED, "weights": which, "nets": nets}


def shown(entry: dict[str, Any], which: list[int]) -> dict[str, Any]:
    """Return an entry with the chosen weights only, a list of values over depth for each."""
    values = [[round(v, 5) for v in entry["rows"][:, k].tolist()] for k in which]
    return {**entry, "rows": values}


def picture(found: dict[str, Any]) -> Figure:
    """Return the end of each level, and the network of full depth, side by side."""
    grown = found["nets"]["grown"]
    ends = [a for a, b in pairwise([*grown, {"cells": 0}]) if a["cells"] != b["cells"]]
    panels = [(entry, f"{entry['epoch']} epochs", MAGNIFIED) for entry in ends]
    panels.append((found["nets"]["deep"][-1], "full depth", 1))
    with use_style():
        figure = Figure(figsize=(7.5, 3.0), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True)
        for place, (entry, title, factor) in zip(axes, panels, strict=True):
            for colour, dash, row in zip(PALETTE, DASHES, entry["rows"], strict=True):
                mean = sum(row) / len(row)
                values = [mean + factor * (value - mean) for value in row]
                place.stairs(values, [k / len(row) for k in range(len(row) + 1)],
                             color=colour, ls=dash, lw=1.8, baseline=None)  # fmt: skip
            place.set(title=title, xlabel="depth $t$", xticks=[0, 1], ylim=(-1.05, 1.05))
        axes[0].set_ylabel(r"weights $\theta(t)$")
    return figure


def main() -> None:
    """Write both files."""
    found = data()
    write_slider("refinement", found, picture(found))


if __name__ == "__main__":
    main()
