"""The networks that this chapter compares: one shell, and what stands in the middle of it."""

from collections.abc import Callable

from torch import nn

from companion.block import OdeBlock
from companion.counts import counting
from companion.observe import saved_bytes

ODES = tuple(
    f"{method}_{gradient}"
    for method in ("rk4", "dopri5")
    for gradient in ("backprop", "checkpoint", "adjoint")
)
"""One equation in the middle, named after its method and its gradient: ``rk4_backprop`` is the
RK-Net of Chen et al. 2018, ``dopri5_adjoint`` their ODE-Net."""

NETS = ("control", "resnet", *ODES)
"""Nothing in the middle, layers, an equation."""


def middle(
    name: str,
    field: Callable[[], nn.Module],
    layers: Callable[[], nn.Module],
    *,
    steps: int,
    tolerance: float,
) -> nn.Module:
    """Return what stands in the middle of a network.

    Args:
        name: one of :data:`NETS`.
        field: makes the field of an equation.
        layers: makes the layers of the ResNet.
        steps: steps of rk4.
        tolerance: relative and absolute tolerance of dopri5.

    Raises:
        ValueError: for another name.
    """
    if name not in NETS:
        raise ValueError(f"nets: {name!r} is not allowed; use some of {', '.join(NETS)}")
    if name == "control":
        return nn.Identity()
    if name == "resnet":
        return layers()
    method, gradient = name.split("_")
    if method == "rk4":
        return OdeBlock(field(), method=method, steps=steps, gradient=gradient, time=True)
    return OdeBlock(
        field(), method=method, rtol=tolerance, atol=tolerance, gradient=gradient, time=True
    )


def step_costs(net: nn.Module, loss: Callable[[nn.Module], object]) -> dict[str, float]:
    """Return what a step of training costs: evaluations of the field, and bytes that wait.

    Args:
        net: the network.
        loss: returns the loss of a batch, a scalar tensor.

    Returns:
        ``forward`` and ``backward`` evaluations, and the megabytes that autograd keeps between the
        two passes, ``kept``, without the parameters.
    """
    with counting() as stats, saved_bytes(exclude=net.parameters()) as saved:
        value = loss(net)
    value.backward()  # type: ignore[attr-defined]
    net.zero_grad()
    return {"forward": stats.nfe, "backward": stats.nfe_backward, "kept": saved.total / 1e6}
