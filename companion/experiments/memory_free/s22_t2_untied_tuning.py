r"""S22-T2: train a shallow tied network, carry it over to a deep one, tune that memory-free.

That is Table 2 of Sander et al. (2022). The ``full`` tier is theirs on CIFAR-10: four stages of 4
layers; the third gets 64 layers and is tuned. The ``smoke`` tier trains perceptrons on digits.

Tuning has a control: the shallow tied network is trained on, by backprop, for as many epochs, and
for as many evaluations of a layer as the deep network takes.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from companion.data import Samples, crop_and_flip, load_cifar10, load_digits
from companion.experiments import Findings, Part, Run, experiment
from companion.experiments.gradient_rules import RULES
from companion.experiments.recipes import classification_loss, guessing, sgd
from companion.models import ResidualMLP, ResNet, deepen, train_only, untie
from companion.observe import geometric_mean, saved_bytes
from companion.solve import NonFiniteError
from companion.train import cosine, error_rate, evaluating, fit, seeded, step_decay

_RULES = ("backprop", "reverse", "corrected")

_CONTROLS = ("same_epochs", "same_work")
"""How long the shallow network is trained on: see this module's head."""


@experiment(
    "S22-T2",
    "Tied weights carried over to a deeper network, untied and tuned memory-free",
    paper="Sander et al. 2022, Table 2",
    claims=(
        ("CL63", "largest_change", None, 0.015,
         "change of the test error when tied layers are added, largest over depths and seeds"),
        ("CL62", "error_added", None, {"digits": -0.002, "cifar10": -0.002},
         "mean test error, deep network after memory-free tuning minus shallow tied network"),
        ("CL62", "loss_left", None, 1.0,
         "training loss, deep network after memory-free tuning over shallow tied network, "
         "geometric mean over seeds"),
        ("CL62", "over_control", None, 1.0,
         "training loss, deep network after memory-free tuning over shallow tied network trained "
         "on for as many evaluations, geometric mean over seeds"),
    ),
    full={"dataset": "cifar10", "epochs": 200, "rate": 0.1, "tuning_rate": 0.001},
    tiny={"depths": (2, 3), "seeds": 1, "epochs": 1, "tuning_epochs": 1},
    tolerance=1e-2,  # trained in single precision
)  # fmt: skip
def s22_t2(
    run: Run, *, dataset: str = "digits", depths: tuple[int, ...] = (4, 8, 16, 64),
    rules: tuple[str, ...] = _RULES, seeds: int = 8, epochs: int = 15, rate: float = 0.05,
    tuning_epochs: int = 5, tuning_rate: float = 0.02,
) -> Findings:  # fmt: skip
    """Train tied networks of the first depth; tune the deepest ones by every rule.

    Curves: ``depths``; ``transfer_error`` and ``transfer_loss`` of shape ``(depths, seeds)``, test
    error and training loss of the tied weights at every depth; for each rule ``error_RULE`` and
    ``loss_RULE`` of shape ``(seeds,)``, after tuning the deepest network, and the same for the two
    controls, ``same_epochs`` and ``same_work``. Scalars: ``bytes_RULE``, what one tuning step keeps
    for the backward pass; ``mean_error_RULE``, ``mean_loss_RULE``.
    """
    _check(dataset, depths, rules)
    made = _digits if dataset == "digits" else _cifar
    task = made(run, depths, (rate, epochs), (tuning_rate, tuning_epochs))

    def follow(part: Part, seed: int) -> dict[str, Any]:
        return _follow(part, task, depths, rules, seed)

    found = list(run.map(follow, {f"seed {k}": (run.seed + k,) for k in range(seeds)}).values())
    transfer = np.array([result["transfer"] for result in found])
    tuned = {
        name: np.array([result["tuned"][name] for result in found]) for name in (*rules, *_CONTROLS)
    }
    change = np.abs(transfer[:, 1:, 0] - transfer[:, :1, 0]).max()
    scalars, curves = {"largest_change": change}, {"depths": np.array(depths)}
    for k, name in enumerate(("error", "loss")):
        curves[f"transfer_{name}"] = transfer[:, :, k].T
        curves |= {f"{name}_{rule}": values[:, k] for rule, values in tuned.items()}
        scalars |= {f"mean_{name}_{rule}": v[:, k].mean() for rule, v in tuned.items()}
    scalars |= {f"bytes_{rule}": found[0]["bytes"][rule] for rule in rules}
    helped = deciding(transfer[:, 0], tuned["reverse"], tuned["same_work"])
    return Findings(scalars, curves, data=task.data.provenance, deciding=helped)


