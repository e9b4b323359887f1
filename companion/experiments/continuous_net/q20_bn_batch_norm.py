r"""Q20-BN: batch norm along depth: one set of statistics a cell, and what one for all would do.

Queiruga et al. 2020 (appendix A.3, Eq. 30) slice batch norm along the cells of the weights. Its
Eq. 30 counts the cells with the letter of the steps and misprints the last one: it is
$[T - \Delta t, T]$, of $M$ cells.
"""

import copy

import torch
from torch import Tensor

from companion.basis import PiecewiseConstant
from companion.block import OdeBlock, ode_blocks
from companion.data import load_digits
from companion.experiments import Findings, Part, Run, experiment, grids, named, recipes
from companion.models import ContinuousNet, pre_activation_unit
from companion.observe import count_nfe
from companion.train import seeded

CELLS = 4
TRAINED = ("euler", "rk4")


@experiment(
    "Q20-BN",
    "Batch norm with statistics of its own in every cell",
    paper="Queiruga et al. 2020, appendix A.3",
    full={"seeds": 8, "epochs": 10, "channels": (8, 16)},
    tiny={"seeds": 1, "epochs": 1, "channels": (4,)},
    claims=(
        ("CL45", "split", None, 0, "change of a net's scores when its cells split"),
        ("CL45", "equal", None, 0, "halves with equal statistics a batch later"),
        ("CL45", "miscounted", None, 0, "cells not updated once a call, six schemes"),
        *(("CL45", f"harm_{method}", 0.05, None,
           f"test error added by one set of statistics for all depths, {method}")
          for method in TRAINED),
    ),
)  # fmt: skip
def q20_bn(
    run: Run, *, seeds: int = 3, epochs: int = 3, channels: tuple[int, ...] = (4, 8)
) -> Findings:
    r"""Train small ContinuousNets on digits and change the statistics of their norms.

    The nets have 4 cells, 4 steps, $\varepsilon = 4$ and no skip initialisation, with which so
    short a training would leave the blocks close to the identity. Curves, of shape ``(seeds,)``:
    ``own_SCHEME``, the test error; ``shared_SCHEME``, the test error with the statistics averaged
    over depth, one set for all cells; ``deviation_shared_SCHEME`` and ``deviation_doubled_SCHEME``,
    the relative change of the scores from that, and from twice the steps with the statistics of
    the graph that was trained. Scalars: their means, and what decides the claim.
    """
    data = load_digits(as_images=True, device=run.device, dtype=run.dtype)

    def measure(part: Part, method: str, seed: int) -> dict[str, float]:
        with seeded(seed, dtype=run.dtype):
            net = ContinuousNet(
                inputs=1, channels=channels, basis=PiecewiseConstant(CELLS), method=method,
                steps=CELLS, scale=float(CELLS), skip_init=False,
            ).to(run.device)  # fmt: skip
        recipe = recipes.digits_recipe(epochs) | {"schedule": None}
        recipes.train(part, net, recipes.splits(data)[0], seed, **recipe)
        split = copy.deepcopy(net)
        for block in ode_blocks(split):
            block.refine(steps=False)
        others = (_with_shared_statistics(net), net.with_graph(steps=2 * CELLS), split)
        own, shared, doubled, halved = (recipes.scores(one, data.x_test) for one in (net, *others))
        return {
            "own": recipes.error_of(own, data.y_test),
            "shared": recipes.error_of(shared, data.y_test),
            "deviation_shared": recipes.deviation(shared, own),
            "deviation_doubled": recipes.deviation(doubled, own),
            "split": float((halved - own).abs().max()),
            "equal": _equal_halves(split, data.x_train[:64]),
        }

    found = grids(run, measure, method=TRAINED, seed=run.seeds(seeds))
    scalars = {name: found.pop(name).values.max() for name in ("split", "equal")}
    curves = named(found, "method")
    scalars |= {f"mean_{name}": sum(values) / seeds for name, values in curves.items()}
    for method in TRAINED:
        harm = scalars[f"mean_shared_{method}"] - scalars[f"mean_own_{method}"]
        scalars[f"harm_{method}"] = harm
    scalars["miscounted"] = sum(_miscounted(scheme, run) for scheme in recipes.SIX_SCHEMES)
    return Findings(scalars, curves, data=data.provenance)


@torch.no_grad()
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
