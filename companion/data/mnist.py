"""MNIST: 70,000 handwritten digits of 28 by 28 grey pixels, from the published idx files."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from companion.data.labels import checked_labels
from companion.data.official import DataFile, Published, read_published
from companion.data.samples import Samples
from companion.data.standardise import check_dtype, standardised

# Name, bytes, hash of the file, hash of the file packed with gzip.
_FILES = (
    (
        "train-images-idx3-ubyte",
        16 + 60_000 * 28 * 28,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    (
        "train-labels-idx1-ubyte",
        8 + 60_000,
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    (
        "t10k-images-idx3-ubyte",
        16 + 10_000 * 28 * 28,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    (
        "t10k-labels-idx1-ubyte",
        8 + 10_000,
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
)

MNIST = Published(
    "mnist",
    "MNIST/raw",
    tuple(DataFile(*row[:3]) for row in _FILES),
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    {f"{row[0]}.gz": row[3] for row in _FILES},
)


def load_mnist(
    folder: Path | str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Samples:
    """Return MNIST with its official split, pixels standardised over the training set.

    Args:
        folder: the data folder; ``None`` takes the one that ``COMPANION_DATA`` names.
        dtype: of the pixels, of shape ``(n, 1, 28, 28)``.
        device: of all tensors.

    Raises:
        TypeError: ``folder`` that is no path, or ``dtype`` that is not floating-point.
        ValueError: no data folder; files missing, damaged or of another size than the official
            ones; a file that is no idx file, images of another shape or number than the labels
            say, a class above 9; or the set is absent and cannot be downloaded.

    Source:
        Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits, 1998.
    """
    check_dtype(dtype)
    content = read_published(MNIST, folder)
    names = [file.name for file in MNIST.files]
    train, test = (_part(content.files[i : i + 2], names[i : i + 2]) for i in (0, 2))
    mean, deviation = (
        torch.tensor([value], dtype=dtype, device=device).view(1, 1, 1)
        for value in (0.1307, 0.3081)
    )
    return Samples(
        standardised(train[0].unsqueeze(1), mean, deviation),
        train[1].to(device),
        standardised(test[0].unsqueeze(1), mean, deviation),
        test[1].to(device),
        mean,
        deviation,
        content.sha256,
        content.origin,
    )


def parse_idx(content: bytes, name: str) -> Tensor:
    """Return the array of bytes that an idx file holds.

    Args:
        content: the file: two zero bytes, the type (8 for bytes), the number of dimensions, each
            dimension in four bytes, highest first, and the values.
        name: of the file, for errors.

    Raises:
        ValueError: not an idx file of bytes, or another number of values than it says.

    Example:
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), "two")
        tensor([7, 9], dtype=torch.uint8)
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, 8]):
        raise ValueError(f"data file {name} is no idx file of bytes: it begins {content[:4]!r}")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if math.prod(shape) != len(content) - start:
        raise ValueError(
            f"data file {name} says it holds values of shape {shape}, which is not the "
            f"{len(content) - start} it has"
        )
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(shape)


def _part(contents: Sequence[bytes], names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the images and the classes of the training or the test part."""
    images, labels = (parse_idx(data, name) for data, name in zip(contents, names, strict=True))
    for array, name, shape in ((images, names[0], (28, 28)), (labels, names[1], ())):
        if array.ndim < 1 or array.shape[1:] != shape:
            raise ValueError(
                f"data file {name} is damaged: it says it holds values of shape "
                f"{list(array.shape)}; expected {['n', *shape]}".replace("'", "")
            )
    if len(images) != len(labels):
        raise ValueError(
            f"data file {names[1]} does not belong to {names[0]}: it has {len(labels)} labels for "
            f"{len(images)} images"
        )
    return images, checked_labels(labels, names[1], 10)
