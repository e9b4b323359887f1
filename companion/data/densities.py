"""The densities of the plane that flows are trained on, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from companion.arguments import check_choice
from companion.data.clouds import Checkerboard, Circles, Moons, Pinwheel
from companion.data.energies import Ring, TwoModes, Wave

__all__ = ["NAMES", "Density", "density"]


class Density(Protocol):
    """What all of them can do."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density, shape ``(..., 2)`` to ``(...)``."""

    def sample(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return ``n`` independent points, shape ``(n, 2)``, on the generator's device."""


_KINDS: Mapping[str, Callable[[], Density]] = MappingProxyType(
    {
        "moons": Moons,
        "circles": Circles,
        "pinwheel": Pinwheel,
        "checkerboard": Checkerboard,
        "ring": Ring,
        "wave": Wave,
        "two_modes": TwoModes,
    }
)

NAMES = tuple(_KINDS)
"""The names that :func:`density` knows."""


def density(name: str) -> Density:
    """Return one of the densities, with its usual parameters.

    Args:
        name: one of :data:`NAMES`.

    Raises:
        ValueError: for another name.

    Example:
        >>> density("moons")
        Moons(noise=0.06)
        >>> density("moon")
        Traceback (most recent call last):
        ValueError: name: 'moon' is not allowed; it must be one of moons, circles, pinwheel, ...
    """
    check_choice("name", name, NAMES)
    return _KINDS[name]()