class _Task(NamedTuple):
    """What differs between the data sets."""

    data: Samples
    tied: Callable[[], nn.Module]  # makes the shallow network
    deeper: Callable[[Any, int], nn.Module]  # a copy, its deepened block at another depth
    untied: Callable[[Any], nn.Module]  # a copy, that block untied
    owner: Callable[[Any], Any]  # the module whose attribute `block` that is
    tuned: Callable[[Any], nn.Module]  # the module that is tuned
    training: dict[str, Any]  # options of `fit` for the tied network
    tuning: dict[str, Any]  # the same for the deep one
    control: dict[str, Any]  # the same for the tied network, trained on


Pace = tuple[float, int]
"""A learning rate and a number of epochs."""


def _digits(run: Run, depths: tuple[int, ...], training: Pace, tuning: Pace) -> _Task:
    """Perceptrons; a layer's gradients are of size 1/N, so its tuning rate has the factor N."""
    (rate, epochs), (tuning_rate, tuning_epochs) = training, tuning
    return _Task(
        data=load_digits(device=run.device),
        tied=lambda: ResidualMLP(
            64, 10, width=8, hidden=16, layers=depths[0], tied=True, scaled=True
        ),
        deeper=deepen,
        untied=untie,
        owner=lambda net: net,
        tuned=lambda net: net.block,
        training={
            "optimiser": sgd(rate), "epochs": epochs, "batch_size": 64,
            "schedule": step_decay(0.7), "clip": 5.0,
        },
        tuning={
            "optimiser": sgd(tuning_rate * depths[-1]), "epochs": tuning_epochs, "batch_size": 64,
            "clip": 1.0,
        },
        control={  # tied weights get the sum of the layers' gradients: no factor
            "optimiser": sgd(tuning_rate), "epochs": tuning_epochs, "batch_size": 64, "clip": 1.0,
        },
    )  # fmt: skip


def _cifar(run: Run, depths: tuple[int, ...], training: Pace, tuning: Pace) -> _Task:
    """The paper's networks and recipes; of a stage of B layers, the first is not tied."""
    data = load_cifar10(run.data, device=run.device)
    usual = depths[0] - 1
    shared = {"batch_size": 128, "augment": partial(crop_and_flip, fill=data.black)}
    first, second = (
        shared | {"optimiser": sgd(rate, 5e-4), "epochs": epochs}
        for rate, epochs in (training, tuning)
    )
    return _Task(
        data,
        lambda: ResNet((depths[0],) * 4, "bottleneck", tied=True),
        lambda net, depth: deepen(net, (usual, usual, depth - 1, usual)),
        lambda net: untie(net, which=[2]),
        lambda net: net.stages[2],
        lambda net: net.stages[2],
        first | {"schedule": cosine},
        second,
        second,
    )


def _follow(
    part: Part, task: _Task, depths: tuple[int, ...], rules: tuple[str, ...], seed: int
) -> dict[str, Any]:
    """Train one tied network, carry it over, and tune the deepest one by every rule."""
    stages = 1 + len(rules) + len(_CONTROLS)
    with seeded(seed):
        tied = task.tied().to(task.data.x_train.device)
    _train(_stage(part, 0, stages, "tied"), task, tied, task.training, seed)
    transfer = [_measure(task.deeper(tied, depth), task.data) for depth in depths]
    deep = task.untied(task.deeper(tied, depths[-1]))
    tuned, kept = {}, {}
    for k, rule in enumerate(rules, start=1):
        net = copy.deepcopy(deep)
        owner = task.owner(net)
        owner.block = owner.block.with_graph(gradient=RULES[rule].gradient)
        train_only(net, task.tuned(net))
        kept[rule] = _kept(net, task.data, task.tuning["batch_size"])
        stage = _stage(part, k, stages, rule)
        tuned[rule] = _tuned(stage, task, net, task.tuning, seed)
    for k, (name, longer) in enumerate(zip(_CONTROLS, (1, depths[-1] / depths[0]), strict=True)):
        net = copy.deepcopy(tied)
        train_only(net, task.tuned(net))
        options = task.control | {"epochs": round(longer * task.control["epochs"])}
        stage = _stage(part, 1 + len(rules) + k, stages, name)
        tuned[name] = _tuned(stage, task, net, options, seed)
    return {"transfer": transfer, "tuned": tuned, "bytes": kept}


