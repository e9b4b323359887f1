"""A disc inside a ring, and a neural ODE that has to separate the two."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

RADII = (0.5, 1.0, 1.5)
"""The radius of the disc, and the inner and outer one of the ring."""


def disc_and_ring(
    points: int, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Draw points, half of them in the disc with the target -1, the others in the ring with 1.

    Each half is spread evenly over its area. The map is that of Dupont et al. 2019.

    Shapes: ``(points, 2)`` and ``(points,)``.

    Example:
        >>> x, y = disc_and_ring(4, torch.Generator().manual_seed(0))
        >>> y.tolist(), bool((x[2:].norm(dim=1) > 1).all())
        ([-1.0, -1.0, 1.0, 1.0], True)
    """
    share, turn = torch.rand(2, points, generator=generator, dtype=torch.float64)
    disc = torch.arange(points) < points // 2
    low = torch.where(disc, 0.0, RADII[1]).double()
    high = torch.where(disc, RADII[0], RADII[2]).double()
    radius = (low**2 + (high**2 - low**2) * share).sqrt()
    angle = 2 * torch.pi * turn
    x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return x.to(dtype), torch.where(disc, -1.0, 1.0).to(dtype)


class TimeField(nn.Module):
    """A velocity: two hidden layers of the state and the time.

    Args:
        dim: numbers in a state.
        hidden: units of each hidden layer.

    Example:
        >>> TimeField(3, hidden=8)(torch.tensor(0.5), torch.ones(4, 3)).shape
        torch.Size([4, 3])
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim + 1, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(),
            nn.Linear(hidden, dim),
        )  # fmt: skip

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the velocity of states of shape ``(batch, dim)``."""
        velocity: Tensor = self.layers(torch.cat([x, t.expand(len(x), 1)], 1))
        return velocity


class Separator(nn.Module):
    """A field in the plane or in more dimensions, and an affine score of where points end.

    Args:
        extra: dimensions besides those of the plane; they start at 0.
        hidden: units of the field's hidden layers.
    """

    def __init__(self, extra: int, hidden: int) -> None:
        super().__init__()
        self.extra = extra
        self.field, self.head = TimeField(2 + extra, hidden), nn.Linear(2 + extra, 1)

    def start(self, x: Tensor) -> Tensor:
        """Return the states at time 0 of points ``(points, 2)``.

        Example:
            >>> Separator(extra=1, hidden=4).start(torch.ones(1, 2))
            tensor([[1., 1., 0.]])
        """
        return pad(x, (0, self.extra))

    def score(self, end: Tensor) -> Tensor:
        """Return the scores of states at time 1, shape ``(points,)``."""
        scores: Tensor = self.head(end).squeeze(1)
        return scores


def wrong(scores: Tensor, y: Tensor) -> float:
    """Return the share of points whose score has the wrong sign.

    Example:
        >>> wrong(torch.tensor([0.3, -2.0]), torch.tensor([1.0, 1.0]))
        0.5
    """
    return float((scores * y <= 0).double().mean())
