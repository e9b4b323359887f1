"""Checks of single arguments, shared by all that take some."""

__all__ = ["check_count", "check_type", "is_count"]


def is_count(value: object, least: int = 1) -> bool:
    """Return whether a value is an integer of at least ``least``; booleans are none.

    Example:
        >>> is_count(3), is_count(0), is_count(3.0), is_count(True)
        (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise a ``ValueError`` that names the argument unless it is an integer of at least ``least``.

    Example:
        >>> check_count("steps", 2.5)
        Traceback (most recent call last):
        ValueError: steps: 2.5 is not allowed; it must be an integer of at least 1
    """
    if not is_count(value, least):
        raise ValueError(
            f"{name}: {value!r} is not allowed; it must be an integer of at least {least}"
        )


def check_type(name: str, value: object, *allowed: type) -> None:
    """Raise a ``TypeError`` that names the argument unless ``value`` is of an allowed type.

    Booleans are no numbers here.

    Example:
        >>> check_type("epochs", 2.0, int)
        Traceback (most recent call last):
        TypeError: epochs must be of type int; got 2.0
    """
    if isinstance(value, bool) or not isinstance(value, allowed):
        kinds = " or ".join("None" if t is type(None) else t.__name__ for t in allowed)
        raise TypeError(f"{name} must be of type {kinds}; got {value!r}")
