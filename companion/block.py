"""A residual block that is continuous in depth: the four knobs on one module."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from companion.basis import Basis, Constant, PiecewiseConstant, Place, locate, project
from companion.checks import first_evaluation
from companion.gradients import Adjoint, Gradient, get_gradient
from companion.methods import METHODS, ON_GRID, get_solver
from companion.schemes import SCHEMES
from companion.solve import Problem, Solver, Stage, check_finite, time_like

__all__ = ["DepthWeights", "OdeBlock", "ode_blocks"]

Tensors = dict[str, Tensor]


class DepthWeights(nn.Module):
    """The parameters and buffers of a residual module as functions of depth.

    Every parameter of the module is registered with a leading axis of ``basis.size`` coefficients,
    every buffer with a leading axis of ``basis.cells`` cells, under the module's own names. The
    module itself is kept aside as a template without values: only its code and its mode are used.

    A batch norm's weight and bias are kept one a cell too, in any basis: they belong to the
    running statistics that they scale (Queiruga et al. 2020, equation 30).
    """

    def __init__(self, modules: Sequence[nn.Module], basis: Basis) -> None:
        """Stack ``modules``, the values at the nodes of ``basis``."""
        super().__init__()
        first = modules[0]
        # In a tuple, so that nn.Module does not register the template as a child.
        self._template = (copy.deepcopy(first).to("meta"),)
        self._norms = _norm_parameters(first)  # here: on the meta device nothing is tied
        self.basis = basis
        # The module of the node that is about where the cell is.
        of_cells = [modules[k * basis.size // basis.cells] for k in range(basis.cells)]
        per_cell = self.per_cell
        stacked: dict[int, nn.Parameter] = {}  # by identity: what is tied stays tied
        for name, param in first.named_parameters(remove_duplicate=False):
            if id(param) not in stacked:
                own = of_cells if name in per_cell else modules
                values = torch.stack([m.get_parameter(name).detach() for m in own])
                values = values if name in per_cell else basis.interpolate(values)
                stacked[id(param)] = nn.Parameter(values, requires_grad=param.requires_grad)
            _holder(self, name).register_parameter(_leaf(name), stacked[id(param)])
        buffers: dict[int, Tensor] = {}
        for name, buffer in first.named_buffers(remove_duplicate=False):
            if id(buffer) not in buffers:
                buffers[id(buffer)] = torch.stack([m.get_buffer(name) for m in of_cells])
            holder, leaf = first.get_submodule(name.rpartition(".")[0]), _leaf(name)
            persistent = leaf not in holder._non_persistent_buffers_set
            _holder(self, name).register_buffer(leaf, buffers[id(buffer)], persistent=persistent)

    @property
    def template(self) -> nn.Module:
        """The residual module that every evaluation runs, with values on the meta device."""
        return self._template[0]

    def train(self, mode: bool = True) -> Self:
        """Set training mode, in the template too: batch norm and dropout read it there."""
        self.template.train(mode)
        return super().train(mode)

    @property
    def per_cell(self) -> tuple[str, ...]:
        """Names of the parameters that are constant in every cell though the basis is not."""
        if isinstance(self.basis, Constant | PiecewiseConstant):
            return ()
        return self._norms

    def bases(self) -> dict[nn.Parameter, Basis]:
        """Return the basis of every parameter: the block's, or one constant a cell.

        Example:
            >>> from companion import PiecewiseLinear
            >>> unit = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
            >>> weights = DepthWeights([unit, unit, unit], PiecewiseLinear(cells=2))
            >>> [str(basis) for basis in weights.bases().values()][1:3]
            ['PiecewiseLinear(cells=2)', 'PiecewiseConstant(cells=2)']
        """
        per_cell, cells = self.per_cell, PiecewiseConstant(self.basis.cells)
        named = self.named_parameters()
        return {param: cells if name in per_cell else self.basis for name, param in named}

    def at(self, place: Place) -> Tensors:
        """Return the parameters and buffers at a depth, under the residual's names."""
        bases, found = self.bases(), {}
        for name, param in self.named_parameters(remove_duplicate=False):
            terms = [weight * param[k] for k, weight in bases[param].at(place)]
            found[name] = sum(terms[1:], terms[0])
        buffers = self.named_buffers(remove_duplicate=False)
        return found | {name: buffer[place.cell] for name, buffer in buffers}

    @torch.no_grad()
    def refine(self) -> None:
        """Split every cell in two in place; the weight functions do not change.

        Raises:
            TypeError: if the basis has no cells to split.
        """
        finer = self.basis.refined()
        for param, basis in self.bases().items():
            _resize(param, basis.refine(param.data))
        self._map_buffers(lambda buffer: buffer.repeat_interleave(2, dim=0))
        self.basis = finer

    @torch.no_grad()
    def project(self, basis: Basis) -> None:
        """Take the nearest weight functions of another basis, in place; see OdeBlock.project."""
        cells, old = PiecewiseConstant(basis.cells), PiecewiseConstant(self.basis.cells)
        for name, param in self.named_parameters():
            own, new = (old, cells) if name in self._norms else (self.basis, basis)
            _resize(param, project(param.data, own, new))
        self._map_buffers(
            lambda b: project(b, old, cells) if b.is_floating_point() else _sampled(b, basis.cells)
        )
        self.basis = basis

    def _map_buffers(self, function: Callable[[Tensor], Tensor]) -> None:
        mapped: dict[int, Tensor] = {}
        for module in self.modules():
            for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
                if id(buffer) not in mapped:
                    mapped[id(buffer)] = function(buffer)
                setattr(module, name, mapped[id(buffer)])


