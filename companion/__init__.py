"""Continuous-depth networks: one block, four knobs (field, weights, method, gradient)."""

from importlib.metadata import PackageNotFoundError, version

from companion.basis import (
    Chebyshev,
    Constant,
    DiscontinuousLinear,
    Fourier,
    PiecewiseConstant,
    PiecewiseLinear,
)
from companion.block import OdeBlock, refine
from companion.counting import counting
from companion.ode import odeint
from companion.solve import Stats

try:
    __version__ = version("continuous-depth")
except PackageNotFoundError:  # a checkout that is on the path but not installed
    __version__ = "0+unknown"

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
