"""What the adjoint experiments share: a random smooth field and a distance between gradients."""

import torch
from torch import Tensor, nn


class TanhField(nn.Module):
    r"""A time-dependent field with one hidden layer and random weights.

    $$f(t, x) = V \tanh(W x + u t + b)$$

    Entries are standard normal, $W$ divided by $\sqrt{\mathrm{dim}}$ and $V$ by
    $\sqrt{\mathrm{hidden}}$, by a generator on the CPU. Shapes: ``(..., dim)`` to ``(..., dim)``.

    Example:
        >>> field = TanhField(2, 8, torch.Generator().manual_seed(0))
        >>> field(torch.tensor(0.5), torch.zeros(5, 2, dtype=torch.float64)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()

        def draw(*shape: int, scale: float = 1.0) -> nn.Parameter:
            values = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
            return nn.Parameter(values.to(device, dtype))

        self.inner = draw(hidden, dim, scale=dim**-0.5)
        self.time = draw(hidden)
        self.bias = draw(hidden)
        self.outer = draw(dim, hidden, scale=hidden**-0.5)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate the field."""
        hidden = torch.tanh(x @ self.inner.T + self.time * t + self.bias)
        return hidden @ self.outer.T


def relative_error(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    r"""Return $\|g - w\| / \|w\|$ for gradients of several tensors taken as one vector.

    Example:
        >>> relative_error((torch.ones(2),), (torch.full((2,), 2.0),))
        0.5
    """
    g, w = (torch.cat([x.reshape(-1) for x in parts]) for parts in (got, wanted))
    return float(torch.linalg.vector_norm(g - w) / torch.linalg.vector_norm(w))
