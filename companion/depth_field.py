"""A block's right-hand side: the residual with the weights of the depth it is evaluated at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from companion.basis import Place, locate
from companion.buffers import BufferLog, cloned, read_buffers
from companion.counts import current_stats
from companion.depth_weights import DepthWeights, rows_of
from companion.evaluation import CheckedField, replacing
from companion.flat import LineFinder, state_of, value_of
from companion.gradients import Gradient
from companion.solve import Stage, time_like
from companion.transforms import beneath

__all__ = ["Asked", "DepthField"]

Tensors = dict[str, Tensor]


class Asked(NamedTuple):
    """What a block is asked to compute besides its weights.

    Attributes:
        gradient: how the solve is differentiated.
        scale: the length of the interval that depth [0, 1] is stretched to.
        time: whether the residual is called with the depth.
        params: tensors that the residual reads besides its own.
        context: further arguments of the residual.
        flat: whether to evaluate the residual as a straight line; ``None`` leaves it open.
    """

    gradient: Gradient
    scale: float
    time: bool
    params: tuple[Tensor, ...]
    context: tuple[Any, ...]
    flat: bool | None


class Weights(NamedTuple):
    """Weights of all depths, unbound.

    Attributes:
        coefficients: for every coefficient of the basis, its tensors by name.
        norms: for every cell, those that are constant in it.
        context: further arguments of the residual.
        outside: pairs of other tensors that the residual reads, and what stands for them.
    """

    coefficients: list[Tensors]
    norms: list[Tensors]
    context: tuple[Any, ...]
    outside: list[tuple[Tensor, Tensor]]


class DepthField(CheckedField):
    """The right-hand side of a block for one solve, its stacks unbound once."""

    argument: ClassVar[str] = "residual"
    lines: LineFinder

    def __init__(self, weights: DepthWeights, asked: Asked, cell: int | None = None) -> None:
        """Unbind ``weights``; with ``cell``, read that cell alone, on any grid or none."""
        self.template, self.basis = weights.template, weights.basis
        self.weights, self.asked, self.cell = weights, asked, cell
        self._latest: tuple[Stage, Place] | None = None
        # Tied tensors are unbound once under each name, so that autograd sums their gradients.
        stacks = weights.named()
        norms = weights.per_cell
        coefficients = _rows(_without(stacks, norms), self.basis.size)
        own = _rows({name: stacks[name] for name in norms}, self.basis.cells)
        self.names, self.norm_names = list(coefficients[0]), list(own[0])
        rows = [p for row in (*coefficients, *own) for p in row.values()]
        given = [x for x in asked.context if isinstance(x, Tensor)]
        others = {id(p): p for p in (*asked.params, *given)}  # each once
        self.others = range(len(rows), len(rows) + len(others))
        if cell is not None:  # gradients of other cells' rows need not wait for this solve's
            read = set(self.uses(Stage(0.0)))
            rows = [p if k in read else p.detach() for k, p in enumerate(rows)]
        buffers = dict(weights.stacks.named_buffers(remove_duplicate=False))
        self.buffers = _rows(buffers, self.basis.cells, tied=True)
        self.settled = torch.compiler.is_compiling()
        copying = bool(buffers) and torch.is_grad_enabled() and not self.settled
        self.copied = read_buffers(self.template) if copying else frozenset()
        self.uniform = self.basis.size == 1
        self.lines = LineFinder(self.template, self._called, asked.flat, asked.time)
        super().__init__(
            self.template,
            (*rows, *others.values()),
            not asked.gradient.records_graph,
            current_stats(),
        )
        cells = self.basis.cells
        if cell is None:
            self.knots = tuple(asked.scale * k / cells for k in range(1, cells))

    @override
    def arranged(self, weights: Sequence[Tensor]) -> Weights:
        names, norms = self.names, self.norm_names
        size, cells = self.basis.size, self.basis.cells
        rest = iter(weights)
        coefficients = [{name: next(rest) for name in names} for _ in range(size)]
        own = [{name: next(rest) for name in norms} for _ in range(cells)]
        pairs = zip((self.params[k] for k in self.others), rest, strict=True)
        outside = [(p, new) for p, new in pairs if p is not new]
        known = {id(p): new for p, new in outside}
        context = tuple(known.get(id(x), x) for x in self.asked.context)
        return Weights(coefficients, own, context, outside)

    @override
    def evaluate(
        self, stage: Stage, y: Tensor, weights: Weights, buffers: Tensors | None
    ) -> Tensor:
        if weights.outside:
            with replacing(weights.outside):
                return self.evaluate(stage, y, weights._replace(outside=[]), buffers)
        place = self._place(stage)
        live = self.buffers[place.cell]
        handed = self._handed(live) if buffers is None else buffers
        values = {**self._values(weights, place), **handed}
        lines = self.lines
        line = lines.find(y, values, self._others, stage, y, weights) if lines.able else None
        if line is None:
            value = self._called(values, y, *self._others(stage, y, weights))
        elif line.timed or not self.asked.time:
            value = line(values, y, *self._others(stage, y, weights))
        else:
            value = line(values, y, None, *weights.context)
        if not self.settled:
            self._settle(live, values)
        if buffers is None:
            _write_back(live, values)
        return value

    def _others(self, stage: Stage, y: Tensor, weights: Weights) -> tuple[Any, ...]:
        """Return the arguments besides the state: the time, if the residual takes it, and more."""
        if not self.asked.time:
            return weights.context
        return (time_like(self._depth(stage), y), *weights.context)

    @property
    @override
    def owner(self) -> object:
        return self.template

    @override
    def state(self) -> Hashable:
        given = (None if isinstance(x, Tensor) else value_of(x) for x in self.asked.context)
        return state_of(self.template), self.asked.time, tuple(given)

    @override
    def slot(self, stage: Stage) -> Hashable:
        place = self._place(stage)
        return place.cell, tuple(self.basis.at(place))

    @override
    def shares(self, stage: Stage) -> dict[str, Sequence[tuple[int, float]]]:
        place, width = self._place(stage), len(self.names)
        terms = [(k * width, weight) for k, weight in self.basis.at(place)]
        found: dict[str, Sequence[tuple[int, float]]] = {
            name: [(first + j, weight) for first, weight in terms]
            for j, name in enumerate(self.names)
        }
        start = self.basis.size * width + place.cell * len(self.norm_names)
        return found | {name: [(start + j, 1.0)] for j, name in enumerate(self.norm_names)}

    @override
    def time(self, stage: Stage) -> float:
        return float(self._depth(stage)) if self.asked.time else 0.0

    @override
    def pure(self, values: Tensors, y: Tensor, t: Tensor, others: Sequence[Tensor]) -> Tensor:
        pairs = [(self.params[k], new) for k, new in zip(self.others, others, strict=True)]
        known = {id(p): new for p, new in pairs}
        context = [known.get(id(x), x) for x in self.asked.context]
        with replacing(pairs) if self.asked.params else nullcontext():
            return self._called(values, y, *((t,) if self.asked.time else ()), *context)

    def _called(self, values: Tensors, y: Tensor, *others: Any) -> Tensor:
        """Call the residual with ``values``, at ``y`` and, after the time if it takes one, more."""
        arguments = (others[0], y, *others[1:]) if self.asked.time else (y, *others)
        value: Tensor = torch.func.functional_call(
            self.template, values, arguments, tie_weights=False
        )
        return value

    @override
    def uses(self, stage: Stage) -> list[int]:
        place = self._place(stage) if self.cell is None else Place(self.cell, 0.5)
        width, norms = len(self.names), len(self.norm_names)
        own = (k * width + j for k, _ in self.basis.at(place) for j in range(width))
        start = self.basis.size * width + place.cell * norms
        return [*own, *range(start, start + norms), *self.others]

    @override
    def place(self, stage: Stage) -> Hashable:
        return self._place(stage).cell

    @override
    def live(self, place: Hashable) -> Mapping[str, Tensor]:
        assert isinstance(place, int)  # a cell
        return self.buffers[place]

    @override
    def _new_logs(self) -> dict[Hashable, BufferLog]:
        if not self.buffers[0]:
            return {}
        read, stacks = read_buffers(self.template), self.weights.stacks
        start = cloned(dict(stacks.named_buffers(remove_duplicate=False)))
        copies = _rows(start, self.basis.cells, tied=True)
        cells = range(self.basis.cells) if self.cell is None else (self.cell,)
        return {cell: BufferLog(copies[cell], self.buffers[cell], read) for cell in cells}

    def _handed(self, live: Tensors) -> Tensors:
        """Return the buffers for an evaluation: copies of those that it reads and changes.

        A graph may keep them, and autograd takes a change of one cell's for a change of all.
        """
        if not self.copied:
            return live
        return live | cloned({name: live[name] for name in live if name in self.copied})

    def _settle(self, live: Tensors, values: Tensors) -> None:
        """Look at what the first evaluation did: only what it changed is copied from now on."""
        self.settled = True
        for name, _ in self.template.named_buffers(remove_duplicate=False):
            if name not in live:
                raise ValueError(
                    f"residual: gave its buffer {name!r} a value, which was None when the block "
                    "was made; a block stacks buffers then, so give it its shape and dtype before"
                )
        for name in self.copied:
            if torch.equal(beneath(values[name]), beneath(live[name])):
                values[name] = live[name]
        self.copied = frozenset(name for name in self.copied if values[name] is not live[name])

    def _depth(self, stage: Stage) -> float | Tensor:
        """Return the depth in [0, 1] of a stage; on a grid over all of it, from its place there."""
        if stage.c is not None and (self.cell is None or self.basis.cells == 1):
            return (stage.step + float(stage.c)) * (1.0 / stage.steps)
        return stage.t / self.asked.scale

    def _place(self, stage: Stage) -> Place:
        if self._latest is None or self._latest[0] is not stage:  # an evaluation asks repeatedly
            self._latest = stage, self._locate(stage)
        return self._latest[1]

    def _locate(self, stage: Stage) -> Place:
        if self.cell is not None:
            depth = self._depth(stage)
            depth = depth.detach() if isinstance(depth, Tensor) else depth
            return Place(self.cell, float(depth) * self.basis.cells - self.cell)
        assert stage.c is not None  # OdeBlock confines a field to a cell where there is no grid
        return locate(stage.step, stage.steps, stage.c, self.basis.cells)

    def _values(self, weights: Weights, place: Place) -> Tensors:
        """Return the parameters at a depth: a coefficient itself, or a sum of several."""
        norms = weights.norms[place.cell]
        (first, weight), *rest = self.basis.at(place)
        if not rest and weight == 1.0:
            only = weights.coefficients[first]
            return {**only, **norms} if norms else only
        total = {name: weight * p for name, p in weights.coefficients[first].items()}
        for k, weight in rest:
            for name, p in weights.coefficients[k].items():
                total[name] = total[name].add(p, alpha=weight)
        return {**total, **norms}


def _without(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def _write_back(live: Tensors, values: Tensors) -> None:
    """Store buffers that an evaluation has replaced, or changed in a copy."""
    for name, buffer in live.items():
        if values[name] is not buffer:
            with torch.no_grad():
                buffer.copy_(values[name])


def _rows(stacks: Mapping[str, Tensor], size: int, tied: bool = False) -> list[Tensors]:
    """Unbind stacked tensors into one dictionary for each entry of their leading axis.

    With ``tied``, what is one stack under two names is one entry.
    """
    if not stacks:
        return [{} for _ in range(size)]
    found = {id(stack): stack.unbind(0) for stack in stacks.values()} if tied else {}
    names = Counter(map(id, stacks.values()))
    unbound = (found.get(id(s)) or _own_rows(s, names[id(s)] > 1) for s in stacks.values())
    entries = zip(*unbound, strict=True)
    return [dict(zip(stacks, entry, strict=True)) for entry in entries]


def _own_rows(stack: Tensor, shared: bool) -> Sequence[Tensor]:
    """Return the rows of a stack; of one under several names, tensors that no other name has."""
    rows = rows_of(stack)
    return [row.view_as(row) for row in rows] if shared else rows
