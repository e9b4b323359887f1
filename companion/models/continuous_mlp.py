"""A small classifier whose middle is continuous in depth: the perceptron of the digits studies."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from companion.arguments import check_count
from companion.basis import Basis, PiecewiseConstant
from companion.block import OdeBlock
from companion.gradients import Gradient
from companion.models.graphs import ContinuousModel
from companion.models.residual_mlp import residual
from companion.models.skip_init import SkipInit

__all__ = ["ContinuousMLP"]


class ContinuousMLP(ContinuousModel):
    r"""Linear stem, one block that is continuous in depth, linear head.

    $$\dot x = \varepsilon\, s(t)\, \bigl(V(t)\, \mathrm{relu}(W(t)\, x + b(t)) + c(t)\bigr),
    \qquad t \in [0, 1],$$

    with $s = 1$, or with ``skip_init`` a learnt scalar that starts at 0. All of $s, V, W, b, c$ are
    functions of depth in ``basis``; ``method`` and ``steps`` choose the graph. The
    initial weights are those of :class:`~companion.models.ResidualMLP`: one draw a coefficient.

    Args:
        inputs: size of a sample.
        classes: size of the output.
        width: size of the state.
        hidden: size inside the residual.
        basis: how parameters vary with depth.
        method: the scheme of the block.
        steps: equal steps of the block.
        scale: the factor $\varepsilon$ of the residual.
        skip_init: multiply the residual by a learnt scalar, so that the block starts as identity.
        gradient: how the block is differentiated.

    Attributes:
        arguments: the arguments that made this net, by name.
        stem: from the sample to the first state.
        block: the block.
        head: from the last state to the logits.

    Shapes:
        ``(batch, inputs)`` to ``(batch, classes)``.

    Raises:
        ValueError: for a size that is no integer of at least 1, or a value that
            :class:`~companion.block.OdeBlock` refuses.

    Source:
        Queiruga et al. 2020, sections 4 and 5 (the block); the perceptron and its sizes are ours.

    Example:
        >>> import torch
        >>> net = ContinuousMLP(64, 10, method="rk4", steps=4, basis=PiecewiseConstant(4))
        >>> net(torch.zeros(3, 64)).shape
        torch.Size([3, 10])
        >>> net.with_graph(method="euler", steps=16).block.weights is net.block.weights
        True
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        width: int = 16,
        hidden: int = 32,
        basis: Basis = PiecewiseConstant(8),  # noqa: B008 - frozen
        method: str = "euler",
        steps: int = 8,
        scale: float = 1.0,
        skip_init: bool = False,
        gradient: str | Gradient = "backprop",
    ) -> None:
        super().__init__()
        sizes = {"inputs": inputs, "classes": classes, "width": width, "hidden": hidden}
        for name, value in sizes.items():
            check_count(name, value)
        self.arguments: dict[str, Any] = {
            **sizes, "basis": basis, "method": method, "steps": steps, "scale": scale,
            "skip_init": skip_init, "gradient": gradient,
        }  # fmt: skip

        def layer() -> nn.Module:
            return SkipInit(residual(width, hidden)) if skip_init else residual(width, hidden)

        self.stem = nn.Linear(inputs, width)
        self.block = OdeBlock(layer, basis, method, steps, gradient, scale)
        self.head = nn.Linear(width, classes)

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.stem(x)))
        return logits
