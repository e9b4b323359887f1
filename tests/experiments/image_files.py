"""Files of image data sets in small, as they are published."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from companion.data import cifar


def write_cifar(
    folder: Path, patch: pytest.MonkeyPatch, name: str = "CIFAR10", labels: int = 1, number: int = 8
) -> Path:
    """Write files of CIFAR with a few images each, and let the catalogue expect them."""
    draw, published = np.random.default_rng(0), getattr(cifar, name)
    files = []
    for file in published.files:
        classes = draw.integers(0, 10, (number, labels), "u1")
        content = np.hstack([classes, draw.integers(0, 256, (number, 3072), "u1")]).tobytes()
        (folder / file.name).write_bytes(content)
        files.append(replace(file, size=len(content)))
    patch.setattr(cifar, name, replace(published, files=tuple(files)))
    return folder


def write_images(folder: Path, name: str = "imagenet", shape: tuple[int, int] = (40, 50)) -> Path:
    """Write a folder of two classes with three images for training and two for testing."""
    draw = np.random.default_rng(0)
    for part, number in (("train", 3), ("val", 2)):
        for kind in ("ant", "bee"):
            own = folder / name / part / kind
            own.mkdir(parents=True)
            for k in range(number):
                pixels = draw.integers(0, 256, (*shape, 3), "u1")
                Image.fromarray(pixels).save(own / f"{k}.JPEG")
    return folder
