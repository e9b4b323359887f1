"""scipy's LSODA behind the package's interface: for stiff equations, on the processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import LSODA, solve_ivp
from torch import Tensor

from companion.solve import NonFiniteError, Problem, Stage, States, Stats, StepLimitError, Times

__all__ = ["SCIPY", "ScipySolver"]

SCIPY = "scipy_solver"
"""The name of the method that lets scipy solve."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScipySolver:
    """LSODA, which changes between Adams' methods and backward differentiation as need be.

    States and times are double precision in scipy, whatever the dtype of the state.

    Attributes:
        rtol: relative tolerance.
        atol: absolute tolerance.
        max_steps: most steps between the first and the last time.
    """

    rtol: float
    atol: float
    max_steps: int
    method: ClassVar[str] = SCIPY
    steps: ClassVar[None] = None
    on_grid: ClassVar[bool] = False
    recordable: ClassVar[bool] = False

    def integrate(self, problem: Problem) -> States:
        """Return the states at all output times, stacked."""
        field = problem.field

        def func(t: float, y: Tensor) -> Tensor:
            return field(Stage(t), y)

        return self.run(func, problem.y0, problem.t, problem.stats)

    def run(
        self,
        func: Callable[[float, Tensor], Tensor],
        y0: Tensor,
        t: Times,
        stats: Stats | None = None,
    ) -> Tensor:
        """Solve ``dy/dt = func(t, y)`` and return the states at all times.

        Args:
            func: the right-hand side; it gets the time as a float.
            y0: the state at ``t[0]``.
            t: the output times.
            stats: where to count steps.

        Raises:
            NonFiniteError: if LSODA gives up.
            StepLimitError: after ``max_steps`` steps.
            ValueError: for a derivative that has a graph, which would be lost, or is not finite.
        """
        times = [float(x) for x in t]
        if not y0.numel():  # scipy has no empty states; one call lets the field be checked
            func(times[0], y0)
            return y0.expand(len(times), *y0.shape)

        def derivative(t: float, y: Array) -> Array:
            return _checked(func(t, _tensor(y, y0).view(y0.shape)), t)

        taken: list[float] = []
        with np.errstate(all="ignore"):  # what is not finite is said below
            found = solve_ivp(
                derivative, (times[0], times[-1]), _array(y0), method=_Counted, t_eval=times,
                rtol=self.rtol, atol=self.atol, taken=taken, limit=self.max_steps,
            )  # fmt: skip
        if not found.success:
            raise NonFiniteError(
                f"y0: {SCIPY} cannot go on at t = {taken[-1] if taken else times[0]:.6g}: "
                f"{found.message}; loosen rtol and atol, scale the field down, or solve a shorter "
                "time"
            )
        if stats is not None:
            stats.steps += len(taken)
        later = _tensor(found.y.T[1:], y0).view(-1, *y0.shape)
        return torch.cat([y0.detach().unsqueeze(0), later])

    def first_non_finite(self, problem: Problem) -> None:
        """Solve nothing again: only the states at the output times are known here."""


class _Counted(LSODA):  # type: ignore[misc]
    """LSODA with a limit to the number of its steps."""

    def __init__(self, *args: Any, taken: list[float], limit: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.taken, self.limit = taken, limit

    def _step_impl(self) -> Any:
        if len(self.taken) == self.limit:
            raise StepLimitError(
                f"max_steps: {SCIPY} took {self.limit} steps and stands at t = {self.t:.6g}, on "
                f"the way to {self.t_bound:.6g}; loosen rtol and atol, or raise max_steps="
            )
        result = super()._step_impl()
        self.taken.append(float(self.t))
        return result


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().reshape(-1).numpy().astype(np.float64)


def _tensor(array: Array, like: Tensor) -> Tensor:
    """Return a copy: LSODA uses its arrays again."""
    single = array.astype(np.float64 if like.dtype == torch.float64 else np.float32)
    return torch.from_numpy(single).to(like.device, like.dtype)


def _checked(value: Tensor, t: float) -> Array:
    """Refuse what scipy would lose (a graph) or never leave (values that are not finite)."""
    if value.requires_grad:
        raise ValueError(f"gradient: 'backprop' cannot see inside {SCIPY}; use gradient='adjoint'")
    array = _array(value)
    if not np.isfinite(array).all():
        raise NonFiniteError(
            f"y0: the state's derivative is not finite at t = {t:.6g}; scale the field down, or "
            "solve a shorter time"
        )
    return array
