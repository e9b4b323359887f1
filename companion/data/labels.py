"""The classes that a file of labels holds."""

import torch
from torch import Tensor


def checked_labels(labels: Tensor, name: str, classes: int, kind: str = "class") -> Tensor:
    """Return labels as int64, or say which record of a damaged file has a class that is none.

    Args:
        labels: bytes.
        name: of the file, for errors.
        classes: how many there are; they are numbered from 0.
        kind: what errors call a label.

    Raises:
        ValueError: a label that is no class.

    Example:
        >>> checked_labels(torch.tensor([3, 12], dtype=torch.uint8), "labels.bin", 10)
        Traceback (most recent call last):
        ValueError: data file labels.bin is damaged: record 1 has the class 12 of 10
    """
    wrong = (labels >= classes).nonzero()
    if len(wrong):
        raise ValueError(
            f"data file {name} is damaged: record {int(wrong[0])} has the {kind} "
            f"{int(labels[wrong[0]])} of {classes}"
        )
    return labels.to(torch.int64)
