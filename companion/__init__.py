"""Continuous-depth networks: one block, four knobs (field, weights, method, gradient)."""

from importlib.metadata import version

from companion.basis import Constant, PiecewiseConstant, PiecewiseLinear
from companion.block import OdeBlock
from companion.ode import odeint
from companion.solve import Stats

__version__ = version("continuous-depth")

__all__ = [
    "Constant",
    "OdeBlock",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "Stats",
    "odeint",
]
