"""Continuous normalising flows: a density carried by a field, as a distribution of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from typing_extensions import override

from companion.arguments import check_number, check_type, not_allowed
from companion.counts import counting
from companion.gradients import Backprop, get_gradient
from companion.methods import get_solver, takes
from companion.models.row_check import check_rows
from companion.models.traces import KnowsTrace, exact_trace, hutchinson_trace
from companion.ode import odeint
from companion.running_costs import Cost, Moment, solve_with_costs
from companion.schemes import SCHEMES
from companion.transforms import beneath, followed

__all__ = ["CNF", "Carried"]

Field = Callable[[Tensor, Tensor], Tensor]
SOLVER = ("method", "steps", "rtol", "atol", "max_steps")
"""The knobs that are checked when a flow is made; the others are when it is solved."""


class Carried(NamedTuple):
    r"""Points carried along a flow.

    Attributes:
        points: where they arrive, shaped like the points that were given.
        log_det: $\log|\det\partial(\text{arrival})/\partial(\text{start})|$, one for each point.
        costs: the integral of each running cost, likewise; positive in both directions for a
            positive cost.
    """

    points: Tensor
    log_det: Tensor
    costs: dict[str, Tensor]


class CNF(Distribution):
    r"""A continuous normalising flow: the law of $x(t_1)$ if $x(t_0)$ has a known one.

    The solution of $\dot x = f(t, x)$ carries the points of the base, and along it

    $$\log p_{t_1}(x(t_1)) = \log p_{t_0}(x(t_0))
    - \int_{t_0}^{t_1} \operatorname{tr} \partial_x f(t, x(t))\,dt.$$

    Densities hold up to the error of the solver: with coarse steps they do not integrate to 1, and
    training exploits it. The trace is exact: the field's own where it has a method
    ``velocity_and_trace`` (:class:`~companion.models.traces.KnowsTrace`), and otherwise one product
    with the Jacobian for each coordinate. Estimates have to be asked for, by a ``probe``.

    Parameters of the field are trained as always, and found in ``flow.field``. Samples come from
    the base and so from PyTorch's global generator; to use one of your own, carry points that you
    drew, ``flow.forward(z).points``.

    Args:
        field: ``field(t, x)``, a function or a module, for a batch ``(batch, *event_shape)`` whose
            rows do not depend on each other.
        base: the law at ``span[0]``, with at least one axis of events and none of batches, say
            ``Independent(Normal(zeros(2), ones(2)), 1)``.
        span: the times $t_0$ of the base and $t_1$ of the flow.
        validate_args: whether to check the values of points, as in all distributions of torch.
        **knobs: the other arguments of :func:`companion.odeint`: ``method``, ``steps``, ``rtol``,
            ``gradient`` and so on, but for ``event_fn``, ``dense`` and ``per_sample``. To compile
            pays for a field that knows its trace: other traces make a new field for each solve.

    Attributes:
        field: the field.
        base: the law at the first time.
        span: both times.

    Raises:
        TypeError: for a field that cannot be called or a base that is no distribution.
        ValueError: for axes of the base, times or an argument of the solver that are not allowed;
            later, for points of another shape or type, for a field whose rows depend on each other
            (batch norm in training mode) or that is no function of time and state (dropout in
            training mode), and what :func:`companion.odeint` raises.

    Source:
        Chen et al. 2018, section 4 and appendix A; Grathwohl et al. 2019.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> zeros = torch.zeros(2, dtype=torch.float64)
        >>> flow = CNF(lambda t, x: x, Independent(Normal(zeros, 1.0), 1))  # scales by e
        >>> flow.log_prob(zeros), flow.sample((5,)).shape  # -log(2 pi) - 2
        (tensor(-3.8379, dtype=torch.float64), torch.Size([5, 2]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012, as in torch

    def __init__(
        self,
        field: Field,
        base: Distribution,
        *,
        span: tuple[float, float] = (0.0, 1.0),
        validate_args: bool | None = None,
        **knobs: Any,
    ) -> None:
        if not callable(field):
            raise TypeError(not_allowed("field", field, "it must be callable as field(t, x)"))
        check_type("base", base, Distribution)
        _check_base(base)
        times = [check_number("span", t) for t in span]
        if len(times) != 2 or times[0] == times[1]:
            raise ValueError(not_allowed("span", span, "it must hold two different times"))
        for name in ("event_fn", "dense", "per_sample"):
            if knobs.get(name):
                raise ValueError(not_allowed(name, knobs[name], "leave it out of a flow"))
        get_solver(**{name: knobs.get(name) for name in SOLVER})
        get_gradient(knobs.get("gradient", "backprop"))
        self._field, self.base, self.knobs = field, base, knobs
        self.span = (times[0], times[1])
        # One module for all solves: what is compiled or traced once belongs to it.
        own: object = field
        self._with_trace = _WithTrace(own) if isinstance(own, KnowsTrace) else None
        self.has_rsample = base.has_rsample
        self._checked: set[tuple[Any, ...]] = set()
        super().__init__(torch.Size(), base.event_shape, validate_args=validate_args)

    @property
    def field(self) -> Field:
        """The field; for another one, make another flow."""
        return self._field

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """All points with real coordinates."""
        real: constraints.Constraint = constraints.independent(  # type: ignore[no-untyped-call]
            constraints.real, len(self.event_shape)
        )
        return real

    def forward(
        self, z: Tensor, *, probe: Tensor | None = None, costs: Mapping[str, Cost] | None = None
    ) -> Carried:
        r"""Carry points of the base to the flow's.

        Args:
            z: points, shape ``(..., *event_shape)``.
            probe: makes ``log_det`` an estimate by Hutchinson's, of one product instead of one for
                each coordinate. Shaped like ``z``, from
                :func:`~companion.running_costs.random_signs` or
                :func:`~companion.models.traces.random_normals`, drawn anew for each call.
            costs: running costs to integrate along the way (:mod:`companion.running_costs`). For
                an adaptive method a cost must not draw noise at every evaluation.

        Example:
            >>> from torch.distributions import Independent, Normal
            >>> from companion.running_costs import kinetic_energy
            >>> flow = CNF(lambda t, x: -x, Independent(Normal(torch.zeros(2), 1.0), 1))
            >>> x, log_det, paid = flow.forward(torch.ones(2), costs={"kinetic": kinetic_energy})
            >>> x, log_det, paid["kinetic"]
            (tensor([0.3679, 0.3679]), tensor(-2.0000), tensor(0.8647))
        """
        return self._carried(z, "z", self.span, probe, costs or {})

    def inverse(
        self, x: Tensor, *, probe: Tensor | None = None, costs: Mapping[str, Cost] | None = None
    ) -> Carried:
        """Carry points of the flow back to the base's; arguments as in :meth:`forward`.

        Example:
            >>> from torch.distributions import Independent, Normal
            >>> flow = CNF(lambda t, x: -x, Independent(Normal(torch.zeros(2), 1.0), 1))
            >>> flow.inverse(torch.ones(2)).log_det
            tensor(2.0000)
        """
        return self._carried(x, "x", self.span[::-1], probe, costs or {})

    @override
    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of points ``(..., *event_shape)``, by the exact trace."""
        return self._log_density(self.inverse(value))

    def estimated_log_prob(self, x: Tensor, probe: Tensor) -> Tensor:
        r"""Return an unbiased estimate of the log-density, for training in many dimensions.

        Its gradient is unbiased too. Its exponential is not: on average it exceeds the density, so
        that it integrates to more than 1. Report :meth:`log_prob`.

        Args:
            x: points, shape ``(..., *event_shape)``.
            probe: as in :meth:`forward`.

        Source:
            Grathwohl et al. 2019.

        Example:
            >>> from torch.distributions import Independent, Normal
            >>> from companion.running_costs import random_signs
            >>> flow = CNF(lambda t, x: -x, Independent(Normal(torch.zeros(2), 1.0), 1))
            >>> x = torch.zeros(3, 2)
            >>> flow.estimated_log_prob(x, random_signs(x, torch.Generator().manual_seed(0)))
            tensor([0.1621, 0.1621, 0.1621])
        """
        return self._log_density(self.inverse(x, probe=probe))

    def solved_log_prob(self, x: Tensor) -> Tensor:
        r"""Return the exact log-density of the computed map, steps and all.

        A scheme on fixed steps takes $x$ to $\psi_h(x)$, and

        $$\log q_h(x) = \log p_{t_0}(\psi_h(x)) + \log\lvert\det \partial_x \psi_h(x)\rvert$$

        is a density, whose integral is 1 wherever $\psi_h$ is one-to-one and onto. The steps of
        :meth:`log_prob` integrate the trace instead, and its exponential has the integral
        $1 + O(h^p)$. For Euler's scheme that is the difference between $\sum_n h
        \operatorname{tr} J_n$ and $\sum_n \log\det(I + h J_n)$. Costs a backward pass through the
        solve for each coordinate, and a determinant: meant for few.

        Args:
            x: points, shape ``(..., *event_shape)``.

        Raises:
            ValueError: for a method without fixed explicit steps, as adaptive ones are chosen for
                all points together, or a gradient other than ``"backprop"``.

        Source:
            The change of variables for a step; Behrmann et al. 2019 for that of Euler's.

        Example:
            >>> from torch.distributions import Independent, Normal
            >>> base = Independent(Normal(torch.zeros(1), 1.0), 1)
            >>> flow = CNF(lambda t, x: x, base, method="euler", steps=2)  # inverse is x / 4
            >>> x = torch.zeros(1)
            >>> (flow.solved_log_prob(x) - base.log_prob(x)).exp().detach()
            tensor(0.2500)
        """
        method, gradient = self.knobs.get("method"), self.knobs.get("gradient", "backprop")
        if method not in SCHEMES:
            raise ValueError(not_allowed("method", method, "the steps must be fixed and explicit"))
        if not isinstance(get_gradient(gradient), Backprop):
            raise ValueError(not_allowed("gradient", gradient, "it must be 'backprop'"))
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            start = self._rows(x, "x")
            start = start if start.requires_grad else start.detach().requires_grad_()
            ends = self._ends(start, self.span[::-1])
            log_det = _row_log_det(ends, start, keep)
        ends = ends if keep else ends.detach()
        shape = x.shape[: x.ndim - len(self.event_shape)]
        return self._log_density(Carried(ends.reshape(x.shape), log_det.reshape(shape), {}))

    @override
    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return samples that have gradients, ``(*sample_shape, *event_shape)``.

        Raises:
            NotImplementedError: if the base has no such samples.
        """
        z = self.base.rsample(torch.Size(sample_shape))
        return self._ends(self._rows(z, "z"), self.span).reshape(z.shape)

    @override
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return samples without gradients, ``(*sample_shape, *event_shape)``."""
        with torch.no_grad():
            z = self.base.sample(torch.Size(sample_shape))
            return self._ends(self._rows(z, "z"), self.span).reshape(z.shape)

    def _carried(
        self, x: Tensor, name: str, t: tuple[float, ...], probe: Tensor | None,
        costs: Mapping[str, Cost],
    ) -> Carried:  # fmt: skip
        rows = self._rows(x, name)
        if "log_det" in costs:
            raise ValueError("costs: the name 'log_det' is taken; give the cost another one")
        self._check_field(rows, t[0])
        self._check_costs(rows, t, costs)
        paid: dict[str, Tensor] = {}
        if self._with_trace is not None and probe is None and not costs:
            state = (rows, rows.new_zeros(len(rows)))
            ys, log_det = odeint(self._with_trace, state, t, **self.knobs)
        else:
            trace = self._trace(None if probe is None else self._rows(probe, "probe"))
            asked = {**costs, "log_det": trace}
            ys, paid = solve_with_costs(self.field, rows, t, asked, **self.knobs)
            log_det = paid.pop("log_det")
        shape = x.shape[: x.ndim - len(self.event_shape)]
        # A cost is paid per unit of time that passes, in whichever direction.
        sign = math.copysign(1.0, t[1] - t[0])
        paid = {name: sign * cost[-1].reshape(shape) for name, cost in paid.items()}
        return Carried(ys[-1].reshape(x.shape), log_det[-1].reshape(shape), paid)

    def _log_density(self, at: Carried) -> Tensor:
        if not at.points.numel():  # some bases cannot check an empty batch
            return at.log_det
        density: Tensor = self.base.log_prob(at.points) + at.log_det
        return density

    def _trace(self, probe: Tensor | None) -> Cost:
        if probe is not None:
            return hutchinson_trace(probe)
        own = self._with_trace
        return exact_trace if own is None else _own_trace(own.field)

    def _ends(self, rows: Tensor, t: tuple[float, ...]) -> Tensor:
        """Return where points arrive."""
        self._check_field(rows, t[0])
        ends: Tensor = odeint(self.field, rows, t, **self.knobs)[-1]
        return ends

    def _rows(self, x: Tensor, name: str) -> Tensor:
        """Return points as a batch with one axis of rows, and check them."""
        check_type(name, x, Tensor)
        axes = len(self.event_shape)
        if x.ndim < axes or x.shape[x.ndim - axes :] != self.event_shape:
            raise ValueError(
                f"{name}: shape {tuple(x.shape)} is not allowed; it must end in "
                f"{tuple(self.event_shape)}"
            )
        # torch's own check of values fails for an empty batch.
        if self._validate_args and beneath(x).isnan().any():
            raise ValueError(f"{name}: nan is not allowed; all coordinates must be real numbers")
        return x.reshape(math.prod(x.shape[: x.ndim - axes]), *self.event_shape)

    def _check_field(self, rows: Tensor, t: float) -> None:
        """Check the field once in each combination of modes, where rows are plain and several."""
        modules = self.field.modules() if isinstance(self.field, nn.Module) else ()
        modes = (rows.dtype, *(module.training for module in modules))
        if len(rows) > 1 and modes not in self._checked and not followed(rows):
            check_rows(self.field, torch.as_tensor(t, dtype=rows.dtype, device=rows.device), rows)
            self._checked.add(modes)

    def _check_costs(self, rows: Tensor, t: tuple[float, ...], costs: Mapping[str, Cost]) -> None:
        """Refuse costs with fresh noise where a method would refine its steps to resolve it."""
        if not costs or takes("steps", self.knobs.get("method") or "dopri5") or followed(rows):
            return
        step = {"method": "euler", "params": self.knobs.get("params", ())}
        with torch.no_grad(), counting():  # what is evaluated here does not count
            one, other = (solve_with_costs(self.field, rows, t, costs, **step)[1] for _ in range(2))
        for name in costs:
            if not torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-6):
                raise ValueError(
                    f"costs: {name!r} differs between two evaluations at one place, and an "
                    "adaptive method would take ever smaller steps; draw a probe once, before the "
                    "solve"
                )


class _WithTrace(nn.Module):
    """The field of points and log-determinants, for a field that knows its trace."""

    def __init__(self, field: KnowsTrace) -> None:
        super().__init__()
        self.field = field  # a module's parameters are found

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.field.velocity_and_trace(t, state[0])


def _own_trace(field: KnowsTrace) -> Cost:
    def trace(at: Moment) -> Tensor:
        return field.velocity_and_trace(at.t, at.y)[1]

    return trace


def _row_log_det(ends: Tensor, start: Tensor, keep: bool) -> Tensor:
    """Return log |det| of the Jacobian of each row's end with respect to its start."""
    rows: list[Tensor] = []
    for k in range(math.prod(ends.shape[1:])):
        coordinate = ends.flatten(1)[:, k].sum()
        (row,) = torch.autograd.grad(coordinate, start, create_graph=keep, retain_graph=True)
        rows.append(row.flatten(1))
    log_det: Tensor = torch.linalg.slogdet(torch.stack(rows, 1)).logabsdet
    return log_det


def _check_base(base: Distribution) -> None:
    if base.batch_shape:
        raise ValueError(
            f"base: batch_shape {tuple(base.batch_shape)} is not allowed; it must be (), as of "
            f"Independent(base, {len(base.batch_shape)})"
        )
    if not base.event_shape:
        raise ValueError(
            "base: event_shape () is not allowed; it must have an axis, such as (1,) of "
            "Independent(Normal(zeros(1), ones(1)), 1)"
        )
