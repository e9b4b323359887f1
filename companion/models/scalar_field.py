"""Small perceptrons from the line to the line, several side by side."""

import torch
from torch import Tensor, nn


class ScalarField(nn.Module):
    r"""Independent fields on the line, one a column of the state.

    $$f_c(x) = \sum_{j=1}^{H} v_{cj} \tanh(w_{cj} x + b_{cj})$$

    The columns share nothing. Training them together costs little more than training one, so an
    experiment gets its spread over random starts almost for free.

    Args:
        copies: number of columns.
        hidden: number $H$ of hidden units.
        std: standard deviation of all initial values.
        generator: draws the initial values, on the CPU.

    Shapes:
        ``(points, copies)`` to the same.

    Example:
        >>> field = ScalarField(3, 8, std=1.0, generator=torch.Generator().manual_seed(0))
        >>> field(torch.zeros(21, 3, dtype=torch.float64)).shape
        torch.Size([21, 3])
    """

    def __init__(self, copies: int, hidden: int, std: float, generator: torch.Generator) -> None:
        super().__init__()

        def draw() -> nn.Parameter:
            values = torch.randn(copies, hidden, generator=generator, dtype=torch.float64)
            return nn.Parameter(std * values)

        self.inner, self.shift, self.outer = draw(), draw(), draw()

    def forward(self, x: Tensor) -> Tensor:
        """Return the velocity of every point in every column."""
        units = torch.tanh(x.unsqueeze(-1) * self.inner + self.shift)
        return (units * self.outer).sum(-1)
