"""A neural ODE that has to separate a disc from the annulus around it."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from companion.experiments.annulus import NARROW, annulus
from companion.models import TanhMLP


def disc_and_ring(
    points: int, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Draw points, by turns in the disc with the target -1 and in the annulus with 1.

    Shapes: ``(points, 2)`` and ``(points,)``.

    Example:
        >>> x, y = disc_and_ring(4, torch.Generator().manual_seed(0))
        >>> y.tolist(), bool((x[1::2].norm(dim=1) > 1).all())
        ([-1.0, 1.0, -1.0, 1.0], True)
    """
    x, y = annulus(points, generator, dtype, NARROW)
    return x, (2 * y - 1).to(dtype)


class Separator(nn.Module):
    """A field in the plane or in more dimensions, and an affine score of where points end.

    Args:
        extra: dimensions besides those of the plane; they start at 0.
        hidden: units of the field's hidden layers.
    """

    def __init__(self, extra: int, hidden: int) -> None:
        super().__init__()
        self.extra = extra
        self.field = TanhMLP(2 + extra, (hidden, hidden))
        self.head = nn.Linear(2 + extra, 1)

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
