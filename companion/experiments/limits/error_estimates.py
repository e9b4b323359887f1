"""An adaptive solve that also returns its own error estimates, differentiable."""

from collections.abc import Callable

import torch
from torch import Tensor

from companion.adaptive import Adaptive
from companion.gradients import Backprop
from companion.methods import get_solver
from companion.ode import FuncField
from companion.solve import Problem


def solve_with_estimates(
    field: Callable[[Tensor, Tensor], Tensor], y0: Tensor, tolerance: float, method: str = "dopri5"
) -> tuple[Tensor, Tensor]:
    r"""Solve from 0 to 1; return the end and $\sum_j |h_j|\,\lVert e_j\rVert$.

    The sum is over the accepted steps, with their error estimates
    $e_j = h_j\sum_i \hat b_i k_{ij}$, row by row; the mean over rows is returned. The steps are
    held fixed in gradients, as in all adaptive solves here.

    Source:
        Pal et al. 2021.

    Example:
        >>> y0 = torch.ones(1, 1, dtype=torch.float64)
        >>> end, estimates = solve_with_estimates(lambda t, y: -y, y0, 1e-6)
        >>> bool((end - torch.exp(torch.tensor(-1.0))).abs() < 1e-6), bool(0 < estimates < 1e-6)
        (True, True)
    """
    solver = get_solver(method, None, tolerance, tolerance, None)
    assert isinstance(solver, Adaptive)
    right_side = FuncField(field, None, (), Backprop(), None)
    problem = Problem(right_side, y0, [0.0, 1.0], solver, right_side.stats, ())
    end, total = y0, y0.new_zeros(())
    for step in solver.walk(problem):
        terms = zip(solver.pair.error_weights, step.slopes, strict=True)
        estimate = step.span.size * torch.stack([e * k for e, k in terms]).sum(0)
        total = total + abs(step.span.size) * estimate.flatten(1).norm(dim=1).mean()
        end = step.after
    return end, total
