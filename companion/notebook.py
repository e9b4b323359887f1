"""What a notebook needs besides numbers: values that the book's prose can cite."""

__all__ = ["glue"]


def glue(name: str, value: object) -> None:
    """Store ``value`` under ``name`` in the cell's output, where the book's prose finds it.

    The format is that of MyST-NB's function of this name, so its roles read it. A notebook that
    runs where MyST-NB is not installed can still store values.

    Args:
        name: the key that a page cites, unique in the book.
        value: a number or a string.

    Raises:
        TypeError: for other values, which a page could not format.

    Example:
        >>> glue("answer", [42])
        Traceback (most recent call last):
        ...
        TypeError: value: list is not allowed; glue a number or a string
    """
    if not isinstance(value, (int, float, str)):
        raise TypeError(f"value: {type(value).__name__} is not allowed; glue a number or a string")
    if isinstance(value, float):
        value = float(value)  # NumPy's own floats have a repr that no format understands
    from IPython.display import display

    prefix = "application/papermill.record/"
    display(  # type: ignore[no-untyped-call]
        {f"{prefix}text/plain": repr(value)},
        raw=True,
        metadata={"scrapbook": {"name": name, "mime_prefix": prefix}},
    )
