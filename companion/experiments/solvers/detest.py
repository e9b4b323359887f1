"""Four problems of DETEST (Hull et al. 1972), on which solvers have been compared for fifty years.

Each is given by its field and its start; all run from time 0 to 20.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

TIME = 20.0


class Problem(NamedTuple):
    """An initial value problem on ``[0, TIME]``.

    Attributes:
        title: what it describes.
        field: ``field(t, y)``, with ``y`` in double precision.
        start: the state at time 0.
    """

    title: str
    field: Callable[[Tensor, Tensor], Tensor]
    start: tuple[float, ...]


def _oscillating(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.cos(t)


def _predators(t: Tensor, y: Tensor) -> Tensor:
    meetings = y[0] * y[1]
    return torch.stack([2 * (y[0] - meetings), meetings - y[1]])


def _orbit(t: Tensor, y: Tensor) -> Tensor:
    return torch.cat([y[2:], -y[:2] / y[:2].norm() ** 3])


def _van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], (1 - y[0] ** 2) * y[1] - y[0]])


PROBLEMS = {
    "A3": Problem("growth that oscillates", _oscillating, (1.0,)),
    "B1": Problem("predators and prey", _predators, (1.0, 3.0)),
    "D3": Problem("an orbit of eccentricity 0.5", _orbit, (0.5, 0.0, 0.0, math.sqrt(3))),
    "E2": Problem("van der Pol's oscillator", _van_der_pol, (2.0, 0.0)),
}
"""By their names in DETEST."""
