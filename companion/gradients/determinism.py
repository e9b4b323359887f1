"""The refusal of fields that are no functions of time and state."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from companion.gradients.randomness import RandomState, draws, random_state, same_state
from companion.solve import Problem, Stage

__all__ = ["check_function_of_state"]


def check_function_of_state(
    problem: Problem,
    places: Sequence[tuple[Stage, Tensor]],
    before: RandomState,
    name: str,
    instead: str,
) -> None:
    """Refuse a field that drew random numbers in a solve, or follows buffers that it changes.

    Args:
        problem: what was solved.
        places: where the field is asked again.
        before: the generators' state before the solve.
        name: the gradient method, with what it does.
        instead: what to use instead.

    Raises:
        ValueError: naming the gradient method.
    """
    moved = not same_state(before, random_state(problem.y0.device))
    if moved and draws(problem.field, places):
        raise ValueError(
            f"gradient: {name} needs a deterministic field, and this one draws random numbers "
            f"(dropout in training mode?); {instead}"
        )
    for stage, y in places:
        if names := problem.field.follows(stage, y):
            raise ValueError(
                f"gradient: {name} needs a field that is a function of t and y, and this one "
                f"changes and reads its buffer {names[0]!r} (spectral_norm in training mode?); "
                f"{instead}"
            )
