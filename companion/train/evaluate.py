"""How often a trained classifier is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from companion.block import DepthWeights
from companion.train.batches import Rows


def error_rate(
    model: nn.Module,
    data: tuple[Tensor, Tensor] | Rows,
    *,
    batch_size: int = 1000,
    workers: int = 0,
) -> float:
    """Return the share of samples whose class the model does not score highest.

    The model is in evaluation mode meanwhile, and every part of it afterwards in the mode it was.

    Args:
        model: maps a batch of samples to scores, shape ``(batch, classes)``.
        data: samples and their classes, or samples that are read when they are needed.
        batch_size: samples at a time.
        workers: processes that read such samples; 0 reads them in this one.

    Raises:
        ValueError: there are no samples.

    Example:
        >>> x = torch.eye(3)
        >>> error_rate(nn.Identity(), (x, torch.tensor([0, 1, 1]))) == 1 / 3
        True
    """
    wrong, total = torch.zeros((), dtype=torch.int64), 0
    with evaluating(model), torch.no_grad():
        for x, y in _batches(model, data, batch_size, workers):
            wrong = wrong.to(y.device) + (model(x).argmax(1) != y).sum()
            total += len(y)
    if total == 0:
        raise ValueError("data must hold at least one sample; got none")
    return wrong.item() / total


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep a model in evaluation mode inside the block; every part of it then gets its mode back.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluating(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    modes = {module: module.training for module in _parts(model)}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """Yield all modules of a model, and those of the residuals inside blocks, which hide theirs."""
    for module in model.modules():
        yield module
        if isinstance(module, DepthWeights):
            yield from _parts(module.template)


def _batches(
    model: nn.Module, data: tuple[Tensor, Tensor] | Rows, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(data, tuple):
        yield from zip(*(torch.split(tensor, batch_size) for tensor in data), strict=True)
        return
    device = next(model.parameters()).device
    keys = [(index, 0) for index in range(len(data))]
    loader: DataLoader[list[Tensor]] = DataLoader(
        data,  # type: ignore[arg-type]
        batch_size,
        sampler=keys,
        num_workers=workers,
        generator=torch.Generator(),  # else it would draw from the global one
    )
    for x, y in loader:
        yield x.to(device), y.to(device)
