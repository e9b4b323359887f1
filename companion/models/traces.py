r"""The divergence of a field, $\operatorname{tr} \partial_x f$, as a running cost.

Along a trajectory of $\dot x = f(t, x)$ the logarithm of a density changes by
$-\int \operatorname{tr} \partial_x f\,dt$. Each function here returns the trace at one place, for a
batch of states whose rows do not depend on each other, and goes into
:func:`companion.running_costs.solve_with_costs`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from companion.running_costs import Cost, Moment, fitting, jacobian_rows

__all__ = [
    "BATCHED_FROM",
    "KnowsTrace",
    "batched_trace",
    "exact_trace",
    "hutchinson_trace",
    "one_by_one_trace",
    "random_normals",
]

BATCHED_FROM = 16
"""The dimension from which :func:`exact_trace` takes all its products at once."""


@runtime_checkable
class KnowsTrace(Protocol):
    """A field that computes its own trace, which is cheaper than products with its Jacobian."""

    def velocity_and_trace(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity, shaped like ``x``, and the trace of its Jacobian, ``(batch,)``."""


def exact_trace(at: Moment) -> Tensor:
    r"""Return $\operatorname{tr} \partial_x f$, by a product with the Jacobian for each coordinate.

    Up to 15 coordinates the products are taken one by one, from 16 on all at once.

    Shapes: ``(batch,)``.

    Example:
        >>> x = torch.ones(2, 3)
        >>> exact_trace(Moment(torch.tensor(0.0), x, 2 * x, lambda v: 2 * v))
        tensor([6., 6.])
    """
    return one_by_one_trace(at) if at.y[:1].numel() < BATCHED_FROM else batched_trace(at)


def one_by_one_trace(at: Moment) -> Tensor:
    r"""Return $\sum_k (e_k^\top \partial_x f)_k$ by as many backward passes as coordinates.

    Shapes: ``(batch,)``.

    Source:
        Chen et al. 2018, published code.

    Example:
        >>> x = torch.ones(2, 3)
        >>> one_by_one_trace(Moment(torch.tensor(0.0), x, 2 * x, lambda v: 2 * v))
        tensor([6., 6.])
    """
    total = at.y.new_zeros(len(at.y))
    for k, row in enumerate(jacobian_rows(at)):
        total = total + row[:, k]
    return total


def batched_trace(at: Moment) -> Tensor:
    r"""Return $\operatorname{tr} \partial_x f$ by one backward pass for all coordinates together.

    This is what ``vmap(jacrev(f))`` computes. It needs memory for as many copies of the field's
    intermediate values as there are coordinates.

    Shapes: ``(batch,)``.

    Example:
        >>> x = torch.ones(2, 3)
        >>> batched_trace(Moment(torch.tensor(0.0), x, 2 * x, lambda v: 2 * v))
        tensor([6., 6.])
    """
    flat = at.y.flatten(1)
    size = flat.shape[1]
    units = torch.eye(size, dtype=flat.dtype, device=flat.device)
    units = units[:, None].expand(size, *flat.shape).reshape(size, *at.y.shape)
    # Through autograd, not torch.func, which does not work under saved-tensor hooks.
    jacobians = torch.vmap(at.pull)(units).reshape(size, *flat.shape)
    return jacobians.diagonal(dim1=0, dim2=2).sum(1)


def hutchinson_trace(probe: Tensor) -> Cost:
    r"""Return the cost $\epsilon^\top \partial_x f\,\epsilon$, an estimate by one product.

    Its mean over probes with independent entries of mean 0 and variance 1 is the trace. With
    $S$ the symmetric part of the Jacobian, the variance is $2 (\lVert S\rVert_F^2 -
    \sum_i S_{ii}^2)$ for random signs and $2 \lVert S\rVert_F^2$ for normal entries: signs are
    exact where $S$ is diagonal. One probe serves a whole solve, so that the integrand is a function
    of time. The integral is then an unbiased estimate of a log-density, but its exponential is no
    unbiased estimate of the density: by Jensen's inequality it is too large on average.

    Args:
        probe: shaped like the state, from :func:`companion.running_costs.random_signs` or
            :func:`random_normals`.

    Raises:
        ValueError: when the solve begins, if the probe and the state differ in shape.

    Source:
        Hutchinson 1990; Grathwohl et al. 2019 (one probe for a solve).

    Example:
        >>> from companion.running_costs import random_signs
        >>> x = torch.ones(1, 3)
        >>> trace = hutchinson_trace(random_signs(x, torch.Generator().manual_seed(0)))
        >>> trace(Moment(torch.tensor(0.0), x, 2 * x, lambda v: 2 * v))
        tensor([6.])
    """

    def trace(at: Moment) -> Tensor:
        fixed = fitting(probe, at)
        return (at.pull(fixed) * fixed).flatten(1).sum(1)

    return trace


def random_normals(y: Tensor, generator: torch.Generator) -> Tensor:
    """Return independent standard normal entries, shaped like ``y``: a probe.

    Example:
        >>> random_normals(torch.zeros(2, 3), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """
    drawn = torch.randn(y.shape, generator=generator, device=generator.device, dtype=y.dtype)
    return drawn.to(y)
