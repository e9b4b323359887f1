r"""S22-F3b: does memory-free training fail at the depths of usual networks?

Sander et al. (2022, Fig. 3b) train a ResNet-101 on ImageNet and use memory-free gradients in its
third stage, which has 23 layers. It fails: the errors are of size $1/N$, and 23 is not enough.
That is the ``full`` tier, with our corrected rule beside theirs. It reads
``imagenet/train/CLASS/*.JPEG`` and ``imagenet/val/CLASS/*.JPEG`` in the data folder; under
``torchrun`` the processes share every batch, and each norm sees its process's share. The ``smoke``
tier trains the perceptrons of S22-F4 with the depths at which they fail.
"""

import os
from functools import partial

from torch.optim import SGD

from companion.data import ImageFolder, load_digits, load_image_folder
from companion.experiments.gradient_rules import (
    RULES,
    Study,
    digits_error,
    digits_net,
    train_all,
    trained_error,
)
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models import ResNet
from companion.models.resnets import Stage
from companion.results import Claim, Findings
from companion.train import seeded, step_decay


@experiment(
    "S22-F3b",
    "Memory-free training of networks that are not deep enough for it",
    paper="Sander et al. 2022, Fig. 3b",
    claims=("CL59",),
    full={"dataset": "imagenet", "depths": (23,), "seeds": 1, "epochs": 100, "rate": 0.1},
)
def s22_f3b(
    run: Run,
    *,
    dataset: str = "digits",
    rules: tuple[str, ...] = ("backprop", "reverse", "corrected"),
    depths: tuple[int, ...] = (2, 4),
    seeds: int = 3,
    epochs: int = 12,
    rate: float = 0.02,
) -> Findings:
    """Train a network by every rule, at every depth, from every seed.

    On ImageNet the depth is the number of layers of the third stage, and the rule holds there; all
    other stages use backprop. Curves and scalars are those of S22-F4.
    """
    if dataset not in ("digits", "imagenet"):
        raise ValueError(f"dataset must be digits or imagenet; got {dataset!r}")
    euler = [rule for rule, value in RULES.items() if value.method == "euler"]
    if not set(rules) <= set(euler):
        raise ValueError(f"rules must be some of {', '.join(euler)}; got {', '.join(rules)}")
    if dataset == "digits":
        digits = load_digits(device=run.device)
        provenance = digits.provenance
    else:
        files, val = load_image_folder(run.data)
        provenance = f"{files.sha256} {val.sha256}"

    def train(part: Part, rule: str, depth: int, seed: int) -> list[float]:
        if dataset == "digits":
            net = digits_net(rule, depth, seed, gain=2.0)
            return digits_error(part, digits, net, seed, epochs=epochs, rate=rate)
        big = _resnet(rule, depth, seed, len(files.classes)).to(run.device)
        return _imagenet_error(part, big, files, val, seed, epochs=epochs, rate=rate)

    study = train_all(
        run, train, rules=rules, depths=depths, seeds=seeds, needed=("backprop", "reverse"),
        together=dataset == "imagenet",
    )  # fmt: skip
    return Findings(study.scalars(), study.curves(), [_claim(study)], provenance)


def _resnet(rule: str, depth: int, seed: int, classes: int) -> ResNet:
    """Return ResNet-101 with another third stage, and a gradient of its own there."""
    with seeded(seed):
        net = ResNet((3, 4, depth, 3), "bottleneck", stem="imagenet", classes=classes)
    stage = net.stages[2]
    assert isinstance(stage, Stage)
    stage.block = stage.block.with_graph(gradient=RULES[rule].gradient)
    return net


def _imagenet_error(
    part: Part,
    net: ResNet,
    files: ImageFolder,
    val: ImageFolder,
    seed: int,
    *,
    epochs: int,
    rate: float,
) -> list[float]:
    """Train by the paper's recipe."""
    own = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine, from torchrun
    return trained_error(
        part, net, files, val, seed,
        optimiser=partial(SGD, lr=rate, momentum=0.9, weight_decay=1e-4),
        epochs=epochs,
        batch_size=256,
        schedule=step_decay(0.3, 0.6, 0.9),
        workers=min(16, (os.cpu_count() or 1) // own),
        guessing=1 - 1 / len(files.classes),
    )  # fmt: skip


def _claim(study: Study) -> Claim:
    """Decide the claim on errors averaged over seeds."""
    return Claim(
        "CL59",
        "mean test error, memory-free minus backprop, smallest over depths",
        min(study.excess("reverse", depth) for depth in study.depths),
        low=0.1,
    )
