"""What every exercise is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Exercise", "WrongAnswer"]


class WrongAnswer(Exception):
    """An answer was checked and is not right; the message is a hint, not the solution."""

    def _render_traceback_(self) -> list[str]:
        """Tell IPython to show the hint instead of a traceback through the checker."""
        return [f"Not yet: {self}"]


@dataclass(frozen=True)
class Exercise:
    """One exercise of a chapter, ready to be tested.

    Attributes:
        id: the label the chapter gives it, such as ``"ex-adjoint-linear"``.
        check: the checker; takes the answer, returns what to tell a reader who is right, raises
            :class:`WrongAnswer` otherwise.
        solution: the reference solution, an answer that ``check`` accepts.
        wrong: answers that ``check`` rejects, at least four, keyed by the mistake they contain.
    """

    id: str
    check: Callable[[Any], str]
    solution: Any
    wrong: Mapping[str, Any]
