"""The gradient knob: how a loss is differentiated through a solve.

Every method is a small frozen dataclass. Its ``differentiable_states(problem)`` returns the states
at the output times; their backward pass is what distinguishes it. All but backprop write that
themselves, as a ``forward`` and a ``backward`` for one autograd function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from companion.arguments import check_choice
from companion.first_evaluation import explained
from companion.gradients.adjoint import Adjoint
from companion.gradients.backprop import Backprop
from companion.gradients.checkpoint import Checkpoint
from companion.gradients.reconstruct import Reconstruct
from companion.gradients.reversible import Reversible
from companion.gradients.rules import NAMED_RULES, Rule
from companion.low_precision import is_half, narrowed, widened
from companion.solve import (
    NonFiniteError,
    Problem,
    Solver,
    States,
    check_finite,
    check_start,
)
from companion.transforms import CANNOT_FOLLOW, transforming

__all__ = [
    "GRADIENTS",
    "NAMED_RULES",
    "Adjoint",
    "Backprop",
    "Checkpoint",
    "Gradient",
    "Reconstruct",
    "Reversible",
    "Rule",
    "explaining",
    "get_gradient",
    "solved",
]


class Gradient(Protocol):
    """A configured gradient method."""

    @property
    def records_graph(self) -> bool:
        """Whether autograd itself sees every evaluation, and so finds all parameters alone."""

    def differentiable_states(self, problem: Problem) -> States:
        """Return the states at all output times, with this method's backward pass."""


GRADIENTS: dict[str, type[Backprop | Adjoint | Checkpoint | Reconstruct | Reversible]] = {
    "backprop": Backprop,
    "adjoint": Adjoint,
    "checkpoint": Checkpoint,
    "reconstruct": Reconstruct,
    "reversible": Reversible,
}
"""The gradient methods, by name."""


def get_gradient(gradient: str | Gradient) -> Gradient:
    """Return a configured gradient method from its name, or the one passed.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything that is neither a name nor a configured method.

    Example:
        >>> get_gradient("checkpoint")
        Checkpoint(every=1)
    """
    if isinstance(gradient, str):
        check_choice("gradient", gradient, GRADIENTS)
        return GRADIENTS[gradient]()
    if isinstance(gradient, tuple(GRADIENTS.values())):
        return gradient
    allowed = ", ".join(f"{cls.__name__}(...)" for cls in GRADIENTS.values())
    raise TypeError(
        f"gradient: {gradient!r} is not allowed; pass one of {', '.join(GRADIENTS)}, or {allowed}"
    )


def solved(problem: Problem, gradient: Gradient, argument: str) -> States:
    """Return the states of a problem, differentiable by a method, checked.

    Args:
        problem: what to solve.
        gradient: the gradient method.
        argument: the name of the initial state in messages.

    Raises:
        ValueError: for whatever the method refuses, or a state that stops being finite.
    """
    if is_half(problem.y0):
        return narrowed(solved(widened(problem), gradient, argument), problem.y0.dtype)
    if torch.compiler.is_compiling():
        return gradient.differentiable_states(problem)
    if transforming() and problem.solver.steps is None:
        raise _not_followed(problem.solver)
    if problem.y0.is_meta and not problem.solver.on_grid:
        raise ValueError(
            f"{argument}: a tensor on the meta device has no values, which "
            f"{problem.solver.method!r} looks at; use a scheme on fixed steps such as 'rk4' to "
            "find shapes"
        )
    with explaining(problem, argument):
        ys = gradient.differentiable_states(problem)
    check_finite(ys, problem, argument)
    return ys


@contextmanager
def explaining(problem: Problem, argument: str) -> Iterator[None]:
    """Say what is behind the errors of a solve, as far as this package knows."""
    try:
        yield
    except NonFiniteError:
        check_start(problem.y0, argument)
        raise
    except RuntimeError as error:
        hint = explained(error, "func" if argument == "y0" else "residual")
        if transforming() and not problem.solver.on_grid:
            hint = _not_followed(problem.solver)
        if hint is None:
            raise
        raise hint from error


def _not_followed(solver: Solver) -> ValueError:
    return ValueError(
        f"method: {solver.method!r} looks at or overwrites values of the state, {CANNOT_FOLLOW}; "
        "use a scheme on fixed steps such as 'rk4' inside them, or torch.autograd outside"
    )
