"""Images in folders, one folder per class, as ImageNet is unpacked; read when they are needed."""

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from companion.arguments import check_count
from companion.data.official import data_folder
from companion.data.standardise import standardised

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = {".jpeg", ".jpg", ".png"}
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class ImageFolder:
    r"""One part of a data set of images: ``root/PART/CLASS/*.JPEG``.

    Classes are numbered in the order of their folders' names. ``folder[index, seed]`` is an image,
    shape ``(3, size, size)``, standardised by ImageNet's colours, and its class, int64. In the
    part ``train`` the image is a random piece, 8 to 100 % of the area, sides in a ratio of 3:4 to
    4:3, mirrored with probability 1/2, all drawn from the seed. In any other part it is the
    middle: a square of 7/8 of the shorter side.

    Args:
        root: folder of the data set.
        part: folder below it, such as ``train`` or ``val``.
        size: pixels on each side of what is returned.

    Attributes:
        classes: the classes' names.
        paths: the image files.
        labels: their classes, shape ``(n,)``.
        sha256: hash of the names and sizes of the files, not of their pixels.

    Raises:
        ValueError: no such folder, no class in it, a class without an image, or ``size`` that is
            no integer of at least 1. When read: a file is no image, or a cut one.

    Source:
        C. Szegedy et al., Going Deeper with Convolutions, 2015 (the random piece); K. He et al.,
        Deep Residual Learning for Image Recognition, 2016 (the test crop).
    """

    def __init__(self, root: Path, part: str, *, size: int = 224) -> None:
        check_count("size", size)
        folder = root / part
        if not folder.is_dir():
            held = sorted(entry.name for entry in root.iterdir()) if root.is_dir() else []
            raise ValueError(
                f"root: {str(root)!r} is not allowed; it must hold the folder {part}/ and holds "
                f"{', '.join(held[:6]) or 'nothing'}"
            )
        self.classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        if not self.classes:
            raise ValueError(
                f"root: {str(root)!r} is not allowed; {part}/ must hold a folder for each class "
                "and holds none"
            )
        self.paths: list[Path] = []
        labels, digest = [], hashlib.sha256()
        for label, name in enumerate(self.classes):
            found = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in _SUFFIXES)
            if not found:
                raise ValueError(
                    f"the class folder {folder / name} holds no image ({', '.join(_SUFFIXES)})"
                )
            for path in found:
                digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
            self.paths += found
            labels += [label] * len(found)
        self.labels = torch.tensor(labels)
        self.sha256 = digest.hexdigest()
        self.size, self.random = size, part == "train"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the image ``key[0]``, with the random piece of the seed ``key[1]``."""
        index, seed = key
        image = _open(self.paths[index])
        flip = False
        if self.random:
            generator = torch.Generator().manual_seed(seed)
            box = random_box(image.size, generator)
            flip = torch.rand(1, generator=generator).item() < 0.5
        else:
            box = middle_box(image.size)
        pixels = np.array(image.resize((self.size, self.size), resample=2, box=box))
        x = torch.from_numpy(pixels).permute(2, 0, 1)
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _DEVIATION))
        return standardised(x.flip(2) if flip else x, mean, deviation), self.labels[index]


def load_image_folder(
    folder: Path | str | None = None, name: str = "imagenet", *, size: int = 224
) -> tuple[ImageFolder, ImageFolder]:
    """Return the parts ``train`` and ``val`` of a data set in the data folder.

    Args:
        folder: the data folder, or the data set's own; ``None`` takes the one that
            ``COMPANION_DATA`` names.
        name: the data set's folder in the data folder.
        size: pixels on each side of an image.

    Raises:
        TypeError: ``folder`` that is no path.
        ValueError: as :class:`ImageFolder`, or the parts have different classes.
    """
    root = data_folder(folder)
    root = root / name if (root / name).is_dir() else root
    train, val = ImageFolder(root, "train", size=size), ImageFolder(root, "val", size=size)
    if differing := sorted(set(train.classes) ^ set(val.classes)):
        raise ValueError(
            f"folder: {str(root)!r} is not allowed; train/ and val/ must have the same classes; "
            f"only one of them has {', '.join(differing[:4])}"
        )
    return train, val


Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels."""


def random_box(extent: tuple[int, int], generator: torch.Generator) -> Box:
    """Return a random piece of an image.

    Its share of the area is uniform in 0.08 to 1 and the logarithm of its width over its height in
    that of 3/4 to 4/3. If ten draws do not fit, it is the largest middle piece of an allowed ratio.

    Args:
        extent: width and height of the image.
        generator: what to draw from.
    """
    width, height = extent
    for _ in range(10):
        share, ratio, across, down = torch.rand(4, generator=generator, dtype=torch.float64)
        area = width * height * (0.08 + 0.92 * share.item())
        shape = (3 / 4) ** (1 - 2 * ratio.item())
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left = int(across.item() * (width - w + 1))
            upper = int(down.item() * (height - h + 1))
            return left, upper, left + w, upper + h
    return _middle(extent, min(width, height * 4 / 3), min(height, width * 4 / 3))


def middle_box(extent: tuple[int, int]) -> Box:
    """Return the middle square with 7/8 of the shorter side.

    Example:
        >>> middle_box((80, 64))
        (12.0, 4.0, 68.0, 60.0)
    """
    side = min(extent) * 7 / 8
    return _middle(extent, side, side)


def _middle(extent: tuple[int, int], w: float, h: float) -> Box:
    width, height = extent
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def _open(path: Path) -> "Image":
    from PIL import Image  # needed only here

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"image file {path} cannot be read: {error}") from error
