"""Q20-PC: the number of parameters of ContinuousNets against the paper's list."""

import torch
from torch import nn

from companion.basis import PiecewiseConstant
from companion.experiments import Findings, Run, experiment
from companion.models import ContinuousNet, ode_blocks, wide_continuous_net

CELLS = (1, 2, 4, 8, 16, 32)
PAPER = (0.2, 0.3, 0.5, 0.9, 1.6, 3.2)
"""Millions of parameters, after each refinement (Queiruga et al. 2020, section 5.2)."""


@experiment(
    "Q20-PC",
    "Parameters of ContinuousNets",
    paper="Queiruga et al. 2020, section 5.2 and Table 1",
    full={},
    tiny={"cells": (1, 2, 4)},
    claims=(
        ("CL35", "unlisted", None, 0, "entries of the list that differ, rounded as printed"),
        ("CL35", "off_formula", None, 0, "largest difference to 97219 M + 73180"),
        ("CL35", "wide_millions", 13.575, 13.585, "millions of parameters, wide, 100 classes"),
        ("CL35", "layers", 198, 198, "layers with weights at 32 steps"),
        ("CL35", "wide_layers", 54, 54, "the same, wide, 8 steps"),
    ),
)
def q20_pc(run: Run, *, cells: tuple[int, ...] = CELLS) -> Findings:
    """Count parameters; nothing is trained.

    Curves: ``cells`` and ``parameters`` of the net for CIFAR-10. Scalars: ``wide`` and ``tiny``,
    the wide net's for CIFAR-100 and Tiny-ImageNet, and what decides the claim.
    """
    with torch.device("meta"):  # shapes without values
        nets = [ContinuousNet(basis=PiecewiseConstant(m), steps=m) for m in cells]
        wide, tiny = wide_continuous_net(), wide_continuous_net(classes=200)
        deep = ContinuousNet(basis=PiecewiseConstant(1), steps=32)
    counts = dict(zip(cells, map(_parameters, nets), strict=True))
    listed = dict(zip(CELLS, PAPER, strict=True))
    scalars = {
        "wide": _parameters(wide),
        "tiny": _parameters(tiny),
        "wide_millions": _parameters(wide) / 1e6,
        "layers": _layers(deep),
        "wide_layers": _layers(wide),
        "unlisted": sum(round(n / 1e6, 1) != listed[m] for m, n in counts.items()),
        "off_formula": max(abs(n - (97_219 * m + 73_180)) for m, n in counts.items()),
    }
    return Findings(scalars, {"cells": cells, "parameters": tuple(counts.values())})


def _parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _layers(net: ContinuousNet) -> int:
    """Count the convolutions and linear layers in a row: two in a residual, two in a stitch."""
    return 2 * sum(block.steps for block in ode_blocks(net)) + 2 * len(net.stitches) + 2
