"""MNIST: 70,000 handwritten digits of 28 by 28 grey pixels, from the published idx files."""

import math
from pathlib import Path

import torch
from torch import Tensor

from companion.data.official import DataFile, Published, read_published
from companion.data.samples import Samples
from companion.data.standardise import check_dtype, standardised

MNIST = Published(
    "mnist",
    "MNIST/raw",
    (
        DataFile(
            "train-images-idx3-ubyte",
            16 + 60_000 * 28 * 28,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        DataFile(
            "train-labels-idx1-ubyte",
            8 + 60_000,
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        DataFile(
            "t10k-images-idx3-ubyte",
            16 + 10_000 * 28 * 28,
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        DataFile(
            "t10k-labels-idx1-ubyte",
            8 + 10_000,
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    {
        f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz": sha256
        for name, sha256 in {
            "train-images-idx3-ubyte": (
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
            ),
            "train-labels-idx1-ubyte": (
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
            ),
            "t10k-images-idx3-ubyte": (
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
            ),
            "t10k-labels-idx1-ubyte": (
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
            ),
        }.items()
    },
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
            ones; a file that is no idx file; or the set is absent and cannot be downloaded.

    Source:
        Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits, 1998.
    """
    check_dtype(dtype)
    content = read_published(MNIST, folder)
    x_train, y_train, x_test, y_test = (
        parse_idx(data, file.name) for data, file in zip(content.files, MNIST.files, strict=True)
    )
    mean, deviation = (
        torch.tensor([value], dtype=dtype, device=device).view(1, 1, 1)
        for value in (0.1307, 0.3081)
    )
    return Samples(
        standardised(x_train.unsqueeze(1), mean, deviation),
        y_train.to(device, torch.int64),
        standardised(x_test.unsqueeze(1), mean, deviation),
        y_test.to(device, torch.int64),
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
