"""What the layers of a convolutional residual network are made of."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from companion.arguments import check_count
from companion.basis import Basis, Constant, PiecewiseConstant

__all__ = [
    "PostActivation",
    "basic_branch",
    "bottleneck_branch",
    "convolution",
    "full_precision",
    "layer_weights",
    "pre_activation",
]


def layer_weights(layers: int, method: str, tied: bool = False) -> Basis:
    r"""Return the basis that gives every layer its own parameters and its own running statistics.

    A layer is a step. Euler's and most other schemes read one set a step: $N$ sets. Heun's reads
    two, $\theta_n$ where the step starts and $\theta_{n+1}$ where it ends, and neighbours share:
    $N + 1$ sets. On the grid of $N$ steps the ends of step $n$ lie in the cells $n$ and $n + 1$ of
    $N + 1$ equal cells. So cells serve here as well, and the running statistics of a norm stay
    with the parameters they belong to. :class:`~companion.PiecewiseLinear` has the same
    parameters, but for a batch norm's, which it keeps with the statistics: one set a cell.

    Args:
        layers: number $N$ of layers.
        method: the scheme of the block.
        tied: one set for all layers.

    Raises:
        ValueError: for ``layers`` below 1.

    Source:
        Sander et al. 2022, Eqs. 1 and 8.

    Example:
        >>> layer_weights(4, "euler"), layer_weights(4, "heun")
        (PiecewiseConstant(cells=4), PiecewiseConstant(cells=5))
    """
    check_count("layers", layers)
    if tied:
        return Constant()
    return PiecewiseConstant(layers + 1 if method == "heun" else layers)


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    r"""Return a convolution without bias that keeps the size of an image, if not for its stride.

    Weights are drawn from $\mathcal N(0, 2/(\mathrm{outputs}\cdot\mathrm{size}^2))$.

    Source:
        He, Zhang, Ren and Sun 2015, Delving deep into rectifiers, Eq. 14.

    Example:
        >>> convolution(3, 8, 7, stride=2)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 8, 16, 16])
    """
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def basic_branch(inputs: int, width: int, stride: int = 1) -> nn.Sequential:
    """Return two 3 by 3 convolutions, each with a batch norm, and a ReLU in between.

    Shapes:
        ``(batch, inputs, h, w)`` to ``(batch, width, h / stride, w / stride)``.

    Source:
        He et al. 2015, Fig. 5, left.

    Example:
        >>> basic_branch(8, 16, stride=2)(torch.zeros(1, 8, 6, 6)).shape
        torch.Size([1, 16, 3, 3])
    """
    return _named(
        conv1=convolution(inputs, width, 3, stride),
        norm1=nn.BatchNorm2d(width),
        relu1=nn.ReLU(),
        conv2=convolution(width, width, 3),
        norm2=nn.BatchNorm2d(width),
    )


def bottleneck_branch(inputs: int, width: int, stride: int = 1) -> nn.Sequential:
    """Return a 3 by 3 convolution between two of 1 by 1; the last one has 4 times the width.

    Shapes:
        ``(batch, inputs, h, w)`` to ``(batch, 4 * width, h / stride, w / stride)``.

    Source:
        He et al. 2015, Fig. 5, right; the stride sits on the 3 by 3 convolution, as in torchvision.

    Example:
        >>> bottleneck_branch(8, 4, stride=2)(torch.zeros(1, 8, 6, 6)).shape
        torch.Size([1, 16, 3, 3])
    """
    return _named(
        conv1=convolution(inputs, width, 1),
        norm1=nn.BatchNorm2d(width),
        relu1=nn.ReLU(),
        conv2=convolution(width, width, 3, stride),
        norm2=nn.BatchNorm2d(width),
        relu2=nn.ReLU(),
        conv3=convolution(width, 4 * width, 1),
        norm3=nn.BatchNorm2d(4 * width),
    )


def pre_activation(branch: nn.Sequential) -> nn.Sequential:
    r"""Return the residual $f(x) = F(\mathrm{relu}(x))$ that starts at zero.

    The sum $x + f(x)$ is not passed through a ReLU, so a step can be undone. The weights of the
    last norm are zero: the layer starts as the identity, and still learns. (With the norms *before*
    the ReLUs, as in He et al. 2016, zeros in the last norm would be followed by a ReLU, which
    passes no gradient at zero: such a layer never learns anything.)

    Args:
        branch: $F$, which ends in a norm; its last norm is changed in place.

    Source:
        Sander et al. 2022, appendix C and section 5.2.

    Example:
        >>> pre_activation(basic_branch(4, 4))(torch.randn(2, 4, 3, 3)).abs().max().item()
        0.0
    """
    _silence(branch)
    return _named(relu0=nn.ReLU(), **dict(branch.named_children()))


class PostActivation(nn.Module):
    r"""The residual $f(x) = \mathrm{relu}(x + F(x)) - x$, which starts at zero where $x \ge 0$.

    One step $x + f(x)$ is the layer of the first residual networks. It loses the negative part of
    the sum and cannot be undone.

    Args:
        branch: $F$, which ends in a norm; its last norm is changed in place.

    Source:
        He et al. 2015, Eq. 1 and Fig. 2.

    Example:
        >>> layer = PostActivation(basic_branch(4, 4))
        >>> layer(torch.rand(2, 4, 3, 3)).abs().max().item()
        0.0
    """

    def __init__(self, branch: nn.Sequential) -> None:
        super().__init__()
        _silence(branch)
        for name, module in branch.named_children():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer adds to ``x``."""
        y = x
        for module in self.children():
            y = module(y)
        return torch.relu(x + y) - x


def full_precision(x: Tensor, block: nn.Module) -> Tensor:
    """Return a state in the dtype of a block's parameters.

    Under autocast a stem hands on half precision, in which a deep network's small steps are lost.
    The block keeps the state as it gets it; its convolutions stay in half precision.

    Example:
        >>> full_precision(torch.zeros(2, dtype=torch.bfloat16), nn.Linear(2, 2)).dtype
        torch.float32
    """
    return x.to(next(block.parameters()).dtype)


def _silence(branch: nn.Sequential) -> None:
    last = branch[-1]
    assert isinstance(last, nn.BatchNorm2d)
    nn.init.zeros_(last.weight)


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))
