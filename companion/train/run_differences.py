"""What two descriptions of a run differ in."""

from collections.abc import Mapping
from typing import Any


def differences(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Say in which fields two descriptions of a run differ, one phrase a field.

    Args:
        stored: the description that lies in a file.
        wanted: the description of the run at hand.
        prefix: put before the names; fields of nested descriptions are joined by dots.

    Example:
        >>> differences({"seed": 0, "parameters": {"rate": 1.0}},
        ...             {"seed": 5, "parameters": {"rate": 1.0}})
        ['seed (0 there, 5 here)']
        >>> differences({"parameters": {"rate": 1.0}}, {"parameters": {}})
        ['parameters.rate (1.0 there, None here)']
    """
    found = []
    for name in [*wanted, *(name for name in stored if name not in wanted)]:
        there, here = stored.get(name), wanted.get(name)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            found += differences(there, here, f"{prefix}{name}.")
        elif there != here:
            found.append(f"{prefix}{name} ({there} there, {here} here)")
    return found
