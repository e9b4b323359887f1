r"""FW9: does the depth of an ODE-Net adapt to the input?

Chen et al. (2018) say that an ODE-Net adapts its computation to each input. A batch that is solved
as one state has one step size for all its samples, so it cannot. Here every sample takes steps of
its own, which tells what each would need, and what sharing the steps costs (Lienen and Günnemann
2022, torchode, make the case for batches whose samples do not share).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam

from companion.analysis.evaluations import count_evaluations, solve_per_sample
from companion.block import OdeBlock
from companion.counts import counting
from companion.data import load_digits
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.annulus import annulus_samples
from companion.experiments.recipes import sgd, splits, train
from companion.models import ConvField, ODENet, TanhMLP
from companion.train import cosine, seeded

TASKS = ("annulus", "digits")

MIDDLE = 1e-3
"""The tolerance of training, and the one that the claims are about."""

EXACT = 1e-7
"""The tolerance that stands for the solution itself."""


@experiment(
    "FW9",
    "Evaluations of single samples: their spread, what goes with them, and what sharing costs",
    paper="Chen et al. 2018, section 3",
    full={
        "seeds": 10, "epochs": (80, 30), "samples": 500,
        "tolerances": (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    },
    tiny={
        "epochs": (1, 1), "seeds": 1, "tolerances": (1e-3,), "samples": 64, "hidden": 4,
        "channels": 4,
    },
    claims=(
        ("FW9", "mean_margin_annulus", None, -0.2,
         "annulus, rank correlation of a sample's evaluations with its margin"),
        ("FW9", "mean_margin_digits", None, -0.2,
         "digits, rank correlation of a sample's evaluations with its margin",
         "All digits cost 20 or 26 evaluations, one step apart: there is hardly anything to go "
         "with."),
        ("FW9", "mean_shared_annulus", 1.1, None,
         "annulus, evaluations of a batch of {batch} over the mean of its samples' own",
         "The samples' own evaluations differ threefold, but the root mean square over 100 samples "
         "is content with 0.63 of the steps of the hardest one, and those are not far above the "
         "mean."),
        ("FW9", "mean_shared_digits", 1.1, None,
         "digits, evaluations of a batch of {batch} over the mean of its samples' own",
         "The samples' own evaluations differ by one step, so that sharing can cost little."),
    ),
)  # fmt: skip
def fw9(
    run: Run, *, epochs: tuple[int, ...] = (40, 10), seeds: int = 5,
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4), samples: int = 200, batch: int = 100,
    hidden: int = 32, channels: int = 16,
) -> Findings:  # fmt: skip
    """Train an ODE-Net on each task from every seed; count test samples before it and after.

    Training is by backprop at the tolerance 1e-3, with so many ``epochs`` on the annulus and on
    digits. Single precision is left behind afterwards.

    Curves, of shape ``(seeds, tolerances)``, for each task: ``own_TASK``, the mean evaluations of a
    sample by itself; ``least_TASK`` and ``most_TASK``; ``spread_TASK``, their standard deviation
    over their mean; ``margin_TASK``, ``loss_TASK``, rank correlations of the evaluations with the
    distance between the two highest scores and with the loss, 0 where all evaluations are equal;
    ``class_TASK``, the share of their variance that lies between classes; ``shared_TASK``,
    evaluations of a batch over the mean of its samples' own; ``tail_TASK``, the largest error of a
    sample's final state in the shared solves over that with steps of its own; ``error_TASK``, the
    test error. Names with ``before_`` in front: the same before training. ``counts_TASK`` and
    ``margins_TASK``: evaluations and margins of all samples of the first seed, at 1e-3. Scalars:
    the means over seeds at 1e-3 of all the others, with ``mean_`` in front; of ``margin_TASK`` and
    ``shared_TASK`` also the least and the most over seeds, ``margin_TASK_least`` and so on.
    """
    budget = dict(zip(TASKS, epochs, strict=True))

    def compute(part: Part, task: str, seed: int) -> dict[str, Any]:
        net, training, test, recipe = _task(task, run, seed, samples, hidden, channels)
        before = _table(net, test, tolerances, batch)
        train(part, net, training, seed, epochs=budget[task], schedule=cosine, **recipe)
        after = _table(net, test, tolerances, batch)
        own, margins = single(net, test, MIDDLE)
        return {
            **after, **{f"before_{name}": values for name, values in before.items()},
            "counts": own, "margins": margins,
        }  # fmt: skip

    found = grids(run, compute, task=TASKS, seed=run.seeds(seeds))
    each = {name: found.pop(name) for name in ("counts", "margins")}
    middle = tolerances.index(MIDDLE)
    curves = named(found, "task")
    scalars = {f"mean_{name}": float(values[:, middle].mean()) for name, values in curves.items()}
    for name in (f"{what}_{task}" for what in ("margin", "shared") for task in TASKS):
        scalars[f"{name}_least"] = float(curves[name][:, middle].min())
        scalars[f"{name}_most"] = float(curves[name][:, middle].max())
    first = named({k: table.at(seed=run.seed) for k, table in each.items()}, "task")
    return Findings(scalars, {"tolerances": tolerances, **curves, **first})


Pair = tuple[Tensor, Tensor]


def _task(
    task: str, run: Run, seed: int, samples: int, hidden: int, channels: int
) -> tuple[nn.Sequential, Pair, Pair, dict[str, Any]]:
    """Return a net of stem, block and head, what to train and to test on, and how to train."""
    knobs = {"method": "dopri5", "rtol": MIDDLE, "atol": MIDDLE}
    recipe: dict[str, Any] = {"optimiser": sgd(0.2), "batch_size": 128, "clip": 1.0}
    if task == "annulus":
        data = annulus_samples(seed, 1000, samples, run.dtype)
        recipe = {"optimiser": lambda params: Adam(params, lr=1e-2), "batch_size": 100}
        with seeded(seed, dtype=run.dtype):
            block = OdeBlock(TanhMLP(2, (hidden, hidden)), time=True, **knobs)  # type: ignore[arg-type]
            net = nn.Sequential(nn.Identity(), block, nn.Linear(2, 2))
    else:
        data = load_digits(as_images=True, dtype=run.dtype)
        with seeded(seed, dtype=run.dtype):
            block = OdeBlock(ConvField(channels), time=True, **knobs)  # type: ignore[arg-type]
            whole = ODENet(block, channels=channels, halvings=1)
        net = nn.Sequential(whole.stem, whole.block, whole.head)
    (x, y), (x_test, y_test) = splits(data)
    device = run.device
    test = (x_test[:samples].to(device), y_test[:samples].to(device))
    return net.to(device), (x.to(device), y.to(device)), test, recipe


@torch.no_grad()
def _table(
    net: nn.Sequential, test: Pair, tolerances: tuple[float, ...], batch: int
) -> dict[str, list[float]]:
    """Return all measures of a net by tolerance, in double precision."""
    dtype = next(net.parameters()).dtype
    net.double()
    ends = _at(net, EXACT)(net[0](test[0].double()))
    rows = [measures(net, test, ends, tolerance, batch) for tolerance in tolerances]
    net.to(dtype)
    return {name: [row[name] for row in rows] for name in rows[0]}


def _at(net: nn.Sequential, tolerance: float) -> OdeBlock:
    """Return the block of a net at a tolerance."""
    block = net[1]
    assert isinstance(block, OdeBlock)
    return block.with_graph(rtol=tolerance, atol=tolerance)


@torch.no_grad()
def single(net: nn.Sequential, test: Pair, tolerance: float) -> tuple[list[int], list[float]]:
    """Return the evaluations of every sample by itself, and its margin, in double precision."""
    net.double()
    x = net[0](test[0].double())
    own = count_evaluations(_at(net, tolerance), x).own
    return own.tolist(), margin(net[2](_at(net, EXACT)(x))).tolist()


def margin(scores: Tensor) -> Tensor:
    """Return the distance between the two highest scores of every sample.

    Example:
        >>> margin(torch.tensor([[1.0, 4.0, 2.5]]))
        tensor([1.5000])
    """
    highest = scores.topk(2, dim=1).values
    return highest[:, 0] - highest[:, 1]


@torch.no_grad()
def measures(
    net: nn.Sequential, test: Pair, ends: Tensor, tolerance: float, batch: int
) -> dict[str, float]:
    """Return what a net in double precision costs on the test samples at one tolerance.

    Args:
        net: stem, block and head.
        test: samples and their classes.
        ends: the nearly exact states behind the block.
        tolerance: the tolerance.
        batch: samples that share their steps.
    """
    view, x, y = _at(net, tolerance), net[0](test[0].double()), test[1]
    with counting() as alone:
        apart = solve_per_sample(view, x)
    assert alone.nfe_per_sample is not None
    own = alone.nfe_per_sample.cpu().numpy().astype(float)
    shared, together = [], []
    for part in torch.split(x, batch):
        with counting() as stats:
            together.append(view(part))
        shared.append(stats.nfe)
    means = [part.mean() for part in np.split(own, range(batch, len(own), batch))]
    scores = net[2](ends)
    return {
        "own": own.mean(),
        "least": own.min(),
        "most": own.max(),
        "spread": own.std() / own.mean(),
        "margin": rank_correlation(own, margin(scores)),
        "loss": rank_correlation(own, cross_entropy(scores, y, reduction="none")),
        "class": between(own, y),
        "shared": float(np.mean(np.array(shared) / np.array(means))),
        "tail": largest(torch.cat(together), ends) / largest(apart, ends),
        "error": (scores.argmax(1) != y).double().mean().item(),
    }


def largest(states: Tensor, ends: Tensor) -> float:
    """Return the largest distance of a sample's state from where it should be.

    Example:
        >>> largest(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.zeros(2, 2))
        5.0
    """
    return float((states - ends).flatten(1).norm(dim=1).max())


def rank_correlation(own: NDArray[np.float64], other: Tensor) -> float:
    """Return Spearman's rank correlation, 0 if one side is constant.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 3.0]), torch.tensor([9.0, 4.0, 1.0]))
        -1.0
        >>> rank_correlation(np.array([1.0, 1.0]), torch.tensor([0.0, 1.0]))
        0.0
    """
    values = other.cpu().numpy()
    if np.ptp(own) == 0 or np.ptp(values) == 0:
        return 0.0
    return round(float(spearmanr(own, values).statistic), 12)


def between(own: NDArray[np.float64], y: Tensor) -> float:
    """Return the share of the variance that lies between classes, 0 if there is none.

    Example:
        >>> between(np.array([1.0, 1.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 1]))
        1.0
        >>> between(np.array([1.0, 3.0, 1.0, 3.0]), torch.tensor([0, 0, 1, 1]))
        0.0
    """
    if np.ptp(own) == 0:
        return 0.0
    labels = y.cpu().numpy()
    means = np.zeros_like(own)
    for label in set(labels.tolist()):
        means[labels == label] = own[labels == label].mean()
    return float(means.var() / own.var())
