"""The method knob: every method by name, and the knobs that it takes."""

from __future__ import annotations

from typing import TypedDict

from companion.adams import MULTISTEP, Adams
from companion.adaptive import Adaptive
from companion.arguments import check_choice, check_count, check_number, not_allowed
from companion.leapfrog import AsyncLeapfrog
from companion.pairs import PAIRS
from companion.schemes import SCHEMES, get_scheme
from companion.scipy_solver import SCIPY, ScipySolver
from companion.solve import FixedStep, Solver

__all__ = ["ADAPTIVE", "METHODS", "TAKES", "get_solver", "inherited", "takes"]

ADAPTIVE = tuple(PAIRS)
"""Embedded Runge-Kutta pairs with step size control."""

LEAPFROG = "async_leapfrog"

METHODS = (*SCHEMES, LEAPFROG, *ADAPTIVE, *MULTISTEP, SCIPY)
"""Every method name that ``odeint`` and ``OdeBlock`` accept."""

GONE = {
    "dopri8": "'dopri5' or 'tsit5', or 'scipy_solver' for tight tolerances",
    "fehlberg2": "'bosh3'",
    "adaptive_heun": "'bosh3'",
    "fixed_adams": "'implicit_adams'",
    "heun2": "'heun'",
    "heun3": "'kutta3'",
}
"""Names of torchdiffeq's that are no methods here, and what to use instead."""

TAKES = {
    **dict.fromkeys((*SCHEMES, LEAPFROG, "explicit_adams"), ("steps",)),
    **dict.fromkeys((*ADAPTIVE, SCIPY), ("rtol", "atol", "max_steps")),
    "implicit_adams": ("steps", "rtol", "atol"),
}
"""The knobs that a method has; it would ignore the others."""

DEFAULTS = {"steps": 1, "rtol": 1e-7, "atol": 1e-9, "max_steps": 20_000}
"""Values of knobs that are not set."""


def takes(knob: str, method: str) -> bool:
    """Say whether a method has a knob; a name that is no method has all.

    Example:
        >>> takes("steps", "rk4"), takes("steps", "dopri5")
        (True, False)
    """
    return knob in TAKES.get(method, DEFAULTS)


def get_solver(
    method: str | None,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
) -> Solver:
    """Return the solver called ``method``, configured.

    Args:
        method: one of ``METHODS``; ``None`` is ``"dopri5"``.
        steps: equal steps between consecutive output times, for methods on a fixed grid; ``None``
            is 1.
        rtol: relative tolerance, for methods that control their error; ``None`` is 1e-7.
        atol: absolute tolerance, likewise; ``None`` is 1e-9.
        max_steps: most steps of a solve, rejected ones included, for methods that choose their
            own; ``None`` is 20,000.

    Raises:
        ValueError: for an unknown method, ``steps < 1``, a negative tolerance, two that are zero,
            or a knob that the method would ignore.
        TypeError: for a tolerance that is not a number.

    Example:
        >>> get_solver("rk4", steps=20).steps
        20
    """
    method = "dopri5" if method is None else method
    if isinstance(method, str) and method in GONE:
        raise ValueError(not_allowed("method", method, f"use {GONE[method]}"))
    check_choice("method", method, METHODS)
    given = {"steps": steps, "rtol": rtol, "atol": atol, "max_steps": max_steps}
    for knob, value in given.items():
        if value is not None and not takes(knob, method):
            raise ValueError(not_allowed(knob, value, _instead(method, knob)))
    set_ = {knob: DEFAULTS[knob] if value is None else value for knob, value in given.items()}
    number = check_count("steps", set_["steps"])
    if method in SCHEMES:
        return FixedStep(get_scheme(method), number)
    if method == LEAPFROG:
        return AsyncLeapfrog(number)
    if method == "explicit_adams":
        return Adams(method, number)
    relative, absolute = (check_number(knob, set_[knob], least=0) for knob in ("rtol", "atol"))
    if method in MULTISTEP:
        return Adams(method, number, relative, absolute)
    if not relative and not absolute:
        raise ValueError(
            "rtol, atol: 0 and 0 are not allowed together; no step would be good enough"
        )
    limit = check_count("max_steps", set_["max_steps"])
    if method == SCIPY:
        return ScipySolver(relative, absolute, limit)
    return Adaptive(PAIRS[method], relative, absolute, limit)


class Knobs(TypedDict):
    """The knobs of a solver, ``None`` where it is not set or has none."""

    steps: int | None
    rtol: float | None
    atol: float | None
    max_steps: int | None


def inherited(
    old: Solver, method: str, steps: int | None, rtol: float | None, atol: float | None
) -> Knobs:
    """Return the knobs for another method: those given, else those of ``old`` that it has too."""
    limit = getattr(old, "max_steps", None)
    return {
        "steps": old.steps if steps is None and takes("steps", method) else steps,
        "rtol": old.rtol if rtol is None and takes("rtol", method) else rtol,
        "atol": old.atol if atol is None and takes("atol", method) else atol,
        "max_steps": limit if takes("max_steps", method) else None,
    }


def _instead(method: str, knob: str) -> str:
    if knob == "steps":
        return (
            f"method={method!r} chooses its own steps; set rtol= and atol=, or use a method on a "
            "fixed grid such as 'rk4'"
        )
    if knob == "max_steps":
        return f"method={method!r} takes as many steps as steps= says"
    return (
        f"method={method!r} does not control its error; set steps=, or use an adaptive method such "
        "as 'dopri5'"
    )
