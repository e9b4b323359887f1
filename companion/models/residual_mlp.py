"""A residual network of small perceptrons, tied or untied, with or without the 1/N factor."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from companion.arguments import check_count
from companion.block import OdeBlock
from companion.gradients import Gradient
from companion.models.layers import layer_weights


class ResidualMLP(nn.Module):
    r"""Linear stem, ``layers`` residual layers of one width, linear head.

    $$x_{n+1} = x_n + s\,\bigl(V_n\,\mathrm{relu}(W_n x_n + b_n) + c_n\bigr),$$

    with $s = 1/N$ if scaled and $s = 1$ if not.

    The layers are an :class:`~companion.block.OdeBlock` with $N$ steps, Euler's unless ``method``
    says otherwise; :func:`~companion.models.layer_weights` gives untied layers their weights.

    Args:
        inputs: size of a sample.
        classes: size of the output.
        width: size of the state.
        hidden: size inside a layer.
        layers: number of layers $N$.
        tied: all layers share one set of weights, instead of one set each.
        scaled: use the factor $1/N$.
        gain: factor on the initial weights of the layers.
        method: the scheme of the block.
        gradient: how the block is differentiated.

    Shapes:
        ``(batch, inputs)`` to ``(batch, classes)``.

    Raises:
        ValueError: for a size, or a number of layers, that is no integer of at least 1.

    Source:
        Sander et al. 2022, Eq. 1, 8 and Fig. 3a (the rules); the sizes are ours.

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
        gain: float = 1.0,
        method: str = "euler",
        gradient: str | Gradient = "backprop",
    ) -> None:
        super().__init__()
        sizes = {"inputs": inputs, "classes": classes, "width": width, "hidden": hidden}
        for name, value in sizes.items():
            check_count(name, value)
        self.stem = nn.Linear(inputs, width)
        self.block = OdeBlock(
            lambda: residual(width, hidden, gain),
            basis=layer_weights(layers, method, tied),
            method=method,
            steps=layers,
            gradient=gradient,
            scale=1.0 if scaled else float(layers),
        )
        self.head = nn.Linear(width, classes)

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.stem(x)))
        return logits


def residual(width: int, hidden: int, gain: float = 1.0) -> nn.Sequential:
    r"""Return the perceptron of one layer.

    Weights are drawn from $\mathcal N(0, 2/\mathrm{width})$ and
    $\mathcal N(0, 1/\mathrm{hidden})$, times ``gain``; biases are zero.

    Example:
        >>> residual(8, 16)(torch.zeros(2, 8)).abs().max().item()
        0.0
    """
    first, second = nn.Linear(width, hidden), nn.Linear(hidden, width)
    with torch.no_grad():
        first.weight.normal_(0, gain * (2 / width) ** 0.5)
        second.weight.normal_(0, gain * (1 / hidden) ** 0.5)
        first.bias.zero_()
        second.bias.zero_()
    return nn.Sequential(first, nn.ReLU(), second)
