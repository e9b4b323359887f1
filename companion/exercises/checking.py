"""What every exercise is made of, and how checkers read answers."""

from __future__ import annotations

import functools
import math
import numbers
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
            :class:`WrongAnswer` otherwise. An exception that the answer's own code raises becomes a
            :class:`WrongAnswer` that shows it, whatever the checker makes of it.
        solution: the reference solution, an answer that ``check`` accepts.
        wrong: answers that ``check`` rejects, at least four, keyed by the mistake they contain.

    Example:
        >>> double = Exercise("double", lambda f: f"Right: {f(2)}.", lambda x: 2 * x, {})
        >>> double.check(lambda x: 2 * x)
        'Right: 4.'
        >>> double.check(lambda x: x / 0)
        Traceback (most recent call last):
        companion.exercises.checking.WrongAnswer: Your answer raises ZeroDivisionError: ...
    """

    id: str
    check: Callable[[Any], str]
    solution: Any
    wrong: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "check", _guarded(self.check))


def number(value: Any, hint: str) -> float:
    """Return a number, whether it comes as one or as a tensor, an array or a list of one.

    Raises:
        WrongAnswer: with the hint; or the dots are still there.

    Example:
        >>> number(torch.tensor([0.5]), "Return one number.")
        0.5
    """
    found = tensor(value, None, hint)
    if found.numel() != 1:
        raise WrongAnswer(hint)
    return found.item()


def listed(value: Any, count: int | None, hint: str) -> list[float]:
    """Return ``count`` numbers, or any number of them, from a sequence, a tensor or an array.

    Raises:
        WrongAnswer: with the hint; or the dots are still there.

    Example:
        >>> listed((1, torch.tensor(0.5)), 2, "Return two numbers.")
        [1.0, 0.5]
    """
    found = tensor(value, None, hint)
    if found.ndim != 1 or (count is not None and len(found) != count):
        raise WrongAnswer(hint)
    values: list[float] = found.tolist()
    return values


def whole(value: Any) -> int | None:
    """Return an integer of any integer type, ``None`` for anything else; booleans are none.

    Example:
        >>> whole(torch.tensor(3)), whole(3.0), whole(True)
        (3, None, None)
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    if hasattr(value, "dtype") and value.ndim == 0:
        found = torch.as_tensor(value)
        if not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
            return int(found)
    return None


def tensor(value: Any, shape: Sequence[int] | None, hint: str) -> Tensor:
    """Return an answer in double precision, from a tensor, an array, or nested lists of these.

    Args:
        value: the answer.
        shape: what it must have, or ``None``.
        hint: what to say otherwise.

    Raises:
        WrongAnswer: with the hint; or the dots are still there.

    Example:
        >>> tensor([torch.tensor(1.0), 2], (2,), "Return two numbers.")
        tensor([1., 2.], dtype=torch.float64)
    """
    if value is ... or (isinstance(value, tuple | list) and any(part is ... for part in value)):
        raise WrongAnswer("Fill in the dots first.")
    try:
        if isinstance(value, tuple | list):
            found = torch.stack([tensor(part, None, hint) for part in value])
        else:
            # A Python float is one in double precision already.
            kind = torch.float64 if isinstance(value, float) else None
            found = torch.as_tensor(value, dtype=kind).detach().cpu()
            found = found.to(torch.complex128 if found.is_complex() else torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise WrongAnswer(hint) from None
    if found.is_complex() or (shape is not None and found.shape != tuple(shape)):
        raise WrongAnswer(hint)
    return found


def close(got: float | Tensor, wanted: float | Tensor) -> bool:
    """Compare so that a right answer in single precision passes.

    Example:
        >>> close(1 / 3, 0.333333), close(1 / 3, 0.3333)
        (True, False)
    """
    if isinstance(got, Tensor) and isinstance(wanted, Tensor):
        return torch.allclose(got, wanted.to(got.dtype), rtol=1e-5, atol=1e-6)
    return math.isclose(float(got), float(wanted), rel_tol=1e-5, abs_tol=1e-6)


_LIBRARIES = (
    Path(__file__).parents[1],
    Path(torch.__file__).parent,
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
)


def _guarded(check: Callable[[Any], str]) -> Callable[[Any], str]:
    @functools.wraps(check)
    def guarded(answer: Any) -> str:
        try:
            return check(answer)
        except WrongAnswer as hint:
            found = next(filter(_own_line, _behind(hint)), None)
            if found is None:
                raise
        except Exception as error:
            found = next(filter(_own_line, (error, *_behind(error))), error)
        raise WrongAnswer(_told(found)) from found

    return guarded


def _behind(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions that were being handled when this one was raised."""
    while (error := error.__cause__ or error.__context__) is not None:  # type: ignore[assignment]
        yield error


def _own_line(error: BaseException) -> traceback.FrameSummary | None:
    """Return the last line of the answer's own code that an exception came through, if any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_library(frame.filename)]
    return own[-1] if own else None


def _is_library(filename: str) -> bool:
    if filename.startswith(("<frozen", "<__array", "<eval_with_key")):
        return True
    return any(Path(filename).is_relative_to(folder) for folder in _LIBRARIES)


def _told(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".removesuffix(": ").removesuffix(".")
    line = _own_line(error)
    if line is None:
        return f"Your answer cannot be checked, it leads to {text}."
    return f"Your answer raises {text} (in line {line.lineno}: {line.line})."
