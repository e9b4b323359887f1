r"""S22-T1: does the factor 1/N cost a standard residual network any accuracy?

Sander et al. (2022, Table 1) train a ResNet-101 on CIFAR-10 and on ImageNet, once with the usual
layer $\mathrm{relu}(x + F(x))$ and once with $x + \frac1N f(x)$ in every stage. That is the
``full`` tier, with their recipe. The ``smoke`` tier trains small networks on
scikit-learn's digits, also with $x + f(x)$: the same layer without the factor.

ImageNet: ``--set dataset='"imagenet"' --set epochs=100 --set seeds=1`` with a data folder that
holds ``imagenet/train/CLASS/*.JPEG`` and ``imagenet/val/CLASS/*.JPEG``. Under ``torchrun`` the
processes then share every batch, and each norm sees its process's share.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer

from companion.data import crop_and_flip, load_cifar10, load_digits, load_image_folder
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.models import ResNet
from companion.results import Claim, Findings
from companion.solve import NonFiniteError
from companion.train import Rows, cosine, error_rate, fit, seeded, step_decay

Split = tuple[Tensor, Tensor] | Rows


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on a data set, and what the claim asks of it.

    Attributes:
        stem: the network's stem.
        batch_size: samples a step.
        decay: weight decay.
        schedule: of the learning rate, which starts at 0.1.
        error: largest test error with 1/N.
        margin: largest excess of it over the best rule without.
    """

    stem: str
    batch_size: int
    decay: float
    schedule: Callable[[float], float]
    error: float
    margin: float


RECIPES = {
    "digits": Recipe("cifar", 64, 5e-4, cosine, error=0.08, margin=0.02),
    "cifar10": Recipe("cifar", 128, 5e-4, cosine, error=0.055, margin=0.005),
    "imagenet": Recipe("imagenet", 256, 1e-4, step_decay(0.3, 0.6, 0.9), error=0.25, margin=0.01),
}
"""The recipes of Sander et al. 2022, appendix B, and one for digits."""


@dataclass(frozen=True)
class Data:
    """A data set as training and testing take it.

    Attributes:
        train: training samples.
        test: test samples.
        augment: random changes to training images, or ``None``.
        channels: of an image.
        classes: number of classes.
        provenance: what findings record.
    """

    train: Split
    test: Split
    augment: Callable[[Tensor, torch.Generator], Tensor] | None
    channels: int
    classes: int
    provenance: str


@experiment(
    "S22-T1",
    "Standard residual networks with the factor 1/N in every stage and without",
    paper="Sander et al. 2022, Table 1",
    claims=("CL57",),
    full={
        "dataset": "cifar10",
        "layers": (3, 4, 23, 3),
        "kind": "bottleneck",
        "width": 64,
        "rules": ("original", "scaled"),
        "epochs": 200,
        "autocast": True,
    },
)
def s22_t1(
    run: Run,
    *,
    dataset: str = "digits",
    layers: tuple[int, ...] = (3, 4, 6),
    kind: str = "basic",
    width: int = 8,
    rules: tuple[str, ...] = ("original", "classic", "scaled"),
    seeds: int = 3,
    epochs: int = 3,
    gradient: str = "backprop",
    autocast: bool = False,
) -> Findings:
    """Train a network by every rule from every seed.

    Curves: for each rule ``error_RULE`` and ``diverged_RULE`` of shape ``(seeds,)`` and
    ``loss_RULE``, the training loss, of shape ``(seeds, epochs)``. A network whose state stops
    being finite counts as guessing. Scalars: ``mean_error_RULE``, over seeds. ``gradient`` is
    that of the residual stages; ``autocast`` computes convolutions in bfloat16.
    """
    if dataset not in RECIPES:
        raise ValueError(f"dataset must be one of {', '.join(RECIPES)}; got {dataset!r}")
    if "scaled" not in rules or len(rules) < 2:
        raise ValueError(f"rules must hold 'scaled' and another to compare it with; got {rules!r}")
    recipe, data = RECIPES[dataset], _load(dataset, run)

    def train(part: Part, rule: str, seed: int) -> list[list[float]]:
        with seeded(seed):
            net = ResNet(
                layers, kind, stem=recipe.stem, inputs=data.channels, classes=data.classes,
                width=width, rule=rule, gradient=gradient,
            ).to(run.device)  # fmt: skip
        return _trained(part, net, data, recipe, epochs, seed, autocast)

    parts = {
        f"{rule}, seed {seed}": (rule, run.seed + seed) for rule in rules for seed in range(seeds)
    }
    # ImageNet trains for days: several processes share one network, not the list of them.
    rows = list(run.map(train, parts, together=dataset == "imagenet").values())
    table = {rule: rows[k * seeds : (k + 1) * seeds] for k, rule in enumerate(rules)}
    curves: dict[str, Any] = {}
    for rule, found in table.items():
        curves[f"error_{rule}"] = [error for (error, _), _ in found]
        curves[f"diverged_{rule}"] = [diverged for (_, diverged), _ in found]
        curves[f"loss_{rule}"] = [loss for _, loss in found]
    errors = {rule: float(np.mean(curves[f"error_{rule}"])) for rule in rules}
    scalars = {f"mean_error_{rule}": error for rule, error in errors.items()}
    return Findings(scalars, curves, _claims(errors, recipe), data.provenance)


def _load(dataset: str, run: Run) -> Data:
    if dataset == "imagenet":
        files, val = load_image_folder(run.data)
        return Data(files, val, None, 3, len(files.classes), f"{files.sha256} {val.sha256}")
    if dataset == "cifar10":
        data = load_cifar10(run.data, device=run.device)
        augment = partial(crop_and_flip, fill=data.black)
    else:
        data, augment = load_digits(device=run.device, as_images=True), None
    train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
    return Data(train, test, augment, data.x_train.shape[1], 10, data.provenance)


def _trained(
    part: Part, net: nn.Module, data: Data, recipe: Recipe, epochs: int, seed: int, autocast: bool
) -> list[list[float]]:
    """Train; return the test error and whether the state stopped being finite, and the losses."""

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if autocast:  # convolutions in half precision read a pixel's channels side by side
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            logits = net(x)
        return cross_entropy(logits.float(), y)

    def optimiser(parameters: Iterable[nn.Parameter]) -> Optimizer:
        return SGD(parameters, lr=0.1, momentum=0.9, weight_decay=recipe.decay)

    own = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine, from torchrun
    workers = 0 if isinstance(data.train, tuple) else min(16, (os.cpu_count() or 1) // own)
    try:
        history = fit(
            net, loss, data.train,
            optimiser=optimiser,
            epochs=epochs,
            batch_size=recipe.batch_size,
            generator=torch.Generator().manual_seed(seed),
            schedule=recipe.schedule,
            augment=data.augment,
            workers=workers,
            parallel=part.parallel,
            snapshot=part.snapshot,
            report=part.report,
        )  # fmt: skip
        error = error_rate(net, data.test, batch_size=500, workers=workers)
    except NonFiniteError:
        return [[1 - 1 / data.classes, 1.0], [float("nan")] * epochs]
    return [[error, 0.0], history["loss"]]


def _claims(errors: dict[str, float], recipe: Recipe) -> list[Claim]:
    """Decide the claim on errors averaged over seeds."""
    others = min(error for rule, error in errors.items() if rule != "scaled")
    return [
        Claim("CL57", "mean test error of a ResNet with 1/N", errors["scaled"], high=recipe.error),
        Claim(
            "CL57",
            "mean test error of a ResNet with 1/N minus the best without",
            errors["scaled"] - others,
            high=recipe.margin,
        ),
    ]
