"""How often a trained classifier is wrong."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from companion.arguments import check_count
from companion.plain_layers import all_modules
from companion.train.batches import Rows, check_rows, device_of


def error_rate(
    model: nn.Module,
    data: Sequence[Tensor] | Rows,
    *,
    batch_size: int = 1000,
    workers: int = 0,
) -> float:
    """Return the share of samples whose class the model does not score highest.

    The model is in evaluation mode meanwhile, and every part of it afterwards in the mode it was.

    Args:
        model: maps a batch of samples to scores, shape ``(batch, classes)``.
        data: the two tensors of samples and classes, or samples that are read when they are
            needed.
        batch_size: samples at a time.
        workers: processes that read such samples; 0 reads them in this one.

    Raises:
        TypeError: ``data`` of another kind, or labels that are no integers.
        ValueError: no samples, another number of labels than samples, labels or scores that
            :func:`misclassified` refuses, or ``batch_size`` or ``workers`` out of range.

    Example:
        >>> x = torch.eye(3)
        >>> error_rate(nn.Identity(), (x, torch.tensor([0, 1, 1]))) == 1 / 3
        True
    """
    batch_size = check_count("batch_size", batch_size)
    workers = check_count("workers", workers, least=0)
    wrong, total = torch.zeros((), dtype=torch.int64), 0
    with evaluating(model), torch.no_grad():
        for x, y in _batches(model, data, batch_size, workers):
            wrong = wrong.to(y.device) + misclassified(model(x), y).sum()
            total += len(y)
    return wrong.item() / total


def misclassified(scores: Tensor, labels: Tensor) -> Tensor:
    """Return for each sample whether another class than its own scores highest.

    Args:
        scores: shape ``(samples, classes)``.
        labels: the classes from 0, integers of shape ``(samples,)``. No other shape will do:
            compared with a column, every sample would meet every label.

    Returns:
        Booleans of shape ``(samples,)``.

    Raises:
        TypeError: something else than tensors, or labels that are no integers.
        ValueError: another shape of either, or a label that no score belongs to.

    Example:
        >>> misclassified(torch.eye(3), torch.tensor([0, 1, 1]))
        tensor([False, False,  True])
    """
    for name, value in (("scores", scores), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: a {type(value).__name__} is not allowed; give a tensor")
    if scores.ndim != 2 or not scores.shape[1]:
        raise ValueError(
            f"scores: shape {tuple(scores.shape)} is not allowed; it must be (samples, classes)"
        )
    _check_labels(labels, *scores.shape)
    return scores.argmax(1) != labels


def _check_labels(labels: Tensor, samples: int, classes: int) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"labels: {labels.dtype} is not allowed; they must be the classes' numbers, as "
            "torch.int64"
        )
    if labels.shape != (samples,):
        hint = ", as labels.squeeze(1) is" if labels.shape == (samples, 1) else ""
        raise ValueError(
            f"labels: shape {tuple(labels.shape)} is not allowed; it must be ({samples},), one "
            f"class a sample{hint}"
        )
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise ValueError(
            f"labels: {int(labels[outside][0])} is not allowed; the scores are of classes 0 to "
            f"{classes - 1}"
        )


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
    modes = {module: module.training for module in all_modules(model)}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _batches(
    model: nn.Module, data: Sequence[Tensor] | Rows, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    check_rows("data", data)
    if isinstance(data, Sequence):
        if len(data) != 2:
            raise ValueError(
                f"data: {len(data)} tensors are not allowed; they must be samples and labels"
            )
        yield from zip(*(torch.split(tensor, batch_size) for tensor in data), strict=True)
        return
    device = device_of(model)
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
