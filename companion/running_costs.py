r"""Costs of a whole trajectory, integrated with the state.

A running cost $c$ turns a solve of $\dot x = f(t, x)$ into one of a longer state,

$$\dot x = f(t, x), \qquad \dot C = c(t, x, f, \partial_x f), \qquad C(t_0) = 0,$$

so that $C(t) = \int_{t_0}^t c\,ds$ comes with the state, with any method and any gradient. A loss
may add it to what it asks of the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from companion.ode import odeint

__all__ = [
    "Cost",
    "Moment",
    "estimated_jacobian_norm",
    "fitting",
    "jacobian_norm",
    "jacobian_rows",
    "kinetic_energy",
    "random_signs",
    "solve_with_costs",
]


class Moment(NamedTuple):
    """What a running cost can see of a trajectory at one time.

    Attributes:
        t: the time, a tensor without axes.
        y: the state, shape ``(batch, ...)``.
        velocity: the field there, shaped like ``y``.
        pull: takes a tensor shaped like ``y`` to its product with the field's Jacobian from the
            left, row by row.
    """

    t: Tensor
    y: Tensor
    velocity: Tensor
    pull: Callable[[Tensor], Tensor]


Cost = Callable[[Moment], Tensor]
"""A running cost: one number for each row of the state, shape ``(batch,)``."""


def solve_with_costs(
    func: Callable[[Tensor, Any], Any],
    y0: Tensor,
    t: Tensor | Iterable[float],
    costs: Mapping[str, Cost],
    **knobs: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Solve $\dot y = f(t, y)$ and integrate running costs along the way.

    An adaptive method controls the error of the integrals as well as that of the state, so it may
    take more steps than without them.

    Args:
        func: as for :func:`companion.odeint`, a function or a module of ``t`` and a batch of
            states; rows must not depend on each other.
        y0: the states at ``t[0]``, shape ``(batch, ...)``.
        t: times, as for :func:`companion.odeint`.
        costs: running costs, each a function or a module of a :class:`Moment` that returns a number
            a row. Name with ``params=(...)`` what a function needs a gradient for, as for ``func``.
        **knobs: the other arguments of :func:`companion.odeint`, but for ``event_fn``, ``dense``
            and ``per_sample``.

    Returns:
        The states at all times, shape ``(len(t), batch, ...)``, and for each cost its integral from
        ``t[0]`` to each of the times, shape ``(len(t), batch)``.

    Raises:
        TypeError: ``y0`` or the field's value is no tensor, ``costs`` is no mapping, or a cost
            cannot be called.
        ValueError: ``y0`` has no axis of rows, there are no costs, one has another shape than
            ``(batch,)``, or an argument that does not go with costs; besides what
            :func:`companion.odeint` raises.

    Source:
        Chen et al. 2018, section 4 (a state that carries an integral); Finlay et al. 2020.

    Example:
        >>> x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
        >>> ends, paid = solve_with_costs(
        ...     lambda t, x: -x, x, [0.0, 1.0], {"kinetic": kinetic_energy}
        ... )
        >>> paid["kinetic"][-1]  # (1 - exp(-2)) / 2, and four times as much
        tensor([0.4323, 1.7293], dtype=torch.float64)
    """
    if not isinstance(y0, Tensor):
        raise TypeError(f"y0: {type(y0).__name__} is not allowed; pass a tensor (batch, ...)")
    if y0.ndim < 2:
        raise ValueError(
            f"y0: shape {tuple(y0.shape)} is not allowed; it must be (batch, ...), a row a sample"
        )
    if not isinstance(costs, Mapping):
        raise TypeError(
            f"costs: {type(costs).__name__} is not allowed; pass a mapping from names to functions "
            'of a Moment, such as {"energy": kinetic_energy}'
        )
    if not costs:
        raise ValueError("costs: an empty mapping is not allowed; name at least one running cost")
    for name, cost in costs.items():
        if not callable(cost):
            raise TypeError(f"costs: {name!r} is {cost!r}; it must be a function of a Moment")
    for name in ("event_fn", "dense", "per_sample"):
        if knobs.get(name):
            raise ValueError(
                f"{name}: {knobs[name]!r} is not allowed with running costs; leave it out"
            )
    if torch.is_inference_mode_enabled():
        # No graph can be made there, not even the one that a Jacobian needs.
        with torch.inference_mode(mode=False), torch.no_grad():
            times = t.clone() if isinstance(t, Tensor) else t
            return solve_with_costs(func, y0.clone(), times, costs, **knobs)
    state = (y0, *(y0.new_zeros(len(y0)) for _ in costs))
    ys, *integrals = odeint(_WithCosts(func, costs), state, t, **knobs)
    return ys, dict(zip(costs, integrals, strict=True))


def kinetic_energy(at: Moment) -> Tensor:
    r"""Return $\lVert f\rVert^2$, whose integral is least where points move straight and evenly.

    Shapes: ``(batch,)``.

    Source:
        Finlay et al. 2020.

    Example:
        >>> x = torch.ones(1, 3)
        >>> kinetic_energy(Moment(torch.tensor(0.0), x, 2 * x, lambda v: 2 * v))
        tensor([12.])
    """
    return at.velocity.flatten(1).square().sum(1)


def jacobian_norm(at: Moment) -> Tensor:
    r"""Return $\lVert\partial_x f\rVert_F^2$, exactly, by one product for each coordinate of a row.

    Shapes: ``(batch,)``.

    Example:
        >>> x = torch.ones(2, 3)
        >>> jacobian_norm(Moment(torch.tensor(0.0), x, 2 * x, lambda v: 2 * v))
        tensor([12., 12.])
    """
    total = at.y.new_zeros(len(at.y))
    for row in jacobian_rows(at):
        total = total + row.square().sum(1)
    return total


