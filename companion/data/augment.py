"""Random changes to training images that keep their class."""

import torch
from torch import Tensor

from companion.arguments import check_count, check_type


def crop_and_flip(
    x: Tensor, generator: torch.Generator, *, padding: int = 4, fill: Tensor | float = 0.0
) -> Tensor:
    r"""Shift every image by up to ``padding`` pixels and mirror it with probability 1/2.

    The standard augmentation of CIFAR: a crop of the old size at a random place of the padded
    image, then a flip of left and right. The numbers are drawn on the generator's device, so that
    one on the CPU gives the same images on every device.

    Args:
        x: images, shape ``(n, channels, height, width)``.
        generator: draws places and flips, independently for each image.
        padding: pixels added on every side, at least 0.
        fill: what they hold, such as the ``black`` of
            :class:`~companion.data.Samples`; broadcasts against a padded image.

    Returns:
        New images of the shape of ``x``.

    Raises:
        TypeError: ``x``, ``generator`` or ``fill`` of another type.
        ValueError: ``x`` of another rank, ``padding`` that is no integer of at least 0, or ``fill``
            of a shape that does not broadcast.

    Example:
        >>> x = torch.arange(4.0).view(1, 1, 1, 4)
        >>> crop_and_flip(x, torch.Generator().manual_seed(3), padding=1, fill=9.0)
        tensor([[[[9., 3., 2., 1.]]]])
    """
    check_type("x", x, Tensor)
    check_type("generator", generator, torch.Generator)
    check_type("fill", fill, int, float, Tensor)
    if x.ndim != 4:
        raise ValueError(
            f"x: shape {tuple(x.shape)} is not allowed; it must be (n, channels, height, width)"
        )
    check_count("padding", padding, least=0)
    n, channels, height, width = x.shape

    def draw(below: int) -> Tensor:
        draws = torch.randint(below, (n, 1), generator=generator, device=generator.device)
        return draws.to(x.device)

    top, left, flip = draw(2 * padding + 1), draw(2 * padding + 1), draw(2)
    wide = width + 2 * padding
    padded = x.new_empty(n, channels, height + 2 * padding, wide)
    border = torch.as_tensor(fill, dtype=x.dtype, device=x.device)
    try:
        border = border.expand_as(padded)
    except RuntimeError:
        raise ValueError(
            f"fill: a shape of {tuple(border.shape)} does not broadcast against padded images, "
            f"{tuple(padded.shape)}"
        ) from None
    padded[:] = border
    padded[:, :, padding : padding + height, padding : padding + width] = x
    across = torch.arange(width, device=x.device)
    rows = top + torch.arange(height, device=x.device)
    columns = left + torch.where(flip == 1, width - 1 - across, across)
    index = (rows.unsqueeze(2) * wide + columns.unsqueeze(1)).view(n, 1, height * width)
    return padded.flatten(2).gather(2, index.expand(-1, channels, -1)).view_as(x)
