"""Images that ContinuousNets are trained on, each data set with its recipe."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from companion.data import (
    ImageFolder,
    crop_and_flip,
    load_cifar10,
    load_cifar100,
    load_digits,
    load_image_folder,
)
from companion.experiments.running import Run
from companion.train import Rows

EVALUATION_BATCH = 500
"""Images at a time where nothing is learnt."""


@dataclass(frozen=True)
class Images:
    """A data set as training and testing take it.

    Attributes:
        train: training samples, in memory or read when they are needed.
        test: test images and their classes, in memory: every graph reads them again.
        augment: random changes to training images, or ``None``.
        classes: number of classes.
        batch_size: samples a step.
        provenance: what findings record.
    """

    train: tuple[Tensor, Tensor] | Rows
    test: tuple[Tensor, Tensor]
    augment: Callable[[Tensor, torch.Generator], Tensor] | None
    classes: int
    batch_size: int
    provenance: str


def load_images(dataset: str, run: Run, allowed: tuple[str, ...]) -> Images:
    """Return a data set with its recipe.

    The paper names no learning rate and no batch size. Those here are usual: 0.1, and 128 images,
    or 64 of the digits. ``tiny-imagenet`` is a folder with ``train/CLASS/*.JPEG`` and
    ``val/CLASS/*.JPEG``.

    Raises:
        ValueError: a name that is not allowed, or files that are missing or damaged.
    """
    if dataset not in allowed:
        raise ValueError(f"dataset must be one of {', '.join(allowed)}; got {dataset!r}")
    if dataset == "tiny-imagenet":
        return _tiny_imagenet(run)
    if dataset == "digits":
        data, classes, batch_size = load_digits(device=run.device, as_images=True), 10, 64
    elif dataset == "cifar10":
        data, classes, batch_size = load_cifar10(run.data, device=run.device), 10, 128
    else:
        data, classes, batch_size = load_cifar100(run.data, device=run.device), 100, 128
    train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
    augment = None if dataset == "digits" else partial(crop_and_flip, fill=data.black)
    return Images(train, test, augment, classes, batch_size, data.provenance)


def _tiny_imagenet(run: Run) -> Images:
    train, val = load_image_folder(run.data, "tiny-imagenet", size=64)
    test, provenance = in_memory(val, run.device), f"{train.sha256} {val.sha256}"
    return Images(train, test, None, len(train.classes), 128, provenance)


def in_memory(rows: ImageFolder, device: torch.device) -> tuple[Tensor, Tensor]:
    """Read all samples of a folder once, and return them as tensors."""
    keys = [(index, 0) for index in range(len(rows))]
    loader: DataLoader[list[Tensor]] = DataLoader(
        rows,  # type: ignore[arg-type]
        EVALUATION_BATCH,
        sampler=keys,
        num_workers=workers(len(rows)),
        generator=torch.Generator(),  # else it would draw from the global one
    )
    x, y = zip(*loader, strict=True)
    return torch.cat(x).to(device), torch.cat(y).to(device)


def workers(samples: int) -> int:
    """Return how many processes read image files; few images are read faster in this one."""
    return min(16, os.cpu_count() or 1, samples // 1000)
