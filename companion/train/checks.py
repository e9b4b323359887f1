"""Errors about the types of arguments."""


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
