"""A residual block that is continuous in depth: the four knobs on one module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from companion.arguments import check_choice, check_number, not_allowed
from companion.basis import Basis, Constant, PiecewiseConstant
from companion.compiled import check_compile, compiled
from companion.depth_field import Asked, DepthField
from companion.depth_weights import DepthWeights, check_alike
from companion.evaluation import check_params
from companion.flat import check_flat, path
from companion.gradients import Gradient, get_gradient, solved
from companion.low_precision import is_half, widened
from companion.methods import get_solver, inherited, takes
from companion.solve import GridSolver, Problem, Solver, check_finite
from companion.transforms import transforming

__all__ = ["OdeBlock", "compiling", "ode_blocks", "refine"]


class OdeBlock(nn.Module):
    r"""Integrate $\dot x = \varepsilon f(x, \theta(t))$ over $[0, 1]$, from input to output.

    With ``method="euler"`` and as many steps as cells this is the residual network
    $x_{n+1} = x_n + \frac{\varepsilon}{N} f(x_n, \theta_n)$, bit for bit (Queiruga et al. 2020,
    section 3; Sander et al. 2022, equation 1). ``scale=steps`` gives the classic residual network.

    Args:
        residual: the field $f$: an ``nn.Module``, copied into every cell, or a function without
            arguments that makes one, called once for each of the basis's nodes (fresh values
            everywhere).
        basis: how parameters vary with depth: a basis from :mod:`companion.basis`, such as
            :class:`~companion.PiecewiseConstant`; ``None`` is :class:`~companion.Constant`.
        method: one of :data:`companion.methods.METHODS`. Adaptive methods solve cell by cell.
        steps: equal steps on $[0, 1]$ (in every cell, for the Adams methods), for methods that take
            some; ``None`` is 1.
        gradient: a name from :data:`companion.gradients.GRADIENTS`, such as ``"backprop"`` or
            ``"reconstruct"``, or a configured method, such as
            :class:`~companion.gradients.Reconstruct`.
        scale: the factor $\varepsilon$ of the residual.
        time: whether the residual is called as ``residual(t, x)`` instead of ``residual(x)``.
        rtol: relative tolerance, for methods that control their error; ``None`` is 1e-7.
        atol: absolute tolerance, likewise; ``None`` is 1e-9.
        params: tensors that the residual reads besides its own, to be differentiated too. All
            gradients but ``"backprop"`` must be told of them.
        flat: whether the residual is evaluated as a straight line of operations; see
            :func:`companion.odeint`. The property ``path`` says whether it is.
        compile: whether the solve runs by compiled pieces; see :func:`companion.odeint`.

    Shapes:
        Input and output have the same shape, one that the residual keeps.

    Stacks are not layers. Every parameter and buffer has one axis more than the residual's, the
    depth, and lives in ``block.weights.stacks``; the residual itself is not registered. So what
    goes through a network layer by layer does not find these, or finds tensors of another rank:
    initialisation or weight decay by rank or by class (``net.apply``),
    ``nn.SyncBatchNorm.convert_sync_batchnorm``, ``torch.optim.swa_utils.update_bn``. Do it to the
    residual beforehand, or with :func:`companion.plain_layers.apply_to_layers`, which shows a
    function one layer after another.

    Raises:
        ValueError: for a bad value of any argument; in ``forward``, if the residual changes the
            state's shape, or the state stops being finite.
        TypeError: for a bad type.

    Example:
        A residual network of 4 layers, and the same weights under a finer, fourth-order graph:

        >>> from companion import PiecewiseConstant
        >>> block = OdeBlock(
        ...     lambda: nn.Linear(2, 2), basis=PiecewiseConstant(cells=4), method="euler", steps=4
        ... )
        >>> fine = block.with_graph(method="rk4", steps=8)
        >>> fine(torch.zeros(1, 2)).shape
        torch.Size([1, 2])
        >>> fine.weights is block.weights
        True
    """

    def __init__(
        self,
        residual: nn.Module | Callable[[], nn.Module],
        basis: Basis | None = None,
        method: str = "euler",
        steps: int | None = None,
        gradient: str | Gradient = "backprop",
        scale: float = 1.0,
        time: bool = False,
        rtol: float | None = None,
        atol: float | None = None,
        params: Sequence[Tensor] = (),
        flat: bool | None = None,
        compile: bool | str = False,
    ) -> None:
        """Stack one copy (or one fresh instance) of ``residual`` for each coefficient."""
        super().__init__()
        basis = Constant() if basis is None else _check_basis(basis)
        self.weights = DepthWeights(_instances(residual, basis.size), basis)
        self.scale = check_number("scale", scale)
        check_choice("time", time, (False, True))
        self.time = time
        self.params = check_params(params)
        self.gradient = gradient
        self.solver = get_solver(method, steps, rtol, atol)
        self.flat, self.backend = check_flat(flat), check_compile(compile)
        self._ways()  # refuses what cannot be compiled

    @classmethod
    def from_modules(
        cls,
        modules: Iterable[nn.Module],
        basis: Basis | None = None,
        *,
        method: str = "euler",
        steps: int | None = None,
        gradient: str | Gradient = "backprop",
        scale: float = 1.0,
        time: bool = False,
        rtol: float | None = None,
        atol: float | None = None,
        params: Sequence[Tensor] = (),
        flat: bool | None = None,
        compile: bool | str = False,
    ) -> OdeBlock:
        """Stack distinct modules of one shape, one a cell, for example a trained network's layers.

        Args:
            modules: at least one module; the names and shapes of their parameters and buffers
                must agree.
            basis: one with as many coefficients as modules; one cell a module if ``None``.
            method: as for the class.
            steps: as for the class; the number of cells if ``None``.
            gradient: as for the class.
            scale: as for the class.
            time: as for the class.
            rtol: as for the class.
            atol: as for the class.
            params: as for the class.
            flat: as for the class.
            compile: as for the class.

        Raises:
            ValueError: if there is no module, their names or shapes differ, or they do not fill
                the basis.

        Example:
            >>> layers = [nn.Linear(3, 3) for _ in range(5)]
            >>> OdeBlock.from_modules(layers).steps
            5
        """
        stack = list(modules)
        check_alike(stack)
        basis = PiecewiseConstant(len(stack)) if basis is None else _check_basis(basis)
        if basis.size != len(stack):
            raise ValueError(
                f"modules: {len(stack)} modules do not fill a basis of {basis.size} coefficients"
            )
        fresh = iter(stack)
        if steps is None and takes("steps", method):
            steps = basis.cells
        return cls(
            lambda: next(fresh),
            basis,
            method,
            steps,
            gradient,
            scale,
            time,
            rtol,
            atol,
            params,
            flat,
            compile,
        )

    @property
    def gradient(self) -> Gradient:
        """How the solve is differentiated; it may be set by name."""
        return self._gradient

    @gradient.setter
    def gradient(self, gradient: str | Gradient) -> None:
        self._gradient = get_gradient(gradient)

    @property
    def method(self) -> str:
        """The integrator's name."""
        return self.solver.method

    @property
    def steps(self) -> int:
        """The number of equal steps.

        Raises:
            ValueError: for a method that chooses its own.
        """
        if self.solver.steps is None:
            raise ValueError(f"steps: method={self.method!r} chooses its own; none are set")
        return self.solver.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self.solver = get_solver(self.method, steps, self.rtol, self.atol)

    @property
    def rtol(self) -> float | None:
        """The relative tolerance, ``None`` for a method that controls no error."""
        return self.solver.rtol

    @property
    def atol(self) -> float | None:
        """The absolute tolerance, ``None`` for a method that controls no error."""
        return self.solver.atol

    @property
    def path(self) -> str:
        """How the residual is evaluated by now: ``"modules"``, ``"flat"`` or ``"compiled"``.

        Example:
            >>> block = OdeBlock(nn.Linear(2, 2), method="rk4", steps=5, flat=True)
            >>> block.path
            'modules'
            >>> y = block(torch.zeros(1, 2))
            >>> block.path
            'flat'
        """
        return path(self.weights.template, self.flat) if self.backend is None else "compiled"

    def compiled(self, compile: bool | str = True) -> OdeBlock:
        """Return a block with the same weights and graph that solves by compiled pieces.

        Example:
            >>> block = OdeBlock(nn.Linear(2, 2), method="rk4", steps=5)
            >>> block.compiled().path, block.compiled().compiled(False).path
            ('compiled', 'modules')
        """
        other = self.with_graph()
        other.backend = check_compile(compile)
        other._ways()
        return other

    def _ways(self) -> tuple[Solver, Gradient]:
        """Return how to solve and how to differentiate."""
        if self.backend is None or torch.compiler.is_compiling():
            return self.solver, self.gradient
        return compiled(self.backend, self.solver, self.gradient)

    @override
    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """Return the state at depth 1; ``context`` is passed on to the residual."""
        self._check_input(x)
        y = self._solved(self.weights.in_format(x), context)[-1]
        # A backward pass of its own reads the state again, and the next layer may work in place.
        return y if self._ways()[1].records_graph or not y.requires_grad else y.clone()

    def states(self, x: Tensor, *context: Any) -> Tensor:
        """Return the states at the ends of all steps, from the input to the output.

        Methods without a fixed grid give those at the ends of the cells. Autograd differentiates
        the states by backprop, whatever the block's gradient is; buffers are updated as by
        :meth:`forward`.

        Returns:
            A tensor of shape ``(steps + 1, *x.shape)``.

        Example:
            >>> OdeBlock(nn.Identity(), steps=2).states(torch.ones(1))
            tensor([[1.0000],
                    [1.5000],
                    [2.2500]])
        """
        self._check_input(x)
        view = self.compiled(False).with_graph(gradient="backprop")
        if not isinstance(self.solver, GridSolver):
            return torch.stack(view._solved(x, context))
        problem = view.problem(x, *context)
        problem = widened(problem) if is_half(x) else problem
        states = [problem.y0, *(carried[0] for _, _, carried in self.solver.walk(problem))]
        check_finite(states, problem, "x")
        return torch.stack(states).to(x.dtype)

    def _solved(self, x: Tensor, context: tuple[Any, ...]) -> list[Tensor]:
        """Return the input, and the states at the ends of whatever is solved at once."""
        if torch._C._get_tracing_state() is not None:
            raise ValueError(
                "block: torch.jit.trace cannot follow weights that are handed to a residual from "
                "outside; use torch.compile or torch.export"
            )
        states = [x]
        for problem in self._problems(x, context):
            ys = solved(replace(problem, y0=states[-1]), self._ways()[1], "x")
            y = ys[-1]
            self._watch(y)
            states.append(y)
        return states

    def _problems(self, x: Tensor, context: tuple[Any, ...]) -> list[Problem]:
        """Return the problems that take ``x`` through all depths, one after another."""
        if self.solver.on_grid:
            return [self.problem(x, *context)]
        if self.scale == 0.0:  # no time passes, and no adaptive solver could step
            return [self.with_graph(method="euler").problem(x, *context)]
        asked, cells = self._asked(context), self.weights.basis.cells
        knots = [self.scale * cell / cells for cell in range(cells + 1)]
        fields = [DepthField(self.weights, asked, cell) for cell in range(cells)]
        return [
            Problem(field, x, span, self.solver, field.stats)
            for field, span in zip(fields, pairwise(knots), strict=True)
        ]

    def problem(self, x: Tensor, *context: Any) -> Problem:
        r"""Return the initial value problem on $[0, \varepsilon]$ that takes ``x`` through.

        Raises:
            ValueError: for a method without a fixed grid: there every cell is a problem.
        """
        if not self.solver.on_grid:
            raise ValueError(
                f"method: {self.method!r} has no fixed grid of steps, and solves cell by cell"
            )
        one = self.weights.basis.cells == 1
        field = DepthField(self.weights, self._asked(context), 0 if one else None)
        return Problem(field, x, (0.0, self.scale), self._ways()[0], field.stats)

    def _asked(self, context: tuple[Any, ...]) -> Asked:
        return Asked(self._ways()[1], self.scale, self.time, self.params, context, self.flat)

    def _watch(self, y: Tensor) -> None:
        """Let a backward pass say clearly that the weights have been refined in the meantime."""
        if torch.compiler.is_compiling() or transforming() or not y.requires_grad:
            return
        weights, basis = self.weights, self.weights.basis

        def check(grad: Tensor) -> None:
            if weights.basis != basis:
                raise ValueError(
                    f"block: its weights were refined or projected between forward and backward, "
                    f"from {basis!r} to {weights.basis!r}; call backward() first, or run forward "
                    "again"
                )

        y.register_hook(check)  # type: ignore[no-untyped-call]

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: {found} is not allowed; pass a floating-point tensor")
        param = next((p for p in self.weights.parameters() if p.is_floating_point()), x)
        if x.device != param.device:
            raise ValueError(f"x: on {x.device}, but the block's weights are on {param.device}")
        if x.dtype != param.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"x: {x.dtype} is not the dtype of the weights, {param.dtype}")

    def with_graph(
        self,
        *,
        method: str | None = None,
        steps: int | None = None,
        gradient: str | Gradient | None = None,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> OdeBlock:
        """Return a block with the same weights and another graph; what is ``None`` stays.

        The weights are shared, not copied: training or refining one trains or refines both. Steps
        and tolerances stay as far as the new method takes some.

        Example:
            >>> block = OdeBlock(nn.Linear(2, 2), method="rk4", steps=2)
            >>> block.with_graph(method="rk4_38", steps=3)
            OdeBlock(Constant(), method='rk4_38', steps=3, gradient=Backprop(), scale=1)
        """
        other = OdeBlock.__new__(OdeBlock)
        nn.Module.__init__(other)
        other.weights, other.scale, other.time = self.weights, self.scale, self.time
        other.training, other.params = self.training, self.params
        other.flat, other.backend = self.flat, self.backend
        other._gradient = self.gradient if gradient is None else get_gradient(gradient)
        method = self.method if method is None else method
        other.solver = get_solver(method, **inherited(self.solver, method, steps, rtol, atol))
        return other

    def refine(self, steps: bool = True) -> None:
        """Double the cells in place and, unless ``steps=False``, this block's steps too.

        Doubling the cells leaves the function as it is: bit for bit with piecewise-constant
        weights, to rounding with others. Doubling the steps is a finer graph of the same weights.
        Every block that shares the weights sees the new cells. Parameters keep their identity.

        Raises:
            TypeError: if the basis has no cells to split.

        Example:
            >>> from companion import PiecewiseConstant
            >>> block = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(cells=2), steps=2)
            >>> block.refine()
            >>> block.weights.basis, block.steps
            (PiecewiseConstant(cells=4), 4)
        """
        self.weights.refine()
        if steps and self.solver.steps is not None:
            self.steps *= 2

    def project(self, basis: Basis) -> OdeBlock:
        """Return a block with the nearest weight functions of another basis, for its own.

        Every parameter is projected in $L^2$ (:func:`companion.basis.project`); a batch norm's
        weight, bias and running statistics are averaged over the cells that merge, or copied. The
        steps stay. Nothing is shared with this block.

        Raises:
            TypeError: if ``basis`` is not one.

        Example:
            >>> from companion import Chebyshev, PiecewiseConstant
            >>> block = OdeBlock(lambda: nn.Linear(2, 2), PiecewiseConstant(cells=8), steps=8)
            >>> block.project(Chebyshev(size=3)).weights.stacks.weight.shape
            torch.Size([3, 2, 2])
        """
        other = copy.deepcopy(self)
        other.weights.project(_check_basis(basis))
        return other

    def __repr__(self) -> str:
        """Return the knobs in one line."""
        knobs = "".join(
            f"{name}={value:g}, "
            for name in ("steps", "rtol", "atol")
            if (value := getattr(self.solver, name)) is not None
        )
        return (
            f"OdeBlock({self.weights.basis!r}, method={self.method!r}, {knobs}"
            f"gradient={self.gradient!r}, scale={self.scale:g})"
        )


def ode_blocks(model: nn.Module) -> list[OdeBlock]:
    """Return the blocks of a model in the order in which they were made."""
    return [module for module in model.modules() if isinstance(module, OdeBlock)]


@contextmanager
def compiling(model: nn.Module, compile: bool | str = True) -> Iterator[None]:
    """Let the blocks of a model solve by compiled pieces inside; ``False`` leaves them as they are.

    Example:
        >>> net = nn.Sequential(OdeBlock(nn.Linear(2, 2)))
        >>> with compiling(net):
        ...     net[0].path
        'compiled'
        >>> net[0].path
        'modules'
    """
    backend = check_compile(compile)
    blocks = [] if backend is None else ode_blocks(model)
    before = [block.backend for block in blocks]
    try:
        for block in blocks:
            block.backend = backend
        yield
    finally:
        for block, old in zip(blocks, before, strict=True):
            block.backend = old


def refine(model: nn.Module) -> dict[nn.Parameter, Basis]:
    """Double cells and steps of every block of a model, in place.

    Blocks that share weights refine those once, and each doubles its own steps.

    Returns:
        The bases that the parameters had before, for
        :func:`companion.train.split_optimiser_state`.

    Raises:
        ValueError: for a model without blocks.
        TypeError: for a block whose basis has no cells to split; nothing is refined then.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), OdeBlock(nn.Linear(2, 2), PiecewiseConstant(4)))
        >>> before = refine(net)
        >>> net[1].weights.basis, net[1].steps
        (PiecewiseConstant(cells=8), 2)
    """
    blocks = ode_blocks(model)
    if not blocks:
        raise ValueError(
            f"model: {type(model).__name__} without an OdeBlock is not allowed; there would be "
            "nothing to refine"
        )
    shared = dict.fromkeys(block.weights for block in blocks)
    for weights in shared:
        weights.basis.refined()
    before: dict[nn.Parameter, Basis] = {}
    for weights in shared:
        before |= weights.bases()
        weights.refine()
    for block in blocks:
        if block.solver.steps is not None:
            block.steps *= 2
    return before


def _check_basis(basis: Basis) -> Basis:
    if isinstance(basis, type) or not hasattr(basis, "refined"):
        raise TypeError(
            not_allowed("basis", basis, "pass a basis such as PiecewiseConstant(cells=8)")
        )
    return basis


def _made(residual: Callable[[], nn.Module]) -> nn.Module:
    try:
        signature(residual).bind()
    except TypeError as error:
        raise TypeError(
            f"residual: a function that cannot be called without arguments is not allowed, it must "
            f"make a module: {error}; give the module itself, or a lambda"
        ) from None
    module = residual()
    if not isinstance(module, nn.Module):
        raise TypeError(f"residual: made a {type(module).__name__}; it must make an nn.Module")
    return module


def _instances(residual: nn.Module | Callable[[], nn.Module], size: int) -> list[nn.Module]:
    if isinstance(residual, nn.Module):
        return [residual] * size
    if not callable(residual):
        raise TypeError(
            not_allowed("residual", residual, "pass a module, or a function that makes one")
        )
    modules = [_made(residual) for _ in range(size)]
    check_alike(modules)
    return modules
