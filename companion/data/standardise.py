"""From bytes to numbers that a network can work with."""

import torch
from torch import Tensor


def standardised(pixels: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    r"""Return $(p - \mathrm{mean})/\mathrm{deviation}$ with $p$ the pixels over 255.

    Args:
        pixels: bytes, any shape that ``mean`` broadcasts against.
        mean: to be subtracted; its type and device are the result's.
        deviation: to be divided by.

    Example:
        >>> mean, deviation = torch.tensor(0.5), torch.tensor(0.25)
        >>> standardised(torch.tensor([0, 255], dtype=torch.uint8), mean, deviation)
        tensor([-2.,  2.])
    """
    return pixels.to(mean.device).to(mean.dtype).div_(255).sub_(mean).div_(deviation)


def check_dtype(dtype: torch.dtype) -> None:
    """Raise a ``TypeError`` unless standardised pixels can be of this type.

    Example:
        >>> check_dtype(torch.int64)
        Traceback (most recent call last):
        TypeError: dtype: torch.int64 is not allowed; it must be floating-point, as torch.float32
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(
            f"dtype: {dtype!r} is not allowed; it must be floating-point, as torch.float32"
        )
