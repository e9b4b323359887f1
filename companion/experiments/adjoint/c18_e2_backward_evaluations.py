"""C18-E2: how many evaluations do the forward and the backward solve take at a given tolerance?

Chen et al. (2018, Fig. 3c) report that the backward solve needs about half the evaluations of the
forward one. Here a smooth random field is solved with dopri5 and differentiated with the adjoint,
by this package and by torchdiffeq, at one tolerance for both directions.
"""

import torch
import torchdiffeq
from torch import Tensor

from companion import counting, odeint
from companion.experiments.adjoint.random_field import TanhField, relative_error
from companion.experiments.registry import experiment
from companion.experiments.running import Part, Run
from companion.observe import count_nfe
from companion.results import Claim, Findings

_COUNTS = ("forward", "backward", "torchdiffeq_forward", "torchdiffeq_backward")
_WHY = (
    "The backward system holds the state, its adjoint and one entry for every parameter, and its "
    "error control watches all of them; it takes no fewer steps than the forward solve. "
    "The paper used other solvers: one possible reason, not tested here."
)


@experiment(
    "C18-E2",
    "Evaluations forwards and backwards, and the gradient's error, against the tolerance",
    paper="Chen et al. 2018, Fig. 3c",
    claims=("C18-E2",),
    full={
        "fields": 20,
        "tolerances": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9),
        "outputs": (2, 5, 10, 20, 50, 100),
    },
)
def c18_e2(
    run: Run,
    *,
    fields: int = 5,
    tolerances: tuple[float, ...] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7),
    outputs: tuple[int, ...] = (2, 10, 50),
) -> Findings:
    """Count at every tolerance with one output time, then at 1e-6 with several.

    Curves: ``tolerances`` and ``outputs``; of shape ``(tolerances, fields)`` the evaluations
    ``forward``, ``backward``, ``torchdiffeq_forward``, ``torchdiffeq_backward`` and the relative
    errors of the parameters' gradient ``error_adjoint``, ``error_backprop``; of shape
    ``(outputs, fields)`` the first four again, ``outputs_forward`` and so on. Scalars: ``ratio``
    and ``torchdiffeq_ratio``, medians of backward over forward.
    """

    def count(part: Part, seed: int, tolerance: float, times: int) -> list[int]:
        return _counts(_Problem(run.seed + seed, times, run.device), tolerance)

    def differ(part: Part, seed: int) -> list[list[float]]:
        return _errors(_Problem(run.seed + seed, 2, run.device), tolerances)

    def table(cases: list[tuple[float, int]]) -> dict[str, Tensor]:
        counts = run.map(count, {f"field {seed}, tolerance {tol:g}, {times} times":
                                 (seed, tol, times)
                                 for tol, times in cases for seed in range(fields)})  # fmt: skip
        values = torch.tensor(list(counts.values()), dtype=torch.float64)
        columns = values.reshape(len(cases), fields, -1).permute(2, 0, 1)
        return dict(zip(_COUNTS, columns, strict=True))

    curves = table([(tolerance, 2) for tolerance in tolerances])
    wide = {f"outputs_{name}": curve for name, curve in table([(1e-6, k) for k in outputs]).items()}
    errors = run.map(differ, {f"errors of field {seed}": (seed,) for seed in range(fields)})
    adjoint, backprop = torch.tensor(list(errors.values()), dtype=torch.float64).permute(1, 2, 0)
    ratio = (curves["backward"] / curves["forward"]).median().item()
    theirs = (curves["torchdiffeq_backward"] / curves["torchdiffeq_forward"]).median().item()
    claims = [
        Claim("C18-E2", "median of backward over forward evaluations", ratio,
              low=0.4, high=0.6, note=_WHY),
        Claim("C18-E2", "the same with torchdiffeq", theirs, low=0.4, high=0.6, note=_WHY),
    ]  # fmt: skip
    return Findings(
        {"ratio": ratio, "torchdiffeq_ratio": theirs},
        {"tolerances": tolerances, "outputs": outputs, **curves, **wide,
         "error_adjoint": adjoint, "error_backprop": backprop},
        claims,
    )  # fmt: skip


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


def _counts(problem: _Problem, tolerance: float) -> list[int]:
    """Return the evaluations forwards and backwards, here and in torchdiffeq."""
    field, x0, t = problem.field, problem.x0, problem.t
    with counting() as stats:
        xs = odeint(field, x0, t, rtol=tolerance, atol=tolerance, gradient="adjoint")
    problem.gradient(xs)
    with count_nfe(field) as counter:
        xs = torchdiffeq.odeint_adjoint(field, x0, t, rtol=tolerance, atol=tolerance)
        forward = counter.lap()
        problem.gradient(xs)
        return [stats.nfe, stats.nfe_backward, forward, counter.lap()]


def _errors(problem: _Problem, tolerances: tuple[float, ...]) -> list[list[float]]:
    """Return the relative errors of the adjoint's gradient and of backprop's, by tolerance."""

    def gradient(method: str, tolerance: float) -> tuple[Tensor, ...]:
        return problem.gradient(odeint(problem.field, problem.x0, problem.t, rtol=tolerance,
                                       atol=tolerance, gradient=method))  # fmt: skip

    exact = gradient("backprop", 1e-10)
    return [
        [relative_error(gradient(method, tolerance), exact) for tolerance in tolerances]
        for method in ("adjoint", "backprop")
    ]
