"""CIFAR-10 and CIFAR-100: 60,000 colour images of 32 by 32 pixels, from the binary files."""

from pathlib import Path

import torch
from torch import Tensor

from companion.data.labels import checked_labels
from companion.data.official import DataFile, Published, read_published
from companion.data.samples import Samples
from companion.data.standardise import check_dtype, standardised

_PIXELS = 3 * 32 * 32

CIFAR10 = Published(
    "cifar10",
    "cifar-10-batches-bin",
    tuple(
        DataFile(name, 10_000 * (1 + _PIXELS), sha256)
        for name, sha256 in {
            "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        }.items()
    ),
    "https://www.cs.toronto.edu/~kriz/",
    {
        "cifar-10-binary.tar.gz": (
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
        )
    },
)

CIFAR100 = Published(
    "cifar100",
    "cifar-100-binary",
    (
        DataFile(
            "train.bin",
            50_000 * (2 + _PIXELS),
            "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
        ),
        DataFile(
            "test.bin",
            10_000 * (2 + _PIXELS),
            "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
        ),
    ),
    CIFAR10.address,
    {
        "cifar-100-binary.tar.gz": (
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
        )
    },
)


def load_cifar10(
    folder: Path | str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Samples:
    """Return CIFAR-10 with its official split, standardised by colour over the training set.

    Args:
        folder: the data folder; ``None`` takes the one that ``COMPANION_DATA`` names.
        dtype: of the pixels, of shape ``(n, 3, 32, 32)``.
        device: of all tensors; in float32 the pixels take 0.74 GB.

    Raises:
        TypeError: ``folder`` that is no path, or ``dtype`` that is not floating-point.
        ValueError: no data folder; files missing, damaged or of another size than the official
            ones; a class above 9; or the set is absent and cannot be downloaded.

    Source:
        A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    colours = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    return _load(CIFAR10, folder, 10, colours, dtype, device)


def load_cifar100(
    folder: Path | str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Samples:
    """Return CIFAR-100 with its official split and its 100 fine classes, standardised by colour.

    The arguments, the errors and the source are those of :func:`load_cifar10`.
    """
    colours = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    return _load(CIFAR100, folder, 100, colours, dtype, device)


def parse_records(content: bytes, name: str, classes: int) -> tuple[Tensor, Tensor]:
    """Return the images and the classes of one binary file.

    A record is the class and 3,072 pixels: red, green and blue, each row by row. In CIFAR-100 a
    coarse class comes first, which is left out.

    Args:
        content: records without gaps.
        name: of the file, for errors.
        classes: 10 or 100.

    Returns:
        Pixels, bytes of shape ``(n, 3, 32, 32)``; classes, int64 of shape ``(n,)``.

    Raises:
        ValueError: a cut record, or a class that does not exist.

    Example:
        >>> images, labels = parse_records(bytes([7]) + bytes(3072), "one", 10)
        >>> images.shape, labels
        (torch.Size([1, 3, 32, 32]), tensor([7]))
    """
    head = 1 if classes == 10 else 2
    if len(content) % (head + _PIXELS):
        raise ValueError(
            f"data file {name} of {len(content)} bytes is cut: a record has {head + _PIXELS}"
        )
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, head + _PIXELS)
    if classes == 100:
        checked_labels(records[:, 0], name, 20, kind="coarse class")
    labels = checked_labels(records[:, head - 1], name, classes)
    return records[:, head:].reshape(-1, 3, 32, 32), labels


def _load(
    published: Published,
    folder: Path | str | None,
    classes: int,
    colours: tuple[tuple[float, ...], tuple[float, ...]],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Samples:
    check_dtype(dtype)
    content = read_published(published, folder)
    parts = [
        parse_records(data, file.name, classes)
        for data, file in zip(content.files, published.files, strict=True)
    ]
    images, labels = zip(*parts, strict=True)
    mean, deviation = (
        torch.tensor(values, dtype=dtype, device=device).view(3, 1, 1) for values in colours
    )
    return Samples(
        standardised(torch.cat(images[:-1]), mean, deviation),
        torch.cat(labels[:-1]).to(device),
        standardised(images[-1], mean, deviation),
        labels[-1].to(device),
        mean,
        deviation,
        content.sha256,
        content.origin,
    )
