"""C18-E2: how many evaluations do the forward and the backward solve take at a given tolerance?

Chen et al. (2018, Fig. 3c) report that the backward solve needs about half the evaluations of the
forward one. Here a smooth random field is solved with dopri5 and differentiated with the adjoint,
by this package and by torchdiffeq, at one tolerance for both directions.
"""

import numpy as np
import torch
import torchdiffeq
from numpy.typing import NDArray
from torch import Tensor

from companion import counting, odeint
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.adjoint.random_field import TanhField, relative_error
from companion.observe import count_nfe

_WHY = (
    "The backward system holds the state, its adjoint and one entry for every parameter, and its "
    "error control watches all of them; it takes no fewer steps than the forward solve. "
    "The paper used other solvers: one possible reason, not tested here."
)


@experiment(
    "C18-E2",
    "Evaluations forwards and backwards, and the gradient's error, against the tolerance",
    paper="Chen et al. 2018, Fig. 3c",
    full={
        "fields": 20, "tolerances": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9),
        "outputs": (2, 5, 10, 20, 50, 100),
    },
    tiny={"fields": 1, "tolerances": (1e-2, 1e-3), "outputs": (2, 10)},
    claims=(
        ("C18-E2", "ratio", 0.4, 0.6, "median of backward over forward evaluations", _WHY),
        ("C18-E2", "torchdiffeq_ratio", 0.4, 0.6, "the same with torchdiffeq", _WHY),
    ),
)  # fmt: skip
def c18_e2(
    run: Run, *, fields: int = 5, tolerances: tuple[float, ...] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7),
    outputs: tuple[int, ...] = (2, 10, 50),
) -> Findings:  # fmt: skip
    """Count at every tolerance with one output time, then at 1e-6 with several.

    Curves: ``tolerances`` and ``outputs``; of shape ``(tolerances, fields)`` the evaluations
    ``forward``, ``backward``, ``torchdiffeq_forward``, ``torchdiffeq_backward`` and the relative
    errors of the parameters' gradient ``error_adjoint``, ``error_backprop``; of shape
    ``(outputs, fields)`` the first four again, ``outputs_forward`` and so on.
    """

    def count(part: Part, seed: int, tolerance: float = 1e-6, outputs: int = 2) -> dict[str, int]:
        return _Problem(seed, outputs, run.device).counts(tolerance)

    def differ(part: Part, seed: int) -> dict[str, list[float]]:
        return _Problem(seed, 2, run.device).errors(tolerances)

    own = run.seeds(fields)
    curves = named(grids(run, count, tolerance=tolerances, seed=own))
    wide = named(grids(run, count, outputs=outputs, seed=own))
    curves |= {f"outputs_{name}": values for name, values in wide.items()}
    errors = named(grids(run, differ, seed=own))
    curves |= {f"error_{name}": values.T for name, values in errors.items()}
    scalars = {
        f"{whose}ratio": _median(curves[f"{whose}backward"] / curves[f"{whose}forward"])
        for whose in ("", "torchdiffeq_")
    }
    return Findings(scalars, {"tolerances": tolerances, "outputs": outputs, **curves})


def _median(ratios: NDArray[np.float64]) -> float:
    """Return the median, of an even number the smaller one in the middle."""
    return torch.tensor(ratios).median().item()


class _Problem:
    """A random field, start and target, and the loss of a computed solution."""

    def __init__(self, seed: int, times: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.field = TanhField(4, 16, generator, device=device)
        values = torch.randn(2, 10, 4, generator=generator, dtype=torch.float64)
        self.x0, self.target = values.to(device)
        self.t = torch.linspace(0, 3, times, dtype=torch.float64, device=device)
        self.params = tuple(self.field.parameters())

    def gradient(self, xs: Tensor) -> tuple[Tensor, ...]:
        """Return the gradient of the mean squared distance to the target at all later times."""
        return torch.autograd.grad((xs[1:] - self.target).square().mean(), self.params)

    def counts(self, tolerance: float) -> dict[str, int]:
        """Return the evaluations forwards and backwards, here and in torchdiffeq."""
        field, x0, t = self.field, self.x0, self.t
        with counting() as stats:
            xs = odeint(field, x0, t, rtol=tolerance, atol=tolerance, gradient="adjoint")
        self.gradient(xs)
        with count_nfe(field) as counter:
            xs = torchdiffeq.odeint_adjoint(field, x0, t, rtol=tolerance, atol=tolerance)
            forward = counter.lap()
            self.gradient(xs)
        theirs = {"torchdiffeq_forward": forward, "torchdiffeq_backward": counter.total - forward}
        return {"forward": stats.nfe, "backward": stats.nfe_backward, **theirs}

    def errors(self, tolerances: tuple[float, ...]) -> dict[str, list[float]]:
        """Return the relative errors of the adjoint's gradient and of backprop's, by tolerance."""

        def gradient(method: str, tolerance: float) -> tuple[Tensor, ...]:
            field, x0, t = self.field, self.x0, self.t
            xs = odeint(field, x0, t, rtol=tolerance, atol=tolerance, gradient=method)
            return self.gradient(xs)

        exact = gradient("backprop", 1e-10)
        return {
            method: [relative_error(gradient(method, tolerance), exact) for tolerance in tolerances]
            for method in ("adjoint", "backprop")
        }