def jacobian_rows(at: Moment) -> Iterator[Tensor]:
    r"""Yield the rows of the Jacobian $\partial_x f$, one product each, for every row of the state.

    Shapes: ``(batch, dim)`` each, with as many as a row of the state has coordinates.

    Example:
        >>> x = torch.ones(1, 2)
        >>> list(jacobian_rows(Moment(torch.tensor(0.0), x, 2 * x, lambda v: 2 * v)))
        [tensor([[2., 0.]]), tensor([[0., 2.]])]
    """
    flat = at.y.flatten(1)
    for k in range(flat.shape[1]):
        unit = torch.zeros_like(flat)
        unit[:, k] = 1
        yield at.pull(unit.reshape(at.y.shape)).flatten(1)


def estimated_jacobian_norm(probe: Tensor) -> Cost:
    r"""Return the cost $\lVert\epsilon^\top\partial_x f\rVert^2$, an estimate by one product.

    Its mean over probes $\epsilon$ with independent entries of mean 0 and variance 1 is
    $\lVert\partial_x f\rVert_F^2$. Draw a probe for every solve and keep it through the solve: with
    one that changes from evaluation to evaluation, the cost would be no function of time.

    Args:
        probe: shaped like the state, say from :func:`random_signs`.

    Raises:
        ValueError: when the solve begins, if the probe and the state differ in shape.

    Source:
        Finlay et al. 2020, after Hutchinson 1990.

    Example:
        >>> x = torch.ones(1, 3)
        >>> cost = estimated_jacobian_norm(random_signs(x, torch.Generator().manual_seed(0)))
        >>> cost(Moment(torch.tensor(0.0), x, 2 * x, lambda v: 2 * v))
        tensor([12.])
    """

    def cost(at: Moment) -> Tensor:
        return at.pull(fitting(probe, at)).flatten(1).square().sum(1)

    return cost


def fitting(probe: Tensor, at: Moment) -> Tensor:
    """Return a probe in the dtype of the state, or say that it does not fit.

    Raises:
        ValueError: for a probe of another shape.

    Example:
        >>> x = torch.ones(1, 2, dtype=torch.float64)
        >>> fitting(torch.ones(1, 2), Moment(torch.tensor(0.0), x, x, lambda v: v)).dtype
        torch.float64
    """
    if probe.shape != at.y.shape:
        raise ValueError(
            f"probe: shape {tuple(probe.shape)} is not allowed; the state has the shape "
            f"{tuple(at.y.shape)}"
        )
    return probe.to(at.y)


def random_signs(y: Tensor, generator: torch.Generator) -> Tensor:
    """Return independent entries 1 and -1, shaped like ``y``: the probe of least variance.

    Raises:
        TypeError: ``y`` holds whole numbers or truth values.

    Example:
        >>> random_signs(torch.zeros(2, 3), torch.Generator().manual_seed(0)).abs().sum()
        tensor(6.)
    """
    if not y.is_floating_point():
        raise TypeError(f"y: {y.dtype} is not allowed; it must be a tensor of a floating dtype")
    drawn = torch.randint(2, y.shape, generator=generator, device=generator.device)
    return (2 * drawn - 1).to(y)


class _WithCosts(nn.Module):
    """The field of the state and the integrals."""

    def __init__(self, func: Callable[..., Any], costs: Mapping[str, Cost]) -> None:
        super().__init__()
        self.func, self.costs = func, dict(costs)  # a module's parameters are found
        self.own = nn.ModuleList(c for c in costs.values() if isinstance(c, nn.Module))

    def forward(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # The velocity needs a graph even where none is kept: a cost may ask for its Jacobian.
        # torch.func.vjp would make one, but not under the saved-tensor hooks of a first evaluation.
        wanted, known = torch.is_grad_enabled(), state[0].requires_grad
        with torch.enable_grad():
            y = state[0] if wanted and known else state[0].detach().requires_grad_()
            velocity = _velocity(self.func(t, y))
            keep = wanted and (known or _reaches_more(velocity, y))

            def pull(v: Tensor) -> Tensor:
                return _pulled(velocity, y, v, keep)

            at = Moment(t, y, velocity, pull)
            values = [_checked(name, cost(at), len(y)) for name, cost in self.costs.items()]
        found = (velocity if keep else velocity.detach(), *values)
        return tuple(x if wanted and (keep or _reaches_more(x, y)) else x.detach() for x in found)


def _reaches_more(value: Tensor, y: Tensor) -> bool:
    """Whether a value's graph has a leaf besides the state that was made a leaf to see it."""
    if value is y or not value.requires_grad:
        return False
    if value.grad_fn is None:
        return True
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        below = [n for n, _ in node.next_functions if n is not None and n not in seen]
        if not node.next_functions and getattr(node, "variable", None) is not y:
            return True
        seen.update(below)
        waiting += below
    return False


def _velocity(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"func: it returned {type(value).__name__}; with running costs it must return a "
            "tensor, shaped like the state"
        )
    return value


def _pulled(velocity: Tensor, y: Tensor, v: Tensor, keep: bool) -> Tensor:
    """Return the product of ``v`` with the Jacobian from the left; zero if there is no graph."""
    if not velocity.requires_grad:
        return torch.zeros_like(y)
    (found,) = torch.autograd.grad(
        velocity, y, v, create_graph=keep, retain_graph=True, allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip
    return found


def _checked(name: str, value: Any, rows: int) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != (rows,):
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"costs: {name!r} returned {found}; it must return a tensor of shape ({rows},), a "
            "number for each row"
        )
    return value
