"""The field that flow matching looks for, exactly, when the data are finitely many points."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from companion.arguments import check_type
from companion.models.interpolants import Coefficients, Interpolant

__all__ = ["MarginalField"]


class MarginalField(nn.Module):
    r"""The mean velocity $u_t$ of paths from normal noise to given points, drawn independently.

    Given that a path is at $x$, it leads to the data point $x_i$ with the probability

    $$w_i = \operatorname{softmax}_i\Bigl(-\frac{|x - \alpha_t x_i|^2}{2\sigma_t^2}\Bigr), \qquad
    u_t(x) = \dot\alpha_t\,\bar x + \frac{\dot\sigma_t}{\sigma_t}\,(x - \alpha_t \bar x), \quad
    \bar x = \sum_i w_i x_i.$$

    On the linear path $u_t(x) = (\bar x - x)/(1 - t)$. This field is the exact minimum of the loss
    of flow matching, and almost all of its trajectories end on a data point: it memorises. A call
    takes memory for the differences of all rows and all points.

    Args:
        data: the points, shape ``(n, ...)``; kept as a buffer.
        path: from noise to data.

    Shapes:
        ``field(t, x)`` maps ``(batch, ...)`` to the same, with one time or one for each row.

    Raises:
        TypeError: for data that are no tensor or a path of another type.
        ValueError: no data; later, points of another shape, or a time with $\sigma_t = 0$, such as
            the end of the path, where the field is not defined.

    Source:
        The mean of Lipman et al. 2023, equation 8, over a finite set.

    Example:
        >>> from companion.models.interpolants import linear
        >>> field = MarginalField(torch.tensor([[-1.0], [1.0]]), linear())
        >>> field(0.0, torch.tensor([[3.0]])), field(0.5, torch.tensor([[9.0]]))
        (tensor([[-3.]]), tensor([[-16.]]))
    """

    data: Tensor

    def __init__(self, data: Tensor, path: Interpolant) -> None:
        super().__init__()
        check_type("data", data, Tensor)
        check_type("path", path, Interpolant)
        if data.ndim < 2 or not len(data):
            raise ValueError(
                f"data: shape {tuple(data.shape)} is not allowed; it must be (n, ...) with n of at "
                "least 1"
            )
        self.register_buffer("data", data)
        self.path = path

    def forward(self, t: float | Tensor, x: Tensor) -> Tensor:
        """Return the mean velocity at ``x``."""
        at = self._coefficients(t, x)
        mean = (self._weights(at, x) @ self.data.flatten(1)).view_as(x)
        return at.alpha_rate * mean + at.sigma_rate / at.sigma * (x - at.alpha * mean)

    def weights(self, t: float | Tensor, x: Tensor) -> Tensor:
        r"""Return the probability $w_i$ of each data point, shape ``(batch, n)``.

        Example:
            >>> from companion.models.interpolants import linear
            >>> field = MarginalField(torch.tensor([[-1.0], [1.0]]), linear())
            >>> field.weights(0.0, torch.tensor([[3.0]]))
            tensor([[0.5000, 0.5000]])
        """
        return self._weights(self._coefficients(t, x), x)

    def _coefficients(self, t: float | Tensor, x: Tensor) -> Coefficients:
        if x.shape[1:] != self.data.shape[1:]:
            raise ValueError(
                f"x: shape {tuple(x.shape)} is not allowed; points are {tuple(self.data.shape[1:])}"
            )
        at = self.path.coefficients(t, x)
        if not bool((at.sigma > 0).all()):
            raise ValueError(f"t: {t!r} is not allowed; the field is defined where sigma > 0")
        return at

    def _weights(self, at: Coefficients, x: Tensor) -> Tensor:
        # Not by cdist: under vmap, which traces use, its gradient is wrong in torch 2.13.
        alpha, sigma = (
            value.unsqueeze(1) if value.ndim else value for value in (at.alpha, at.sigma)
        )
        off = (x.unsqueeze(1) - alpha * self.data) / sigma
        return torch.softmax(-0.5 * off.square().flatten(2).sum(2), dim=1)
