"""The planar flow: a normalising flow of layers that each move points along one direction."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.arguments import check_count, check_type

__all__ = ["PlanarFlow", "Pushed", "solve_bent_line"]


class Pushed(NamedTuple):
    r"""Points that a flow has carried, forwards or backwards.

    Attributes:
        points: where they arrive.
        log_det: $\log|\det\partial(\text{arrival})/\partial(\text{start})|$, one for each point.
    """

    points: Tensor
    log_det: Tensor


class PlanarFlow(nn.Module):
    r"""$K$ planar layers that carry a standard normal density to another one.

    A layer moves points along a direction $\hat u$ by an amount that depends on one coordinate,

    $$x = z + \hat u \tanh(s), \quad s = w^\top z + b, \qquad
    \log\Bigl|\det\frac{\partial x}{\partial z}\Bigr| = \log\bigl(1 + c\,(1 - \tanh^2 s)\bigr),
    \quad c = w^\top \hat u.$$

    It is invertible where $c > -1$. This is so for all values of the parameters $u$ and $w \ne 0$,
    because $u$ is replaced by

    $$\hat u = u + \bigl(m(w^\top u) - w^\top u\bigr) \frac{w}{|w|^2}, \qquad
    m(a) = -1 + \log(1 + e^a).$$

    The inverse needs the root of one increasing function of one variable for each layer and point.

    A layer has $2d + 1$ parameters: 5 in the plane.

    Args:
        dimension: $d$, at least 1.
        layers: $K$, at least 1.
        generator: draws the first $u$ and $w$, normal with standard deviations 0.1 and 0.5, on the
            CPU; $b$ starts at 0.
        dtype: of the parameters.

    Shapes:
        Points are ``(..., d)``, and numbers that belong to points ``(...)``.

    Raises:
        TypeError: ``generator`` of another type.
        ValueError: ``dimension`` or ``layers`` that is no integer of at least 1; later, points
            whose last axis is not of ``dimension``.

    Source:
        Rezende and Mohamed 2015, section 4.1 and appendix A.1; the flow that Chen et al. 2018,
        section 5.1, compare with.

    Example:
        >>> flow = PlanarFlow(2, 8, generator=torch.Generator().manual_seed(0))
        >>> sum(p.numel() for p in flow.parameters())
        40
        >>> pushed = flow(torch.zeros(3, 2))
        >>> pushed.points.shape, pushed.log_det.shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    def __init__(
        self,
        dimension: int,
        layers: int,
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_type("generator", generator, torch.Generator)
        shape = check_count("layers", layers), check_count("dimension", dimension)
        self.u = nn.Parameter(0.1 * torch.randn(shape, generator=generator, dtype=dtype))
        self.w = nn.Parameter(0.5 * torch.randn(shape, generator=generator, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(layers, dtype=dtype))

    def forward(self, z: Tensor) -> Pushed:
        """Carry points of the normal density to the flow's."""
        self._check(z)
        moves, gains = self._invertible()
        log_det = z.new_zeros(z.shape[:-1])
        for move, gain, w, b in zip(moves, gains, self.w, self.b, strict=True):
            bend = torch.tanh(z @ w + b)
            z = z + bend.unsqueeze(-1) * move
            log_det = log_det + _log_stretch(gain, bend)
        return Pushed(z, log_det)

    def inverse(self, x: Tensor) -> Pushed:
        """Carry points back; the gradients are those of the exact inverse."""
        self._check(x)
        moves, gains = self._invertible()
        log_det = x.new_zeros(x.shape[:-1])
        for k in reversed(range(len(self.w))):
            s = solve_bent_line(x @ self.w[k] + self.b[k], gains[k] - 1)
            bend = torch.tanh(s)
            x = x - bend.unsqueeze(-1) * moves[k]
            log_det = log_det - _log_stretch(gains[k], bend)
        return Pushed(x, log_det)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the flow's density, by the inverse.

        Example:
            >>> flow = PlanarFlow(2, 3, generator=torch.Generator().manual_seed(0))
            >>> z = torch.tensor([0.5, -0.5])
            >>> x, log_det = flow(z)
            >>> bool(torch.isclose(flow.log_prob(x), -0.25 - math.log(2 * math.pi) - log_det))
            True
        """
        z, log_det = self.inverse(x)
        return _standard_normal(z) + log_det

    def sample_and_log_prob(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``n`` points and the logarithm of the density there, without any inverse.

        Both have gradients, so that a density can be matched with them.

        Args:
            n: number of points, at least 1.
            generator: draws the points before they are carried, on its own device.

        Returns:
            Tensors of shapes ``(n, d)`` and ``(n,)``.
        """
        check_count("n", n)
        check_type("generator", generator, torch.Generator)
        shape = n, self.w.shape[1]
        z = torch.randn(shape, generator=generator, device=generator.device, dtype=self.w.dtype)
        z = z.to(self.w.device)
        x, log_det = self(z)
        return x, _standard_normal(z) - log_det

    def _invertible(self) -> tuple[Tensor, Tensor]:
        """Return the directions of all layers, and 1 + c, which is positive."""
        inner = (self.w * self.u).sum(-1)
        gains = F.softplus(inner)
        along = (gains - 1 - inner) / self.w.square().sum(-1)
        return self.u + along.unsqueeze(-1) * self.w, gains

    def _check(self, x: Tensor) -> None:
        d = self.w.shape[-1]
        if x.shape[-1:] != (d,):
            raise ValueError(
                f"x: shape {tuple(x.shape)} is not allowed; its last axis must be of {d}"
            )


def solve_bent_line(y: Tensor, c: Tensor) -> Tensor:
    r"""Solve $s + c \tanh(s) = y$ for $s$, to the last digits, with $c > -1$.

    The left side increases and lies within $|c|$ of $s$, so that bisection finds the root between
    $y - |c|$ and $y + |c|$, whatever $c$ is. One step of Newton's method from there, in which $y$
    and $c$ alone have gradients, gives the derivatives that the implicit function theorem says.

    Args:
        y: right sides, any shape.
        c: above -1; broadcasts against ``y``.

    Shapes: that of ``y`` and ``c`` broadcast.

    Example:
        >>> s = torch.tensor([-2.0, 0.1], dtype=torch.float64)
        >>> torch.allclose(solve_bent_line(s + 3 * s.tanh(), torch.tensor(3.0)), s, atol=1e-14)
        True
    """
    with torch.no_grad():
        low, high = y - c.abs(), y + c.abs()
        for _ in range(_halvings(y.dtype)):
            middle = (low + high) / 2
            above = middle + c * torch.tanh(middle) > y
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        root = (low + high) / 2
        bend = torch.tanh(root)
        # The rate is positive; a c that is -1 but for its rounding must not divide by zero.
        rate = (1 + c * (1 - bend**2)).clamp_min(torch.finfo(bend.dtype).eps)
    return root - (root + c * bend - y) / rate


def _log_stretch(gain: Tensor, bend: Tensor) -> Tensor:
    """Return log(1 + c (1 - bend^2)), c = gain - 1, finite where c itself is rounded to -1."""
    return torch.log(gain * (1 - bend**2) + bend**2)


def _halvings(dtype: torch.dtype) -> int:
    """Return the number of halvings after which a bracket is as short as rounding errors are."""
    return 4 - round(math.log2(torch.finfo(dtype).eps))


def _standard_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))
