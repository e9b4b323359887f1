"""How parameters vary with depth: basis functions on the unit interval, and where a stage falls.

A weight function is ``theta(s) = sum_k phi_k(s) theta_k`` on ``s`` in [0, 1]. A basis says which
coefficients a point of depth reads, with which weights, and how to double its cells without
changing the function.
"""

from companion.basis.chebyshev import Chebyshev
from companion.basis.constant import Constant
from companion.basis.discontinuous_linear import DiscontinuousLinear
from companion.basis.fourier import Fourier
from companion.basis.piecewise_constant import PiecewiseConstant
from companion.basis.piecewise_linear import PiecewiseLinear
from companion.basis.places import Place, locate
from companion.basis.projection import evaluate, project
from companion.basis.protocol import Basis

__all__ = [
    "Basis",
    "Chebyshev",
    "Constant",
    "DiscontinuousLinear",
    "Fourier",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "Place",
    "evaluate",
    "locate",
    "project",
]