def _train(part: Part, task: _Task, net: nn.Module, options: dict[str, Any], seed: int) -> None:
    fit(
        net, classification_loss, (task.data.x_train, task.data.y_train),
        generator=torch.Generator().manual_seed(seed), snapshot=part.snapshot, report=part.report,
        **options,
    )  # fmt: skip
    part.keep(net)


def _tuned(
    part: Part, task: _Task, net: nn.Module, options: dict[str, Any], seed: int
) -> list[float]:
    """Tune a network; return its test error and training loss, infinite if it diverged."""
    try:
        _train(part, task, net, options, seed)
        return _measure(net, task.data)
    except NonFiniteError:
        return [guessing(), math.inf]


def _stage(part: Part, index: int, stages: int, name: str) -> Part:
    """Return one of several trainings of a part, with a snapshot and a model of its own."""

    def report(fraction: float) -> None:
        part.report((index + fraction) / stages)

    stage = replace(part.named(name), report=report)
    if part.snapshot is None:
        return stage
    path = part.snapshot.path
    own = path.with_name(f"{path.stem}.{name}{path.suffix}")
    return replace(stage, snapshot=replace(part.snapshot, path=own))


@torch.no_grad()
def _measure(net: nn.Module, data: Samples) -> list[float]:
    """Return the test error and the mean training loss, in evaluation mode."""
    error, loss = error_rate(net, (data.x_test, data.y_test)), 0.0
    with evaluating(net):
        batches = (torch.split(part, 1000) for part in (data.x_train, data.y_train))
        for x, y in zip(*batches, strict=True):
            loss += classification_loss(net, x, y).item() * len(y)
    return [error, loss / len(data.y_train)]


def _kept(net: nn.Module, data: Samples, batch_size: int) -> int:
    """Return the bytes that one training step keeps for its backward pass."""
    net = copy.deepcopy(net)  # the step moves running statistics
    x, y = data.x_train[:batch_size], data.y_train[:batch_size]
    with saved_bytes(exclude=[*net.parameters(), x]) as saved:
        classification_loss(net, x, y)
    return saved.total


def _check(dataset: str, depths: tuple[int, ...], rules: tuple[str, ...]) -> None:
    if dataset not in ("digits", "cifar10"):
        raise ValueError(f"dataset must be digits or cifar10; got {dataset!r}")
    if len(depths) < 2 or depths[0] < 2 or list(depths) != sorted(set(depths)):
        raise ValueError(f"depths must be two or more from 2, in rising order; got {depths}")
    known = [rule for rule in RULES if RULES[rule].method == "euler"]
    if "reverse" not in rules or not set(rules) <= set(known):
        raise ValueError(f"rules must be some of {', '.join(known)}, and reverse; got {rules}")


def deciding(
    tied: NDArray[np.float64], tuned: NDArray[np.float64], control: NDArray[np.float64]
) -> dict[str, float]:
    """Compare test errors and training losses, ``(seeds, 2)``: tied, tuned, and the control's."""
    with np.errstate(invalid="ignore"):  # both infinite
        over_control = tuned[:, 1] / control[:, 1]
    return {
        "error_added": float(np.mean(tuned[:, 0] - tied[:, 0])),
        "loss_left": float(geometric_mean(tuned[:, 1] / tied[:, 1], 0)),
        "over_control": float(geometric_mean(over_control, 0)),
    }
