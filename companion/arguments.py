"""Checks of single arguments, shared by all that take some."""

from collections.abc import Collection
from math import isfinite
from numbers import Integral, Real

__all__ = [
    "check_choice",
    "check_count",
    "check_number",
    "check_type",
    "is_count",
    "not_allowed",
    "store_count",
]


def not_allowed(name: str, value: object, must: str) -> str:
    """Return the wording of all messages about a single argument.

    Example:
        >>> not_allowed("steps", 0, "it must be an integer of at least 1")
        'steps: 0 is not allowed; it must be an integer of at least 1'
    """
    return f"{name}: {value!r} is not allowed; {must}"


def is_count(value: object, least: int = 1) -> bool:
    """Return whether a value is an integer of at least ``least``, NumPy's too; booleans are none.

    Example:
        >>> is_count(3), is_count(0), is_count(3.0), is_count(True)
        (True, False, False, False)
    """
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least


def check_count(name: str, value: object, least: int = 1) -> int:
    """Return an integer of at least ``least`` as an ``int``.

    Raises:
        ValueError: for anything else, naming the argument.

    Example:
        >>> check_count("steps", 2.5)
        Traceback (most recent call last):
        ValueError: steps: 2.5 is not allowed; it must be an integer of at least 1
    """
    if not isinstance(value, Integral) or not is_count(value, least):
        raise ValueError(not_allowed(name, value, f"it must be an integer of at least {least}"))
    return int(value)


def store_count(owner: object, name: str, least: int = 1) -> None:
    """Check a count that a frozen data class holds, and keep it as an ``int``.

    Raises:
        ValueError: as :func:`check_count` does.
    """
    object.__setattr__(owner, name, check_count(name, getattr(owner, name), least))


def check_number(name: str, value: object, least: float | None = None) -> float:
    """Return a finite number, of at least ``least`` if that is given, as a ``float``.

    Raises:
        TypeError: for what is no number; booleans are none.
        ValueError: for a number that is not finite or too small.

    Example:
        >>> check_number("rtol", -1, least=0)
        Traceback (most recent call last):
        ValueError: rtol: -1 is not allowed; it must be a finite number of at least 0
    """
    must = "it must be a finite number" + ("" if least is None else f" of at least {least}")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(not_allowed(name, value, must))
    number = float(value)
    if not isfinite(number) or (least is not None and number < least):
        raise ValueError(not_allowed(name, value, must))
    return number


def check_choice(name: str, value: object, allowed: Collection[object]) -> None:
    """Check that a value is one of several.

    Raises:
        ValueError: if it is not, naming the argument and what is allowed.

    Example:
        >>> check_choice("rule", "exact", ("reverse", "corrected"))
        Traceback (most recent call last):
        ValueError: rule: 'exact' is not allowed; it must be one of reverse, corrected
    """
    if value not in tuple(allowed):
        names = ", ".join(map(str, allowed))
        raise ValueError(not_allowed(name, value, f"it must be one of {names}"))


def check_type(name: str, value: object, *allowed: type) -> None:
    """Raise a ``TypeError`` that names the argument unless ``value`` is of an allowed type.

    Booleans are no numbers here.

    Example:
        >>> check_type("epochs", 2.0, int)
        Traceback (most recent call last):
        TypeError: epochs: 2.0 is not allowed; it must be of type int
    """
    if isinstance(value, bool) or not isinstance(value, allowed):
        kinds = " or ".join("None" if t is type(None) else t.__name__ for t in allowed)
        raise TypeError(not_allowed(name, value, f"it must be of type {kinds}"))
