"""A task that no linear classifier solves: a disc and the annulus around it, in the plane."""

import math

import torch
from torch import Tensor

from companion.data import Samples

WIDE = (1.0, 1.5, 2.0)
"""The radius of the disc, and those between which the annulus lies: with a gap."""

NARROW = (0.5, 1.0, 1.5)
"""The same for a smaller disc."""


def annulus(
    count: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    radii: tuple[float, float, float] = WIDE,
) -> tuple[Tensor, Tensor]:
    r"""Return points of two classes, uniform on their areas: 0 in the disc, 1 in the annulus.

    The classes alternate, so that both are equally frequent.

    Args:
        count: number of points.
        generator: draws them, on the CPU.
        dtype: of the points.
        radii: of the disc, and the inner and outer one of the annulus.

    Source:
        Dupont, Doucet and Teh 2019, Augmented neural ODEs, section 4; the radii are ours.

    Example:
        >>> x, y = annulus(4, torch.Generator().manual_seed(0), torch.float64)
        >>> y.tolist(), (x.norm(dim=1) > 1.5).long().tolist()
        ([0, 1, 0, 1], [0, 1, 0, 1])
    """
    share, turn = torch.rand(2, count, generator=generator, dtype=torch.float64)
    y = torch.arange(count) % 2
    inner, gap, outer = (r**2 for r in radii)
    low, high = torch.where(y == 0, 0.0, gap), torch.where(y == 0, inner, outer)
    radius, angle = (low + (high - low) * share).sqrt(), 2 * math.pi * turn
    x = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], dim=1)
    return x.to(dtype), y


def annulus_samples(seed: int, train: int, test: int, dtype: torch.dtype) -> Samples:
    """Return points to train and to test on; ``seed`` decides all of them.

    Example:
        >>> data = annulus_samples(0, 6, 4, torch.float32)
        >>> data.x_train.shape, data.y_test.tolist()
        (torch.Size([6, 2]), [0, 1, 0, 1])
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [annulus(count, generator, dtype) for count in (train, test)]
    zero, one = torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)
    return Samples(*parts[0], *parts[1], zero, one, f"seed {seed}", "made here")
