r"""Q20-BN: batch norm along depth: one set of statistics a cell, and what one for all would do.

Queiruga et al. 2020 (appendix A.3, Eq. 30) slice batch norm along the cells of the weights. Its
Eq. 30 counts the cells with the letter of the steps and misprints the last one: it is
:math:`[T - \Delta t, T]`, of :math:`M` cells.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.basis import PiecewiseConstant
from companion.block import OdeBlock, ode_blocks
from companion.data import load_digits
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models import ContinuousNet, pre_activation_unit
from companion.observe import count_nfe
from companion.results import Claim, Findings
from companion.schemes import SCHEMES
from companion.train import error_rate, evaluating, fit, seeded

CELLS = 4
TRAINED = ("euler", "rk4")


@experiment(
    "Q20-BN",
    "Batch norm with statistics of its own in every cell",
    paper="Queiruga et al. 2020, appendix A.3",
    claims=("CL45",),
    full={"seeds": 8, "epochs": 10, "channels": (8, 16)},
)
def q20_bn(
    run: Run, *, seeds: int = 3, epochs: int = 3, channels: tuple[int, ...] = (4, 8)
) -> Findings:
    r"""Train small ContinuousNets on digits and change the statistics of their norms.

    The nets have 4 cells, 4 steps, :math:`\varepsilon = 4` and no skip initialisation, with which
    so short a training would leave the blocks close to the identity. Curves, of shape ``(seeds,)``:
    ``own_SCHEME``, the test error; ``shared_SCHEME``, the test error with the statistics averaged
    over depth, one set for all cells; ``deviation_shared_SCHEME`` and ``deviation_doubled_SCHEME``,
    the relative change of the scores from that, and from twice the steps with the statistics of
    the graph that was trained. Scalars: their means; ``split``, the largest change of any score
    when the cells split; ``equal``, the halves of cells whose statistics are still equal after a
    batch more; ``miscounted``, cells of six schemes whose norms were not updated once a call.
    """
    data = load_digits(as_images=True, device=run.device)

    def train(part: Part, seed: int, method: str) -> dict[str, float]:
        with seeded(seed):
            net = ContinuousNet(
                inputs=1, channels=channels, basis=PiecewiseConstant(CELLS), method=method,
                steps=CELLS, scale=float(CELLS), skip_init=False,
            ).to(run.device)  # fmt: skip
        fit(
            net, _loss, (data.x_train, data.y_train),
            optimiser=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
            epochs=epochs, batch_size=64, generator=torch.Generator().manual_seed(seed), clip=2.0,
            snapshot=part.snapshot, report=part.report,
        )  # fmt: skip
        test = (data.x_test, data.y_test)
        shared = _with_shared_statistics(net)
        split = copy.deepcopy(net)
        for block in ode_blocks(split):
            block.refine(steps=False)
        scores = _scores(net, data.x_test)
        changes = {
            "deviation_shared": _scores(shared, data.x_test) - scores,
            "deviation_doubled": _scores(net.with_graph(steps=2 * CELLS), data.x_test) - scores,
        }
        return {
            "own": error_rate(net, test),
            "shared": error_rate(shared, test),
            **{name: float(change.norm() / scores.norm()) for name, change in changes.items()},
            "split": float((_scores(split, data.x_test) - scores).abs().max()),
            "equal": float(_equal_halves(split, data.x_train[:64])),
        }

    parts = {f"{m}, seed {k}": (run.seed + k, m) for m in TRAINED for k in range(seeds)}
    found = run.map(train, parts)
    curves = {
        f"{name}_{m}": [found[f"{m}, seed {k}"][name] for k in range(seeds)]
        for m in TRAINED
        for name in ("own", "shared", "deviation_shared", "deviation_doubled")
    }
    scalars = {f"mean_{name}": sum(values) / seeds for name, values in curves.items()}
    scalars |= {name: max(part[name] for part in found.values()) for name in ("split", "equal")}
    scalars["miscounted"] = sum(_miscounted(scheme, run) for scheme in SCHEMES)
    return Findings(scalars, curves, _claims(scalars), data.provenance)


def _claims(scalars: dict[str, float]) -> list[Claim]:
    claims = [
        Claim("CL45", "change of a net's scores when its cells split", scalars["split"], high=0),
        Claim("CL45", "halves with equal statistics a batch later", scalars["equal"], high=0),
        Claim("CL45", "cells not updated once a call, six schemes", scalars["miscounted"], high=0),
    ]
    for m in TRAINED:
        harm = scalars[f"mean_shared_{m}"] - scalars[f"mean_own_{m}"]
        text = f"test error added by one set of statistics for all depths, {m}"
        claims.append(Claim("CL45", text, harm, low=0.05))
    return claims


def _loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


@torch.no_grad()
def _scores(net: nn.Module, x: Tensor) -> Tensor:
    with evaluating(net):
        scores: Tensor = net(x)
    return scores


def _with_shared_statistics(net: ContinuousNet) -> ContinuousNet:
    """Return a copy whose norms have the mean statistics of all cells: what one norm collects."""
    other = copy.deepcopy(net)
    for block in ode_blocks(other):
        for buffer in block.weights.buffers():
            if buffer.is_floating_point():
                buffer.copy_(buffer.mean(0, keepdim=True).expand_as(buffer))
    return other


@torch.no_grad()
def _equal_halves(split: ContinuousNet, x: Tensor) -> int:
    """Count the halves whose running means agree after a batch with two steps in each old cell."""
    split.with_graph(steps=2 * CELLS).train()(x)
    return sum(
        torch.equal(left, right)
        for block in ode_blocks(split)
        for name, means in block.weights.stacks.named_buffers()
        if name.endswith("running_mean")
        for left, right in zip(means[::2], means[1::2], strict=True)
    )


@torch.no_grad()
def _miscounted(scheme: str, run: Run) -> int:
    """Count the cells of an aligned block whose first norm counts other calls than it got."""
    with seeded(run.seed):
        block = OdeBlock(
            lambda: pre_activation_unit(2), PiecewiseConstant(CELLS), scheme, 2 * CELLS
        ).to(run.device)
        x = torch.randn(3, 2, 4, 4).to(run.device)
    with count_nfe(block) as nfe:
        block(x)
    counts = block.weights.stacks.get_buffer("norm1.num_batches_tracked").tolist()
    return sum(count != nfe.total // CELLS for count in counts)
