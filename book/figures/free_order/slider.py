"""Compute the trajectories that the slider of chapter 17 shows, and its picture for paper.

Run `python -m figures.free_order.slider` in `book` after a change; the two files it writes are
committed.
"""

import math
from typing import Any

import torch
from figures.writing import write_slider
from matplotlib.figure import Figure
from torch import Tensor, nn

from companion import OdeBlock
from companion.analysis.reconstruction import gradient_error, reconstruction, trajectory
from companion.figures import PALETTE, use_style
from companion.gradients import NAMED_RULES

DEPTHS = (4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
SHOWN = (8, 16, 32)
RULES = {
    "reverse": ("reverse (the paper's)", NAMED_RULES["reverse"].gradient),
    "corrected": ("corrected", NAMED_RULES["corrected"].gradient),
    "predicted": ("predicted, order 1", NAMED_RULES["predicted"].gradient),
    "predicted_2": ("predicted, order 2", NAMED_RULES["predicted_2"].gradient),
}
DASHES = {"reverse": "-", "corrected": "--", "predicted": ":", "predicted_2": "-."}
MARKERS = {"reverse": "o", "corrected": "s", "predicted": "^", "predicted_2": "v"}
START = (1.0, -0.5)
STEEPNESS, SPEED, TURN = 1.0, 4.0, 0.4


def network(depth: int) -> OdeBlock:
    """Return layers that turn the plane, by an angle that varies smoothly with depth."""
    layers = []
    for n in range(depth):
        angle = math.pi / 2 + TURN * math.sin(2 * math.pi * n / depth)
        rows = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        layer = nn.Sequential(
            nn.Linear(2, 2, bias=False), nn.Tanh(), nn.Linear(2, 2, bias=False)
        ).double()
        layer[0].weight.data = STEEPNESS * torch.tensor(rows, dtype=torch.float64)
        layer[2].weight.data = SPEED * torch.eye(2, dtype=torch.float64)
        layers.append(layer)
    return OdeBlock.from_modules(layers)


def paths(depth: int) -> dict[str, Any]:
    """Return the true trajectory of one depth, those of all rules, and what they get wrong."""
    block, x = network(depth), torch.tensor(START, dtype=torch.float64)
    states = trajectory(block, x)
    found: dict[str, Any] = {"true": rounded(states), "rules": {}}
    for name, (_, gradient) in RULES.items():
        seen = reconstruction(block, states[-1], gradient)
        error = gradient_error(block, x, lambda y: y.square().sum() / 2, gradient)
        found["rules"][name] = {
            "path": rounded(seen),
            "start": float(f"{float((seen[0] - x).norm()):.2g}"),
            "gradient": float(f"{error.relative:.2g}"),
        }
    return found


def rounded(states: Tensor) -> list[list[float]]:
    """Return states with three decimals, finer than a pixel."""
    return [[round(float(value), 3) for value in state] for state in states]


def data() -> dict[str, Any]:
    """Return all that the slider needs."""
    return {
        "depths": list(DEPTHS),
        "labels": {name: label for name, (label, _) in RULES.items()},
        "paths": {str(depth): paths(depth) for depth in DEPTHS},
    }


def picture(found: dict[str, Any]) -> Figure:
    """Return three depths side by side."""
    with use_style():
        figure = Figure(figsize=(7.5, 3.1), layout="constrained")
        for axes, depth in zip(figure.subplots(1, len(SHOWN), sharey=True), SHOWN, strict=True):
            shown = found["paths"][str(depth)]
            axes.plot(*zip(*shown["true"], strict=True), "-", color="#bbbbbb", lw=6, marker="")
            for colour, name in zip(PALETTE[1:], RULES, strict=False):
                style = {"ls": DASHES[name], "marker": MARKERS[name], "ms": 3}
                path = zip(*shown["rules"][name]["path"], strict=True)
                axes.plot(*path, color=colour, label=found["labels"][name], **style)
            axes.set(title=f"{depth} layers", xlabel="$x_1$", aspect="equal")
            axes.set(xlim=(-1.4, 2.5), ylim=(-1.0, 1.9), xticks=[-1, 0, 1, 2], yticks=[0, 1])
        figure.axes[0].set_ylabel("$x_2$")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center",
                      ncols=2)  # fmt: skip
    return figure


def main() -> None:
    """Write both files."""
    found = data()
    write_slider("free_order", found, picture(found))


if __name__ == "__main__":
    main()