class DepthField:
    """The right-hand side of a block for one solve, its stacks unbound once."""

    def __init__(
        self, weights: DepthWeights, time: bool, gradient: Gradient, cell: int | None = None
    ) -> None:
        """Unbind ``weights``; with ``cell``, read that cell alone, on any grid or none."""
        self.module: nn.Module | None = weights.template
        self.template = weights.template
        self.basis = weights.basis
        self.time = time
        self.cell = cell
        # Tied tensors are unbound once under each name, so that autograd sums their gradients.
        stacks = dict(weights.named_parameters(remove_duplicate=False))
        norms = weights.per_cell
        self.coefficients = _rows(_without(stacks, norms), self.basis.size)
        self.norms = _rows({name: stacks[name] for name in norms}, self.basis.cells)
        self.width = len(stacks) - len(norms)
        self.checked = torch.compiler.is_compiling()
        own = tuple(p for row in (*self.coefficients, *self.norms) for p in row.values())
        named = {id(p): p for p in gradient.params or ()}  # each once
        self.params = (*own, *named.values())
        self.others = range(len(own), len(self.params))
        self.finds_params = not gradient.records_graph and torch.is_grad_enabled()
        buffers = dict(weights.named_buffers(remove_duplicate=False))
        self.buffers = _rows(buffers, self.basis.cells)
        self.kept = _rows(_cloned(buffers), self.basis.cells) if self.finds_params else None
        self.recomputing = False

    def __call__(self, stage: Stage, y: Tensor) -> Tensor:
        """Evaluate the residual with the weights of the stage's depth."""
        if self.checked:
            return self._evaluate(stage, y)
        self.checked = True
        known = self.params if self.finds_params else None
        return first_evaluation(lambda y: self._evaluate(stage, y), y, "residual", known)

    def _evaluate(self, stage: Stage, y: Tensor) -> Tensor:
        place = self._place(stage)
        buffers = self.buffers[place.cell]
        values = {**self._weights(place), **(_cloned(buffers) if self.recomputing else buffers)}
        arguments = (time_like(stage.t, y), y) if self.time else (y,)
        value: Tensor = torch.func.functional_call(
            self.template, values, arguments, tie_weights=False
        )
        return value

    def uses(self, stage: Stage) -> list[int]:
        """Return the indices of the parameters that the stage's depth (or its cell) reads."""
        place = self._place(stage) if self.cell is None else Place(self.cell, 0.5)
        pairs = self.basis.at(place)
        own = (k * self.width + j for k, _ in pairs for j in range(self.width))
        norms = len(self.norms[0])
        start = len(self.coefficients) * self.width + place.cell * norms
        return [*own, *range(start, start + norms), *self.others]

    def recomputation(self) -> DepthField:
        """Return the same field for a backward pass: it leaves the stacked buffers alone.

        Every evaluation finds the buffers as they were when the forward solve began.
        """
        again = copy.copy(self)
        again.checked = again.recomputing = True
        again.buffers = self.buffers if self.kept is None else self.kept
        return again

    def _place(self, stage: Stage) -> Place:
        if self.cell is not None:
            t = stage.t.detach() if isinstance(stage.t, Tensor) else stage.t
            return Place(self.cell, float(t) * self.basis.cells - self.cell)
        assert stage.c is not None  # OdeBlock confines a field to a cell where there is no grid
        return locate(stage.step, stage.steps, stage.c, self.basis.cells)

    def _weights(self, place: Place) -> Tensors:
        """Return the parameters at a depth: a coefficient itself, or a sum of several."""
        norms = self.norms[place.cell]
        (first, weight), *rest = self.basis.at(place)
        if not rest and weight == 1.0:
            return {**self.coefficients[first], **norms}
        total = {name: weight * p for name, p in self.coefficients[first].items()}
        for k, weight in rest:
            for name, p in self.coefficients[k].items():
                total[name] = total[name].add(p, alpha=weight)
        return {**total, **norms}


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
        steps: equal steps on $[0, 1]$ (in every cell, for the Adams methods).
        gradient: a name from :data:`companion.gradients.GRADIENTS`, such as ``"backprop"`` or
            ``"reconstruct"``, or a configured method, such as
            :class:`~companion.gradients.Reconstruct`.
        scale: the factor $\varepsilon$ of the residual.
        time: whether the residual is called as ``residual(t, x)`` instead of ``residual(x)``.
        rtol: relative tolerance of adaptive methods.
        atol: absolute tolerance of adaptive methods.

    Shapes:
        Input and output have the same shape, one that the residual keeps.

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
        steps: int = 1,
        gradient: str | Gradient = "backprop",
        scale: float = 1.0,
        time: bool = False,
        rtol: float = 1e-7,
        atol: float = 1e-9,
    ) -> None:
        """Stack one copy (or one fresh instance) of ``residual`` for each coefficient."""
        super().__init__()
        basis = Constant() if basis is None else _check_basis(basis)
        self.weights = DepthWeights(_instances(residual, basis.size), basis)
        self.scale = _finite(scale)
        self.time = time
        self._set_graph(method, steps, gradient, rtol, atol)

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

        Raises:
            ValueError: if there is no module, their names or shapes differ, or they do not fill
                the basis.

        Example:
            >>> layers = [nn.Linear(3, 3) for _ in range(5)]
            >>> OdeBlock.from_modules(layers).steps
            5
        """
        stack = list(modules)
        _check_alike(stack)
        basis = PiecewiseConstant(len(stack)) if basis is None else basis
        if basis.size != len(stack):
            raise ValueError(
                f"modules: {len(stack)} modules do not fill a basis of {basis.size} coefficients"
            )
        fresh = iter(stack)
        steps = basis.cells if steps is None else steps
        return cls(lambda: next(fresh), basis, method, steps, gradient, scale, time)

    def _set_graph(
        self, method: str, steps: int, gradient: str | Gradient, rtol: float, atol: float
    ) -> None:
        self.gradient = get_gradient(gradient)
        self.method, self.steps, self.rtol, self.atol = method, steps, rtol, atol
        self._solver()

    def _solver(self) -> Solver:
        return get_solver(self.method, self.steps, self.rtol, self.atol)

    def forward(self, x: Tensor) -> Tensor:
        """Return the state at depth 1."""
        self._check_input(x)
        solver, cells = self._solver(), self.weights.basis.cells
        if isinstance(solver, ON_GRID):
            return self._solve(self.problem(x))
        for cell in range(cells):
            field = DepthField(self.weights, self.time, self.gradient, cell)
            span = (cell / cells, (cell + 1) / cells)
            x = self._solve(Problem(field, x, span, solver, self.scale))
        return x

    def problem(self, x: Tensor) -> Problem:
        """Return the initial value problem that takes ``x`` through all depths at once.

        Raises:
            ValueError: for a method without a fixed grid: there every cell is a problem.
        """
        solver, cells = self._solver(), self.weights.basis.cells
        if not isinstance(solver, ON_GRID):
            raise ValueError(
                f"method: {self.method!r} has no fixed grid of steps, and solves cell by cell"
            )
        if cells > 1:
            self._check_backward(cells)
        field = DepthField(self.weights, self.time, self.gradient, 0 if cells == 1 else None)
        return Problem(field, x, (0.0, 1.0), solver, self.scale)

    def _check_backward(self, cells: int) -> None:
        """Refuse to go back over all cells at once with a solver that would step across knots."""
        method = self.gradient.method if isinstance(self.gradient, Adjoint) else None
        if method is not None and method in METHODS and method not in SCHEMES:
            raise ValueError(
                f"gradient: Adjoint(method={method!r}) would step across the knots between "
                f"{cells} cells that method={self.method!r} solves at once; use one of "
                f"{', '.join(SCHEMES)} backwards, or {method!r} forwards too"
            )

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: {found} is not allowed; pass a floating-point tensor")
        param = next((p for p in self.weights.parameters() if p.is_floating_point()), x)
        if x.device != param.device:
            raise ValueError(f"x: on {x.device}, but the block's weights are on {param.device}")
        if x.dtype != param.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"x: {x.dtype} is not the dtype of the weights, {param.dtype}")

    def _solve(self, problem: Problem) -> Tensor:
        ys = self.gradient.solve(problem)
        if not torch.compiler.is_compiling():
            check_finite(ys, problem)
        return ys[-1]

    def with_graph(
        self,
        *,
        method: str | None = None,
        steps: int | None = None,
        gradient: str | Gradient | None = None,
    ) -> OdeBlock:
        """Return a block with the same weights and another graph; what is ``None`` stays.

        The weights are shared, not copied: training or refining one trains or refines both.

        Example:
            >>> block = OdeBlock(nn.Linear(2, 2), method="rk4", steps=2)
            >>> block.with_graph(method="rk4_38", steps=3)
            OdeBlock(Constant(), method='rk4_38', steps=3, gradient=Backprop(), scale=1)
        """
        other = OdeBlock.__new__(OdeBlock)
        nn.Module.__init__(other)
        other.weights, other.scale, other.time = self.weights, self.scale, self.time
        other.training = self.training
        other._set_graph(
            self.method if method is None else method,
            self.steps if steps is None else steps,
            self.gradient if gradient is None else gradient,
            self.rtol,
            self.atol,
        )
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
        if steps:
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
            >>> block.project(Chebyshev(size=3)).weights.weight.shape
            torch.Size([3, 2, 2])
        """
        other = copy.deepcopy(self)
        other.weights.project(_check_basis(basis))
        return other

    def __repr__(self) -> str:
        """Return the knobs in one line."""
        return (
            f"OdeBlock({self.weights.basis!r}, method={self.method!r}, steps={self.steps}, "
            f"gradient={self.gradient!r}, scale={self.scale:g})"
        )


