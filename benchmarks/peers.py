"""Solves of other libraries: candidates where they are installed (`continuous-depth[bench]`)."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Candidate
from benchmarks.problems import forward_backward

PEERS = ("torchode", "zuko", "diffrax")
"""Optional libraries; torchdiffeq is always there."""


def installed(name: str) -> bool:
    return find_spec(name) is not None


def gaps(names: Sequence[str]) -> dict[str, None]:
    """Return the candidates that cannot run here, by name: gaps in the table."""
    return {name: None for name in names if not installed(name.split()[0])}


def torchode_solve(field: nn.Module, y: Tensor, t: Tensor, rtol: float, atol: float) -> Tensor:
    """Solve by torchode's dopri5, each row with its own steps; the states at all of ``t``."""
    import torchode

    term = torchode.ODETerm(field)
    controller = torchode.IntegralController(atol=atol, rtol=rtol, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)
    times = t.expand(len(y), -1).contiguous()
    found = solver.solve(torchode.InitialValueProblem(y0=y, t_eval=times))
    return found.ys.transpose(0, 1)


def zuko_solve(field: nn.Module, y: Tensor, t: Tensor, rtol: float, atol: float) -> Tensor:
    """Solve by zuko's dopri5, whose gradient is that of the accepted steps; the last state."""
    from zuko.utils import odeint

    return odeint(field, y, t[0], t[-1], tuple(field.parameters()), atol=atol, rtol=rtol)


class Jax:
    """The tanh field of :mod:`benchmarks.problems` with the same weights, for diffrax."""

    def __init__(self, field: nn.Module, y0: Tensor) -> None:
        # One thread, like everybody else; XLA reads this when it starts.
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ.setdefault("XLA_FLAGS", flags)
        import jax

        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_platforms", "cpu")
        self.jax = jax
        self.y0 = self._array(y0)
        # Parameters in torch's order: weight, bias, weight, bias.
        self.params = tuple(self._array(p) for p in field.parameters())

    def _array(self, x: Tensor) -> Any:
        return self.jax.numpy.asarray(x.detach().numpy())

    def field(self, t: Any, y: Any, params: Any) -> Any:
        w1, b1, w2, b2 = params
        return self.jax.numpy.tanh(y @ w1.T + b1) @ w2.T + b2

    def candidate(self, solve: Callable[[Any, Any], Any], differentiate: bool = True) -> Candidate:
        """Return a run of ``solve(y0, params)``, compiled; with gradients of its mean square."""
        jnp = self.jax.numpy

        def loss(y0: Any, params: Any) -> Any:
            ys = solve(y0, params)
            return jnp.mean(ys**2), ys

        if differentiate:
            both = self.jax.jit(self.jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        else:
            both = self.jax.jit(lambda y0, params: ((0, solve(y0, params)), ((), ())))

        def run() -> tuple[Tensor, ...]:
            (_, ys), (grad_y, grads) = both(self.y0, self.params)
            found = (ys, grad_y, *grads) if differentiate else (ys,)
            return tuple(torch.from_numpy(np.array(x)) for x in found)

        return run


def diffrax_solve(
    jax: Jax, end: float, steps: int | None, tolerance: float = 1e-6, outputs: Any = None
) -> Callable[[Any, Any], Any]:
    """Return diffrax's solve of the field: dopri5, or ``steps`` equal steps of it."""
    import diffrax

    save = diffrax.SaveAt(t1=True) if outputs is None else diffrax.SaveAt(ts=outputs)
    if steps is None:
        controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
        solver, dt0 = diffrax.Dopri5(), None
    else:
        controller, solver, dt0 = diffrax.ConstantStepSize(), _rk4(diffrax), end / steps

    def solve(y0: Any, params: Any) -> Any:
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(jax.field), solver, 0.0, end, dt0, y0, params, saveat=save,
            stepsize_controller=controller, max_steps=4096,
        )  # fmt: skip
        return found.ys[-1] if outputs is None else found.ys

    return solve


def _rk4(diffrax: Any) -> Any:
    """Return the classic scheme, which diffrax leaves to its users to define."""
    table = diffrax.ButcherTableau(
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.zeros(4),  # nobody asks: the steps are equal
        c=np.array([0.5, 0.5, 1.0]),
    )

    class RK4(diffrax.AbstractERK):
        tableau: ClassVar[Any] = table
        interpolation_cls: ClassVar[Any] = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

        def order(self, terms: Any) -> int:
            return 4

    return RK4()


def torch_candidate(
    solve: Callable[..., Tensor], field: nn.Module, y0: Tensor, *arguments: Any
) -> Candidate:
    """Return a run, with gradients, of a solve ``solve(field, y, *arguments)``."""
    return partial(
        forward_backward, lambda y: solve(field, y, *arguments), y0, list(field.parameters())
    )
