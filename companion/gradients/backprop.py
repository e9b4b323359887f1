"""Backpropagation through the solver's own operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from companion.gradients.function import needs_gradient
from companion.solve import Problem, States

__all__ = ["Backprop"]


@dataclass(frozen=True)
class Backprop:
    r"""Let autograd record every operation of the solve.

    The gradient is exact for the discretised problem (discretise, then optimise). Everything that
    the field stores for its backward pass is kept for every stage: memory grows in proportion to
    the number of steps.

    Raises:
        ValueError: for ``scipy_solver``, whose operations autograd cannot see.

    Example:
        >>> import torch
        >>> from companion import odeint
        >>> y0 = torch.ones(1, requires_grad=True)
        >>> y = odeint(lambda t, y: -y, y0, [0.0, 1.0], method="euler", steps=2)
        >>> torch.autograd.grad(y[-1].sum(), y0)
        (tensor([0.2500]),)
    """

    records_graph: ClassVar[bool] = True

    def differentiable_states(self, problem: Problem) -> States:
        """Return the states at all output times."""
        if not problem.solver.recordable and needs_gradient(problem):
            raise ValueError(
                f"gradient: 'backprop' cannot see inside {problem.solver.method}; use "
                "gradient='adjoint'"
            )
        return problem.integrate()
