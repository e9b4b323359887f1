"""Every basis that the package exports, small."""

import importlib
import inspect
import pkgutil

import companion.basis
from companion.basis import Basis, Place


def exported():
    """Return the classes of bases that `companion.basis` exports."""
    values = (getattr(companion.basis, name) for name in companion.basis.__all__)
    return [kind for kind in values if inspect.isclass(kind) and kind not in (Basis, Place)]


def written():
    """Return the classes with a method ``at`` in the files of `companion.basis`."""
    names = [
        f"companion.basis.{info.name}" for info in pkgutil.iter_modules(companion.basis.__path__)
    ]
    return [
        kind
        for name in names
        for kind in vars(importlib.import_module(name)).values()
        if inspect.isclass(kind) and kind.__module__ == name and hasattr(kind, "at")
        and kind is not Basis
    ]  # fmt: skip


def small(kind):
    """Return instances of a basis: all that it must be given is 3.

    Where ``cells`` can be given but need not be, there is one of 5 on three cells too.
    """
    parameters = inspect.signature(kind).parameters.values()
    needed = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    found = [kind(**dict.fromkeys(needed, 3))]
    if any(p.name == "cells" and p.name not in needed for p in parameters):
        found.append(kind(**dict.fromkeys(needed, 5), cells=3))
    return found


SMALL_BASES = [basis for kind in exported() for basis in small(kind)]
