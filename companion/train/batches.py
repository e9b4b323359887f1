"""Where batches come from: tensors in memory, or samples that worker processes read."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from companion.train.team import Team

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Changes a batch at random, such as :func:`companion.data.crop_and_flip`."""


class Rows(Protocol):
    """Samples that are read when they are needed, such as :class:`companion.data.ImageFolder`.

    ``rows[index, seed]`` is one sample, a tuple of tensors. Whatever is random about it is drawn
    from the seed, so that a sample does not depend on the process that reads it.
    """

    @property
    def sha256(self) -> str:
        """Hash of what the samples are read from."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return the sample ``key[0]`` with the random changes of the seed ``key[1]``."""


def check_rows(name: str, data: object) -> None:
    """Refuse what neither is tensors with equally many rows nor samples that can be read.

    Raises:
        TypeError: data of another kind.
        ValueError: no sample, or tensors of different lengths.

    Example:
        >>> check_rows("data", [torch.zeros(3, 2), torch.zeros(4)])
        Traceback (most recent call last):
        ValueError: data: [3, 4] rows are not allowed; all must have equally many, at least 1
    """
    if isinstance(data, Sequence) and not isinstance(data, str):
        if not all(isinstance(entry, Tensor) and entry.ndim > 0 for entry in data):
            kinds = ", ".join(type(entry).__name__ for entry in data)
            raise TypeError(
                f"{name}: ({kinds}) is not allowed; it must hold tensors with one row per sample"
            )
        lengths = [len(entry) for entry in data]
        if not lengths or len(set(lengths)) > 1 or lengths[0] < 1:
            raise ValueError(
                f"{name}: {lengths} rows are not allowed; all must have equally many, at least 1"
            )
    elif not hasattr(data, "sha256") or not hasattr(data, "__getitem__"):
        raise TypeError(
            f"{name}: a {type(data).__name__} is not allowed; give a tuple of tensors, such as "
            "(x, y), or samples with a sha256, such as ImageFolder"
        )
    elif len(data) < 1:  # type: ignore[arg-type]
        raise ValueError(f"{name}: 0 samples are not allowed; there must be at least one")


def device_of(model: nn.Module) -> torch.device:
    """Return where a model lives: the device of its parameters, else of its buffers, else the CPU.

    Example:
        >>> device_of(nn.ReLU())
        device(type='cpu')
    """
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


class TensorSource:
    """Batches from tensors with one row per sample.

    Args:
        tensors: equally long, at least one row.
        augment: applied to the first tensor of every batch, or ``None``.
        generator: what ``augment`` draws from.
    """

    def __init__(
        self, tensors: Sequence[Tensor], augment: Augment | None, generator: torch.Generator
    ) -> None:
        self.tensors, self.augment, self.generator = tensors, augment, generator

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.tensors[0])

    def shuffled(self) -> Tensor:
        """Return the rows of an epoch in random order."""
        return torch.randperm(len(self), generator=self.generator)

    def batches(self, rows: Sequence[Tensor], team: Team) -> Iterator[tuple[list[Tensor], float]]:
        """Yield this process's share of each batch, and the weight of its loss.

        Every process changes the whole batch, so that their generators stay together.
        """
        for wanted in rows:
            batch = [tensor[wanted.to(tensor.device)] for tensor in self.tensors]
            if self.augment is not None:
                batch[0] = self.augment(batch[0], self.generator)
            share, weight = team.share(torch.arange(len(wanted)))
            if team.size > 1:  # else it is the batch itself
                batch = [tensor[share.to(tensor.device)] for tensor in batch]
            yield batch, weight

    def fingerprint(self) -> dict[str, str]:
        """Describe the tensors in words that another run's can be compared with."""
        return {str(i): f"{kind(x)} with hash {tensor_hash(x)}" for i, x in enumerate(self.tensors)}


class RowSource:
    """Batches of samples that are read when they are needed.

    Args:
        rows: the samples.
        workers: processes that read them; 0 reads in this one.
        device: where the batches go.
        generator: draws the order, and a seed for every sample.
    """

    def __init__(
        self, rows: Rows, workers: int, device: torch.device, generator: torch.Generator
    ) -> None:
        self.rows, self.workers, self.device, self.generator = rows, workers, device, generator

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.rows)

    def shuffled(self) -> Tensor:
        """Return the samples of an epoch in random order, each with a seed: two columns."""
        order = torch.randperm(len(self), generator=self.generator)
        seeds = torch.randint(2**62, (len(self),), generator=self.generator)
        return torch.stack([order, seeds], dim=1)

    def batches(self, rows: Sequence[Tensor], team: Team) -> Iterator[tuple[list[Tensor], float]]:
        """Yield this process's share of each batch, and the weight of its loss."""
        shares = [team.share(wanted) for wanted in rows]
        keys = [[(index, seed) for index, seed in share.tolist()] for share, _ in shares]
        loader: DataLoader[list[Tensor]] = DataLoader(
            self.rows,  # type: ignore[arg-type]
            batch_sampler=keys,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one
        )
        for batch, (_, weight) in zip(loader, shares, strict=True):
            yield [tensor.to(self.device, non_blocking=True) for tensor in batch], weight

    def fingerprint(self) -> dict[str, str]:
        """Describe the samples in words that another run's can be compared with."""
        return {"0": f"{len(self)} samples with hash {self.rows.sha256[:12]}"}


def kind(tensor: Tensor) -> str:
    """Return the type and the shape of a tensor, in words."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def tensor_hash(tensor: Tensor) -> str:
    """Return the first digits of a hash of the tensor's bytes."""
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(raw.data).hexdigest()[:12]
