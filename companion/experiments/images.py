"""Images that networks are trained on, each data set with its augmentation and batch size."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from companion import data as sets
from companion.data import ImageFolder, Samples
from companion.experiments.recipes import Split, readers, splits
from companion.experiments.running import Run

EVALUATION_BATCH = 500
"""Images at a time where nothing is learnt."""

_LOADED: dict[str, tuple[Callable[..., Samples], int, int]] = {
    "digits": (lambda folder, **options: sets.load_digits(as_images=True, **options), 10, 64),
    "cifar10": (sets.load_cifar10, 10, 128),
    "cifar100": (sets.load_cifar100, 100, 128),
}
"""How a data set is loaded, its number of classes, and samples a step."""

_FOLDERS = {"tiny-imagenet": (64, 128), "imagenet": (224, 256)}
"""Pixels across the images of a folder, and samples a step."""


@dataclass(frozen=True)
class Images:
    """A data set as training and testing take it; ``provenance`` is what findings record."""

    train: Split
    test: Split
    augment: Callable[[Tensor, torch.Generator], Tensor] | None
    channels: int
    classes: int
    batch_size: int
    provenance: str

    @property
    def in_memory(self) -> tuple[Tensor, Tensor]:
        """The test samples, of a data set whose test samples every graph reads again."""
        assert isinstance(self.test, tuple)
        return self.test


def load_images(dataset: str, run: Run, allowed: tuple[str, ...]) -> Images:
    """Return a data set with its augmentation and batch size.

    ``imagenet`` and ``tiny-imagenet`` are folders with ``train/CLASS/*.JPEG`` and
    ``val/CLASS/*.JPEG``; the test images of the second are read into memory.

    Raises:
        ValueError: a name that is not allowed, or files that are missing or damaged.
    """
    if dataset not in allowed:
        raise ValueError(f"dataset must be one of {', '.join(allowed)}; got {dataset!r}")
    if dataset in _FOLDERS:
        size, batch_size = _FOLDERS[dataset]
        train, val = sets.load_image_folder(run.data, dataset, size=size)
        test = val if dataset == "imagenet" else in_memory(val, run.device)
        provenance = f"{train.sha256} {val.sha256}"
        return Images(train, test, None, 3, len(train.classes), batch_size, provenance)
    load, classes, batch_size = _LOADED[dataset]
    data = load(run.data, device=run.device, dtype=run.dtype)
    augment = None if dataset == "digits" else partial(sets.crop_and_flip, fill=data.black)
    channels = data.x_train.shape[1]
    return Images(*splits(data), augment, channels, classes, batch_size, data.provenance)


def in_memory(rows: ImageFolder, device: torch.device) -> tuple[Tensor, Tensor]:
    """Read all samples of a folder once, and return them as tensors."""
    keys = [(index, 0) for index in range(len(rows))]
    loader: DataLoader[list[Tensor]] = DataLoader(
        rows,  # type: ignore[arg-type]
        EVALUATION_BATCH,
        sampler=keys,
        num_workers=readers(rows),
        generator=torch.Generator(),  # else it would draw from the global one
    )
    x, y = zip(*loader, strict=True)
    return torch.cat(x).to(device), torch.cat(y).to(device)
