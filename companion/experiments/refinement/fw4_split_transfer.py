r"""FW4: transfer to a new task by splitting cells and training only the last of them.

A net continuous in depth learns the digits 0 to 4 with two cells of weights. Its cells are split
to eight, which changes nothing, and only the last quarter of depth is trained on the digits 5 to 9,
with a new head. A residual network of eight layers, its last two trainable, is treated alike: as
many parameters are trained. Its residual is multiplied by 1, as is usual, or by 1/8: the second is
the control that has the step of the net continuous in depth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from companion.basis import PiecewiseConstant
from companion.data import Samples, load_digits
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models import ContinuousMLP
from companion.results import Claim, Findings
from companion.train import error_rate, fit, seeded, step_decay

CELLS, COARSE, TRAINED = 8, 2, 2
"""Cells in the end, cells at first, and cells at the end of depth that the new task may change."""

KINDS: dict[str, tuple[int, str, float]] = {
    "continuous": (COARSE, "rk4", 1.0),
    "resnet": (CELLS, "euler", float(CELLS)),
    "scaled_resnet": (CELLS, "euler", 1.0),
}
"""Cells at first, scheme and scale of the networks; all take 8 steps."""

Set = tuple[Tensor, Tensor]


@experiment(
    "FW4",
    "Transfer between digits by splitting cells and training the last quarter of depth",
    paper="none; Queiruga et al. 2020, section 6, names transfer as future work",
    claims=("FW4",),
    full={"seeds": 16, "epochs": 30, "tuning": 30},
)
def fw4(run: Run, *, seeds: int = 4, epochs: int = 15, tuning: int = 15) -> Findings:
    """Pretrain and fine-tune every network from every seed.

    Curves: for each of :data:`KINDS` ``before_NET``, test error on 0 to 4 after
    pretraining, and ``after_NET``, test error on 5 to 9 after fine-tuning, one value a seed;
    ``split_change``, change of the loss by the split. Scalars: ``error_NET``, means over seeds of
    the error after fine-tuning; ``trained_NET``, parameters that the new task may change.
    """
    data = load_digits(device=run.device)

    def transfer(part: Part, kind: str, seed: int) -> dict[str, float]:
        return _transferred(kind, seed, epochs, tuning, data)

    names = {
        f"{kind}, seed {seed}": (kind, seed)
        for kind in KINDS
        for seed in range(run.seed, run.seed + seeds)
    }
    found = run.map(transfer, names)
    curves: dict[str, Any] = {}
    scalars: dict[str, float] = {}
    for kind in KINDS:
        rows = [found[name] for name, (k, _) in names.items() if k == kind]
        for key in ("before", "after"):
            curves[f"{key}_{kind}"] = [row[key] for row in rows]
        scalars[f"error_{kind}"] = float(np.mean(curves[f"after_{kind}"]))
        scalars[f"trained_{kind}"] = rows[0]["trained"]
        if kind == "continuous":
            curves["split_change"] = [row["split_change"] for row in rows]
    return Findings(scalars, curves, _claims(scalars, curves), data.sha256)


def _claims(scalars: dict[str, float], curves: dict[str, Any]) -> list[Claim]:
    text = "error on the new task minus that of a ResNet"
    differences = {
        name: scalars["error_continuous"] - scalars[f"error_{kind}"]
        for name, kind in ((text, "resnet"), (f"{text} with the factor 1/8", "scaled_resnet"))
    }
    change = max(curves["split_change"])
    return [
        *(Claim("FW4", name, value, high=0.01) for name, value in differences.items()),
        Claim("FW4", "largest change of the loss by the split", change, high=1e-6),
    ]


def _transferred(kind: str, seed: int, epochs: int, tuning: int, data: Samples) -> dict[str, float]:
    """Pretrain one network on the first five digits, and fine-tune it on the others."""
    old_train, old_test = _digits(data, 0)
    new_train, new_test = _digits(data, 5)
    with seeded(seed):
        net = _net(kind).to(data.x_train)
        head = nn.Linear(net.head.in_features, 5).to(data.x_train)
    _fit(net, old_train, epochs, seed, list(net.parameters()), 0.05)
    before = error_rate(net, old_test)
    net.head = head
    with torch.no_grad():
        loss = cross_entropy(net(new_test[0]), new_test[1])
        while net.block.weights.basis.cells < CELLS:
            net.block.refine(steps=False)
        change = cross_entropy(net(new_test[0]), new_test[1]) - loss
    hooks = freeze_early_cells(net)
    _fit(net, new_train, tuning, seed, [*net.block.parameters(), *net.head.parameters()], 0.05)
    for hook in hooks:
        hook.remove()
    cells = sum(p[-TRAINED:].numel() for p in net.block.parameters())
    return {
        "before": before,
        "after": error_rate(net, new_test),
        "split_change": abs(float(change)),
        "trained": cells + sum(p.numel() for p in net.head.parameters()),
    }


def freeze_early_cells(net: ContinuousMLP) -> list[torch.utils.hooks.RemovableHandle]:
    """Let no gradient reach the stem, or the cells before the last quarter; return the hooks."""
    net.stem.requires_grad_(False)

    def late(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[-TRAINED:] = gradient[-TRAINED:]
        return kept

    return [param.register_hook(late) for param in net.block.parameters()]  # type: ignore[no-untyped-call]


def _net(kind: str) -> ContinuousMLP:
    cells, method, scale = KINDS[kind]
    weights = PiecewiseConstant(cells)
    return ContinuousMLP(64, 5, basis=weights, method=method, steps=CELLS, scale=scale)


def _fit(
    net: nn.Module, data: Set, epochs: int, seed: int, trained: list[nn.Parameter], rate: float
) -> None:
    """Train some parameters; without weight decay, which would move those without a gradient."""
    fit(
        net,
        lambda net, x, y: cross_entropy(net(x), y),
        data,
        optimiser=lambda _: torch.optim.SGD(trained, lr=rate, momentum=0.9),
        epochs=epochs,
        batch_size=64,
        generator=torch.Generator().manual_seed(seed),
        schedule=step_decay(2 / 3),
        clip=2.0,
    )


def _digits(data: Samples, first: int) -> tuple[Set, Set]:
    """Return the training and the test samples of five digits, their classes counted from 0."""

    def chosen(x: Tensor, y: Tensor) -> Set:
        rows = (y >= first) & (y < first + 5)
        return x[rows], y[rows] - first

    return chosen(data.x_train, data.y_train), chosen(data.x_test, data.y_test)
