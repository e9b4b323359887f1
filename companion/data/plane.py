"""What the densities of the plane share: random numbers and a check."""

import torch
from torch import Tensor

from companion.arguments import check_count, check_type

__all__ = ["check_points", "coins", "normal", "uniform"]


def uniform(n: int, columns: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return numbers between 0 and 1, shape ``(n, columns)``, on the generator's device.

    Raises:
        TypeError: ``generator`` of another type.
        ValueError: ``n`` that is no integer of at least 1.

    Example:
        >>> uniform(3, 2, torch.Generator().manual_seed(0), torch.float64).shape
        torch.Size([3, 2])
    """
    _check(n, generator)
    return torch.rand(n, columns, generator=generator, device=generator.device, dtype=dtype)


def normal(n: int, columns: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return standard normal numbers, shape ``(n, columns)``, on the generator's device.

    Raises:
        TypeError: ``generator`` of another type.
        ValueError: ``n`` that is no integer of at least 1.

    Example:
        >>> normal(3, 2, torch.Generator().manual_seed(0), torch.float64).shape
        torch.Size([3, 2])
    """
    _check(n, generator)
    return torch.randn(n, columns, generator=generator, device=generator.device, dtype=dtype)


def coins(n: int, sides: int, generator: torch.Generator) -> Tensor:
    """Return integers from 0 to ``sides - 1``, equally likely, shape ``(n,)``.

    Example:
        >>> coins(3, 1, torch.Generator())
        tensor([0, 0, 0])
    """
    _check(n, generator)
    return torch.randint(sides, (n,), generator=generator, device=generator.device)


def _check(n: int, generator: torch.Generator) -> None:
    check_count("n", n)
    check_type("generator", generator, torch.Generator)


def check_points(x: Tensor) -> None:
    """Check that points lie in the plane.

    Raises:
        TypeError: for what is no tensor.
        ValueError: for a last axis of another size than 2.

    Example:
        >>> check_points(torch.zeros(5, 3))
        Traceback (most recent call last):
        ValueError: x: shape (5, 3) is not allowed; its last axis must be of 2
    """
    check_type("x", x, Tensor)
    if x.shape[-1:] != (2,):
        raise ValueError(f"x: shape {tuple(x.shape)} is not allowed; its last axis must be of 2")
