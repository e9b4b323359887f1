"""Continuous-depth networks: one block, four knobs (field, weights, method, gradient).

Names are imported when they are first used: the command line lists experiments without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from companion.version import VERSION

if TYPE_CHECKING:
    from companion.basis import (
        Chebyshev,
        Constant,
        DiscontinuousLinear,
        Fourier,
        PiecewiseConstant,
        PiecewiseLinear,
    )
    from companion.block import OdeBlock, refine
    from companion.counts import counting
    from companion.ode import odeint
    from companion.solve import Stats


__version__ = VERSION

__all__ = [
    "Chebyshev",
    "Constant",
    "DiscontinuousLinear",
    "Fourier",
    "OdeBlock",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "Stats",
    "counting",
    "odeint",
    "refine",
]

_HOMES = {
    "OdeBlock": "block",
    "Stats": "solve",
    "counting": "counts",
    "odeint": "ode",
    "odeint_adjoint": "ode",
    "odeint_event": "ode",
    "refine": "block",
}
"""The modules of the names that are not bases; torchdiffeq's only say what to write instead."""


def __getattr__(name: str) -> Any:
    if name not in __all__ and name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"companion.{_HOMES.get(name, 'basis')}"), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