def ode_blocks(model: nn.Module) -> list[OdeBlock]:
    """Return the blocks of a model in the order in which they were made."""
    return [module for module in model.modules() if isinstance(module, OdeBlock)]


def _norm_parameters(residual: nn.Module) -> tuple[str, ...]:
    """Return the names of the weights and biases of norms that keep running statistics."""
    norms = {
        id(param)
        for module in residual.modules()
        if isinstance(module, _NormBase) and module.track_running_stats
        for param in module.parameters(recurse=False)
    }
    named = residual.named_parameters(remove_duplicate=False)
    return tuple(name for name, param in named if id(param) in norms)


def _sampled(buffer: Tensor, cells: int) -> Tensor:
    """Return what cannot be averaged, such as a count, at the left ends of ``cells`` cells."""
    return buffer[[k * len(buffer) // cells for k in range(cells)]]


def _without(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def _cloned(tensors: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _rows(stacks: Mapping[str, Tensor], size: int) -> list[Tensors]:
    """Unbind stacked tensors into one dictionary for each entry of their leading axis."""
    if not stacks:
        return [{} for _ in range(size)]
    entries = zip(*(stack.unbind(0) for stack in stacks.values()), strict=True)
    return [dict(zip(stacks, entry, strict=True)) for entry in entries]


def _resize(param: nn.Parameter, values: Tensor) -> None:
    """Give a parameter values of another shape, even while an older graph is alive.

    Autograd remembers a leaf's shape for as long as a graph that uses it lives. It forgets only
    when the dtype changes: hence the detour through an empty tensor of another one. The older graph
    itself must not run backward any more; an operation in place makes autograd say so.
    """
    param.mul_(1.0)
    param.grad = None
    other = torch.float32 if values.dtype == torch.float64 else torch.float64
    param.data = torch.empty(0, dtype=other, device=values.device)
    param.data = values


def _check_basis(basis: Basis) -> Basis:
    if isinstance(basis, type) or not hasattr(basis, "refined"):
        raise TypeError(
            f"basis: {basis!r} is not allowed; pass a basis such as PiecewiseConstant(cells=8)"
        )
    return basis


def _finite(scale: object) -> float:
    if not isinstance(scale, int | float):
        raise TypeError(f"scale: {scale!r} is not allowed; it must be a number")
    if not math.isfinite(scale):
        raise ValueError(f"scale: {scale!r} is not allowed; it must be finite")
    return float(scale)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _holder(root: nn.Module, name: str) -> nn.Module:
    """Return the container for ``name`` below ``root``, made like the residual's own tree."""
    module = root
    for part in name.split(".")[:-1]:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    return module


def _instances(residual: nn.Module | Callable[[], nn.Module], size: int) -> list[nn.Module]:
    if isinstance(residual, nn.Module):
        return [residual] * size
    if not callable(residual):
        raise TypeError(
            f"residual: {residual!r} is not allowed; pass a module, or a function without "
            "arguments that makes one"
        )
    modules = [residual() for _ in range(size)]
    _check_alike(modules)
    return modules


def _check_alike(modules: Sequence[nn.Module]) -> None:
    """Check that modules can be stacked."""
    if not modules or not all(isinstance(m, nn.Module) for m in modules):
        raise ValueError("modules: at least one nn.Module is needed, and nothing else is allowed")
    for what, describe in (("parameters and buffers", _signature), ("structure", _structure)):
        first = describe(modules[0])
        for k, module in enumerate(modules):
            if describe(module) != first:
                raise ValueError(
                    f"modules: number {k} differs from number 0 in its {what}: "
                    f"{describe(module)} against {first}"
                )


def _signature(module: nn.Module) -> list[tuple[object, ...]]:
    """Return what has to agree for tensors to be stacked."""
    params = [(n, tuple(p.shape), p.dtype, p.requires_grad) for n, p in module.named_parameters()]
    return [*params, *((n, tuple(b.shape), b.dtype) for n, b in module.named_buffers())]


def _structure(module: nn.Module) -> list[tuple[object, ...]]:
    """Return what the template's code depends on, as far as modules show it."""
    # Classes by name: a parametrised module has a class of its own.
    return [
        (n, type(m).__qualname__, m.extra_repr(), m.training) for n, m in module.named_modules()
    ]
