"""Training of one-step nets on the pendulum."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from companion.models import OneStepNet
from companion.schemes import get_scheme
from companion.train import cosine

__all__ = ["Pairs", "fit_closely", "one_step_errors", "rms_error", "train_nets"]

Pairs = tuple[Tensor, Tensor]
"""States, and the states one step later."""


def train_nets(
    method: str, step: float, data: Pairs, seeds: Sequence[int], *, adam: int, lbfgs: int
) -> list[OneStepNet]:
    r"""Train one net from each seed on pairs of states one ``step`` apart, all on the same pairs.

    Full-batch Adam, its rate falling from 1e-2 to 1e-5 along a cosine, then L-BFGS. Adam trains
    all nets at once: the loss is the sum of theirs, and no entry of its update depends on another
    net. L-BFGS has a line search, so it trains them one by one. The numbers of steps are ``adam``
    and at most ``lbfgs``.
    """
    nets = [
        OneStepNet(method, step=step, generator=torch.Generator().manual_seed(seed)).to(data[0])
        for seed in seeds
    ]
    _adam(nets, data, adam)
    for net in nets:
        _lbfgs(net, data, lbfgs)
    return nets


def one_step_errors(net: OneStepNet, data: Pairs) -> Tensor:
    r"""Return the squared one-step errors $\lVert F(x_k) - x_{k+1} \rVert^2$, one for each pair."""
    now, later = data
    errors: Tensor = (net(now) - later).square().sum(-1)
    return errors


@torch.no_grad()
def rms_error(net: OneStepNet, data: Pairs) -> float:
    """Return the root mean squared error of one step."""
    return float(one_step_errors(net, data).mean().sqrt())


def _adam(nets: Sequence[OneStepNet], data: Pairs, steps: int) -> None:
    stack = _stacked(nets)
    now = data[0].expand(len(nets), *data[0].shape)
    optimiser = torch.optim.Adam(stack.parameters(), lr=1e-2, fused=True)
    for n in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-5 + (1e-2 - 1e-5) * cosine(n / steps)
        optimiser.zero_grad()
        loss = one_step_errors(stack, (now, data[1])).mean(-1).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        for k, net in enumerate(nets):
            for own, stacked in zip(net.parameters(), stack.parameters(), strict=True):
                own.copy_(stacked[k].reshape(own.shape))


def _stacked(nets: Sequence[OneStepNet]) -> OneStepNet:
    """Return one net that computes all of them side by side, on states with an axis of nets."""
    stack = copy.deepcopy(nets[0])
    for name, _ in nets[0].field.named_parameters():
        values = torch.stack([net.field.get_parameter(name).detach() for net in nets])
        if name == "shift":  # the same for all points of a net
            values = values.unsqueeze(1)
        stack.field.register_parameter(name, nn.Parameter(values))
    return stack


def _lbfgs(net: OneStepNet, data: Pairs, steps: int) -> None:
    optimiser = torch.optim.LBFGS(
        net.parameters(), max_iter=steps, history_size=50, line_search_fn="strong_wolfe",
        tolerance_grad=1e-14, tolerance_change=1e-18,
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = one_step_errors(net, data).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]


def fit_closely(net: OneStepNet, data: Pairs, steps: int) -> float:
    r"""Train a net of an explicit scheme by damped Gauss-Newton steps; return the final error.

    The method of Levenberg and Marquardt on the residuals $(F(x_k) - x_{k+1})/\Delta t$: with few
    parameters it comes far closer to a perfect fit than gradient descent. Every step solves the
    normal equations; the damping falls after a step that lowers the sum of squares and grows after
    one that is refused. The error is the root mean square of the residuals' norms.
    """
    now, later = data
    scheme = get_scheme(net.method)
    names, shapes = zip(*((n, p.shape) for n, p in net.field.named_parameters()), strict=True)
    sizes = [shape.numel() for shape in shapes]

    def residual(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        split = zip(names, shapes, torch.split(flat, sizes), strict=True)
        values = {name: part.reshape(shape) for name, shape, part in split}

        def field(i: int, x: Tensor) -> Tensor:
            value: Tensor = torch.func.functional_call(net.field, values, (x,))
            return value

        return scheme.increment(field, x, net.step) / net.step - (y - x) / net.step

    jacobian = torch.func.vmap(torch.func.jacrev(residual), in_dims=(None, 0, 0))
    flat = torch.cat([p.detach().reshape(-1) for p in net.field.parameters()])
    damping = 1e-2
    with torch.no_grad():
        r = residual(flat, now, later)
        fresh = True
        for _ in range(steps):
            if fresh:
                rows = jacobian(flat, now, later).reshape(-1, len(flat))
                normal, slope = rows.mT @ rows, rows.mT @ r.reshape(-1)
            damped = normal + damping * torch.diag(normal.diagonal() + 1e-12)
            moved = flat - torch.linalg.solve(damped, slope)
            trial = residual(moved, now, later)
            fresh = bool(trial.square().sum() < r.square().sum())
            if fresh:
                flat, r = moved, trial
            damping *= 0.3 if fresh else 4.0
        for own, part in zip(net.field.parameters(), torch.split(flat, sizes), strict=True):
            own.copy_(part.reshape(own.shape))
    return float(r.square().sum(-1).mean().sqrt())
