"""A residual network of small perceptrons, tied or untied, with or without the 1/N factor."""

import torch
from torch import Tensor, nn

from companion.basis import Constant, PiecewiseConstant
from companion.block import OdeBlock


class ResidualMLP(nn.Module):
    r"""Linear stem, ``layers`` residual layers of one width, linear head.

    $$x_{n+1} = x_n + s\,\bigl(V_n\,\mathrm{relu}(W_n x_n + b_n) + c_n\bigr),$$

    with $s = 1/N$ if scaled and $s = 1$ if not.

    The layers are an Euler :class:`~companion.block.OdeBlock` with $N$ steps.

    Args:
        inputs: size of a sample.
        classes: size of the output.
        width: size of the state.
        hidden: size inside a layer.
        layers: number of layers $N$.
        tied: all layers share one set of weights, instead of one set each.
        scaled: use the factor $1/N$.

    Shapes:
        ``(batch, inputs)`` to ``(batch, classes)``.

    Source:
        Sander et al. 2022, Eq. 1 and Fig. 3a (the rule); the sizes are ours.

    Example:
        >>> net = ResidualMLP(64, 10, width=8, hidden=16, layers=4, tied=True, scaled=True)
        >>> net(torch.zeros(3, 64)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        width: int,
        hidden: int,
        layers: int,
        tied: bool,
        scaled: bool,
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.block = OdeBlock(
            lambda: residual(width, hidden),
            weights=Constant() if tied else PiecewiseConstant(cells=layers),
            method="euler",
            steps=layers,
            scale=1.0 if scaled else float(layers),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.block(self.stem(x)))
        return logits


def residual(width: int, hidden: int) -> nn.Sequential:
    r"""Return the perceptron of one layer.

    Weights are drawn from $\mathcal N(0, 2/\mathrm{width})$ and
    $\mathcal N(0, 1/\mathrm{hidden})$; biases are zero.

    Example:
        >>> residual(8, 16)(torch.zeros(2, 8)).abs().max().item()
        0.0
    """
    first, second = nn.Linear(width, hidden), nn.Linear(hidden, width)
    with torch.no_grad():
        first.weight.normal_(0, (2 / width) ** 0.5)
        second.weight.normal_(0, (1 / hidden) ** 0.5)
        first.bias.zero_()
        second.bias.zero_()
    return nn.Sequential(first, nn.ReLU(), second)
