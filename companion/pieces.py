"""Compiled solves: a few steps as one pure function of tensors, its pull-back, and both compiled.

A piece of a solve is a function of the state, times, step sizes, weights and buffers. Nothing else
is read or written, so that one compiled piece serves every step, time and weight: another grid,
another number of steps, another layer compile nothing. Its pull-back evaluates the piece again and
returns the gradients of the state and the weights. Gradient methods differ in what they keep and in
the order in which they call the two.

Each piece is traced to a list of operations, as in :mod:`companion.flat`, and handed to
:func:`torch.compile` as a function of its own. Dynamo counts what it compiled by code, and past a
limit falls back to plain Python without a word; a function of its own never meets the limit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.random import fork_rng

from companion.buffers import cloned, read_buffers
from companion.evaluation import CheckedField, Recomputed
from companion.first_evaluation import first_evaluation
from companion.gradients.function import Given
from companion.gradients.randomness import SeededField
from companion.schemes import Tableau
from companion.solve import Field, Problem, Stage, Step

__all__ = ["MOST_GRAPHS", "Inputs", "Parts", "Piece", "Pure", "Work", "check_times", "dense"]

MOST_GRAPHS = 16
"""Graphs that are compiled for one field before it is an error that ever more are needed."""

SMALL = 1_000_000
"""Products in an evaluation up to which a piece holds ``STEPS`` steps, above it one."""

STEPS = 4

FORWARD = {"ahead": "states", "attempt": "attempted"}
"""The kinds of pieces that change buffers, and what evaluates them."""

THIN = 4
"""The longest edge of a product of matrices that is written as a sum."""

OPTIONS = {"cpp_wrapper": True, "cpp.use_decompose_tanh": True}
"""Options of Inductor for many small operations: no Python between kernels, tanh by exp."""

Tensors = dict[str, Tensor]
Reads = tuple[tuple[tuple[int, int], ...], ...]


class Piece(NamedTuple):
    """A few steps, as tensors and as what tells one compiled function from another.

    Attributes:
        steps: the steps.
        times: the times of all stages, one row a step; rows of padding come first.
        sizes: the lengths of the steps; those of padding are zero.
        slots: a stage for each set of weights that is read.
        places: the sets of buffers that are found.
        reads: for every step and stage, the indices of its slot and its place.
    """

    steps: list[Step]
    times: Tensor
    sizes: Tensor
    slots: list[Stage]
    places: list[Hashable]
    reads: Reads


class Work:
    """A field seen as pure pieces: what they are given, and where their results go."""

    def __init__(self, field: Field, scheme: Tableau, backend: str, y: Tensor) -> None:
        while isinstance(field, SeededField):  # random numbers are refused: nothing to seed
            field = field.field
        if not isinstance(field, CheckedField | Recomputed):
            raise ValueError(
                "compile: a state in half precision is not compiled; use float32 under autocast, "
                "or compile=False"
            )
        self.again = isinstance(field, Recomputed)
        self.field = field.field if isinstance(field, Recomputed) else field
        self.params, self.stats = field.params, field.stats
        self.scheme, self.backend = scheme, backend
        self.weights: list[Tensor] | None = None
        self.graphs: dict[Hashable, Graph] = {}  # those of this pass
        self.device = y.device.type
        self.cast = torch.is_autocast_enabled(self.device)
        self.cast_dtype = torch.get_autocast_dtype(self.device)

    def calling(self) -> AbstractContextManager[object]:
        """Return a context for calls: without autocast, whose casts are operations of a piece."""
        return torch.autocast(self.device, enabled=False) if self.cast else nullcontext()

    def tracing(self) -> AbstractContextManager[object]:
        """Return a context for traces: with the autocast of the solve."""
        return torch.autocast(self.device, self.cast_dtype, self.cast, cache_enabled=False)

    def pure(self, piece: Piece, inputs: Inputs, wanted: Any) -> Pure:
        """Return the functions of a piece."""
        return Pure(self, piece, inputs, wanted)

    def piece(self, step: Step, y: Tensor) -> Piece:
        """Return a piece of one step."""
        return self.pieces([step], y, 1)[0]

    def pieces(self, steps: list[Step], y: Tensor, size: int | None = None) -> list[Piece]:
        """Return all steps in pieces of one length; the first is filled up with padding.

        Padding repeats the first stage of the solve with steps of length zero.
        """
        size, scheme, field = size or self._length(y), self.scheme, self.field
        padding = -len(steps) % size
        places = list(zip(range(scheme.stages), scheme.c, scheme.fractions, strict=True))
        stages = [[step.stage(c, x, i) for i, c, x in places] for step in steps]
        rows = [[stages[0][0]] * scheme.stages] * padding + stages
        times = [[field.time(stage) for stage in row] for row in rows]
        sizes = [0.0] * padding + [float(step.size(y)) for step in steps]
        whole: list[Step | None] = [*[None] * padding, *steps]
        cuts = range(0, len(rows), size)
        tensors = [
            y.new_tensor(times).view(-1, size, scheme.stages).unbind(),
            y.new_tensor(sizes).view(-1, size).unbind(),
        ]
        return [
            Piece([x for x in whole[n : n + size] if x], t, h, *self.reads(rows[n : n + size]))
            for n, t, h in zip(cuts, *tensors, strict=True)
        ]

    def _length(self, y: Tensor) -> int:
        """Return how many steps a piece has: few evaluations of many products need no company."""
        if not self.field.uniform or self.field.live(self.field.place(Stage(0.0))):
            return 1
        products = sum(p.numel() for p in self.params) * (y.shape[0] if y.dim() > 1 else 1)
        return STEPS if max(products, 100 * y.numel()) <= SMALL else 1

    def reads(self, rows: Sequence[Sequence[Stage]]) -> tuple[list[Stage], list[Hashable], Reads]:
        """Return the slots, places and reads of a piece."""
        field = self.field
        if field.uniform:
            stage = rows[0][0]
            return [stage], [field.place(stage)], (((0, 0),) * len(rows[0]),) * len(rows)
        slots: dict[Hashable, int] = {}
        places: dict[Hashable, int] = {}
        found: list[Stage] = []

        def pair(stage: Stage) -> tuple[int, int]:
            slot = slots.setdefault(field.slot(stage), len(slots))
            if slot == len(found):
                found.append(stage)
            return slot, places.setdefault(field.place(stage), len(places))

        reads = tuple(tuple(map(pair, row)) for row in rows)
        return found, list(places), reads

    def ahead(self, piece: Piece, y: Tensor) -> list[Tensor]:
        """Return the states after the steps of a piece; update the buffers in a forward solve."""
        self.count(self.scheme.stages * len(piece.steps))
        states = self.forwards("ahead", piece, [y, piece.times, piece.sizes])
        return states[len(piece.sizes) - len(piece.steps) :]

    def find(self, kind: str, piece: Piece, first: list[Tensor]) -> None:
        """Trace and compile a piece if it is new."""
        self._graph(kind, piece, self._inputs(piece, first))

    def forwards(self, kind: str, piece: Piece, first: list[Tensor]) -> list[Tensor]:
        """Call a piece that goes forwards; return its values, and update the buffers."""
        inputs = self._inputs(piece, first)
        graph = self._graph(kind, piece, inputs)
        with torch.no_grad():
            found = list(graph.function(*[x.detach() for x in inputs.all]))
            if not graph.changed:
                return found
            values, changed = found[: -len(graph.changed)], found[-len(graph.changed) :]
            if not self.again:
                live = [self.field.live(place) for place in piece.places]
                for (k, name), new in zip(graph.changed, changed, strict=True):
                    live[k][name].copy_(new)
        return values

    def increment(self, piece: Piece, y: Tensor) -> Tensor:
        """Return what a step adds to the state, with a graph if autograd records."""
        inputs = self._inputs(piece, [y, piece.times, piece.sizes])
        recording = torch.is_grad_enabled()
        graph = self._graph("increment", piece, inputs)
        self.count(self.scheme.stages)
        tensors = inputs.all if recording else [x.detach() for x in inputs.all]
        value: Tensor = graph.function(*tensors)[0]
        return value

    def back(self, piece: Piece, y: Tensor, cotangents: Tensor, given: Given) -> Tensor:
        """Pull the gradients at the ends of the steps back to ``y``; add those of weights."""
        self.count(self.scheme.stages * len(piece.steps))
        return self.backwards("back", piece, [y, piece.times, piece.sizes, cotangents], given)

    def backwards(self, kind: str, piece: Piece, first: list[Tensor], given: Given) -> Tensor:
        """Call a piece that goes back; add the gradients of weights, return that of the state."""
        sums = given.sums.params
        inputs = self._inputs(piece, first)
        others = sums.select(self.field.others)
        shares = [list(self.field.shares(stage).values()) for stage in piece.slots]
        wanted = [
            [k for k, terms in enumerate(part) if sums.wanted[terms[0][0]]] for part in shares
        ]
        graph = self._graph(kind, piece, inputs, (tuple(others), tuple(map(tuple, wanted))))
        with torch.no_grad():
            a, *grads = graph.function(*[x.detach() for x in inputs.all])
        sums.add(others, grads[: len(others)], 1.0)
        rest = iter(grads[len(others) :])
        for part, indices in zip(shares, wanted, strict=True):
            for k in indices:
                grad = next(rest)
                for index, factor in part[k]:
                    sums.add([index], [grad], factor)
        found: Tensor = a
        return found

    def count(self, evaluations: int) -> None:
        """Count evaluations."""
        if self.stats is None:
            return
        if self.again:
            self.stats.nfe_backward += evaluations
        else:
            self.stats.nfe += evaluations

    def _inputs(self, piece: Piece, first: list[Tensor]) -> Inputs:
        weights = self.weights
        if weights is None:
            weights = [x for stage in piece.slots for x in self._made(stage)]
            if self.field.uniform:
                self.weights = weights
        buffers = [self.field.found(place, piece.slots[0], self.again) for place in piece.places]
        others = [self.params[k] for k in self.field.others]
        return Inputs(first, others, weights, buffers)

    def _made(self, stage: Stage) -> Iterator[Tensor]:
        """Yield the parameters that the module has at a stage, sums of the field's own."""
        for terms in self.field.shares(stage).values():
            values = [
                self.params[k] if factor == 1.0 else factor * self.params[k] for k, factor in terms
            ]
            yield sum(values[1:], values[0])

    def _graph(self, kind: str, piece: Piece, inputs: Inputs, wanted: Hashable = None) -> Graph:
        here = (kind, piece.reads, wanted, *(x.stride() for x in inputs.first))
        if here not in self.graphs:
            self.graphs[here] = self._kept(kind, piece, inputs, wanted)
        return self.graphs[here]

    def _kept(self, kind: str, piece: Piece, inputs: Inputs, wanted: Hashable) -> Graph:
        differentiable = kind == "increment" and torch.is_grad_enabled()
        key = Key(
            kind=kind,
            method=self.scheme.name,
            layout=piece.reads,
            module=self.field.state(),
            state=tuple(map(_shown, inputs.first)),
            tensors=tuple(map(_shown, (*inputs.others, *inputs.weights, *inputs.buffered))),
            gradients=(wanted, differentiable and _wanting(inputs.all)),
            autocast=self.cast and str(self.cast_dtype),
            inference=torch.is_inference_mode_enabled(),
            backend=self.backend,
        )
        graphs = _graphs_of(self.field.owner)
        if key not in graphs:
            _check_number(graphs, key)
            graphs[key] = _new_graph(self, kind, piece, inputs, wanted, differentiable)
        return graphs[key]


class Inputs(NamedTuple):
    """The inputs of a piece.

    Attributes:
        first: the state, times, sizes and, on the way back, the gradients at the ends of the steps.
        others: tensors that the field reads besides the module's.
        weights: the parameters of the module, for every slot.
        buffers: its buffers by name, for every place.
    """

    first: list[Tensor]
    others: list[Tensor]
    weights: list[Tensor]
    buffers: list[Tensors]

    @property
    def buffered(self) -> list[Tensor]:
        """All buffers."""
        return [x for part in self.buffers for x in part.values()]

    @property
    def all(self) -> list[Tensor]:
        """All tensors, in the order in which a piece takes them."""
        return [*self.first, *self.others, *self.weights, *self.buffered]

    def split(self, tensors: Sequence[Tensor], names: Sequence[str]) -> Parts:
        """Take apart tensors that stand for ``all``."""
        rest = iter(tensors)
        first, others = [[next(rest) for _ in part] for part in (self.first, self.others)]
        slots = len(self.weights) // len(names) if names else 1
        weights = [{name: next(rest) for name in names} for _ in range(slots)]
        buffers = [{name: next(rest).clone() for name in part} for part in self.buffers]
        return Parts(first, others, weights, buffers)


class Parts(NamedTuple):
    """Inputs of a piece inside its function; the buffers are copies, which it may change."""

    first: list[Tensor]
    others: list[Tensor]
    weights: list[Tensors]
    buffers: list[Tensors]


class Key(NamedTuple):
    """What the operations of a piece depend on."""

    kind: str
    method: str
    layout: Hashable
    module: Hashable
    state: Hashable
    tensors: Hashable
    gradients: Hashable
    autocast: Hashable
    inference: bool
    backend: str


_NAMES = {
    "kind": "the kind of piece",
    "method": "the method",
    "layout": "which weights the stages read",
    "module": "the module's mode or attributes",
    "state": "shape, strides, dtype or device of the state",
    "tensors": "shape, strides, dtype or device of its weights and buffers",
    "gradients": "which weights need gradients",
    "autocast": "autocast",
    "inference": "inference mode",
    "backend": "the backend",
}


class Graph(NamedTuple):
    """A compiled piece.

    Attributes:
        function: takes and returns tensors; new values of changed buffers come last.
        changed: the changed buffers: a place's index, and a name.
    """

    function: Callable[..., Sequence[Tensor]]
    changed: list[tuple[int, str]]


_of_fields: WeakKeyDictionary[Any, dict[Key, Graph]] = WeakKeyDictionary()
_of_operations: dict[Hashable, Callable[..., Sequence[Tensor]]] = {}


def _graphs_of(owner: object) -> dict[Key, Graph]:
    try:
        return _of_fields.setdefault(owner, {})
    except TypeError:  # nothing that can be referred to weakly: what is equal is compiled once yet
        return {}


def _check_number(graphs: dict[Key, Graph], new: Key) -> None:
    """Raise an error that names what keeps changing, if a field needs ever more graphs."""
    alike = [key for key in graphs if key.kind == new.kind]
    if len(alike) < MOST_GRAPHS:
        return
    changing = max(Key._fields, key=lambda name: len({getattr(key, name) for key in alike}))
    values = [getattr(key, changing) for key in (*alike[-2:], new)]
    raise ValueError(
        f"compile: {len(alike)} graphs were compiled for one field, and another is needed, because "
        f"{_NAMES[changing]} keeps changing: {', '.join(map(str, values))}; keep it the same "
        "(batches of one size: drop_last=True), or use compile=False"
    )


def _new_graph(
    work: Work, kind: str, piece: Piece, inputs: Inputs, wanted: Any, differentiable: bool
) -> Graph:
    """Trace a piece and compile what was found, unless the same was compiled before."""
    from torch.fx.experimental.proxy_tensor import make_fx  # takes seconds: not at import
    from torch.fx.graph import CodeGen

    function = work.pure(piece, inputs, wanted)
    with torch.inference_mode(False), torch.no_grad(), work.tracing(), fork_rng(devices=[]):
        examples = [x.detach().clone() for x in inputs.all]  # inference mode's would not do
        if not work.again:
            _check_first(work, piece, inputs)
        if kind in FORWARD:
            function.changed = function.changes(kind, *examples)
        try:
            graph = make_fx(getattr(function, kind), _thin_products())(*examples)
        except RuntimeError as error:
            raise ValueError(
                f"compile: {work.field.argument} cannot be traced to a fixed list of operations: "
                f"{str(error).strip().partition(chr(10))[0]}; use compile=False"
            ) from error
    _refuse_randomness(graph, work.field.argument)
    _refuse_followed(function.changed, work.field)
    graph.graph.set_codegen(CodeGen())
    graph.recompile()
    shown = tuple(map(_shown, inputs.all))
    same = (graph.code, shown, differentiable and _wanting(inputs.all), _mode(), work.backend)
    if any(node.op == "get_attr" for node in graph.graph.nodes):  # constants of its own
        return Graph(_compile(graph.forward, work.backend), function.changed)
    if same not in _of_operations:
        _of_operations[same] = _compile(graph.forward, work.backend)
    return Graph(_of_operations[same], function.changed)


class Pure:
    """The pure functions of a piece."""

    def __init__(self, work: Work, piece: Piece, inputs: Inputs, wanted: Any) -> None:
        self.work, self.piece, self.inputs, self.wanted = work, piece, inputs, wanted
        self.changed: list[tuple[int, str]] = []
        self.names = list(work.field.shares(piece.slots[0]))

    def ahead(self, *tensors: Tensor) -> list[Tensor]:
        """Return the states after the steps, then the buffers that have changed."""
        return self.with_changed(self.states, tensors)

    def with_changed(
        self, values: Callable[[Parts], list[Tensor]], tensors: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return values, then the buffers that have changed."""
        parts = self.inputs.split(tensors, self.names)
        return [*values(parts), *(parts.buffers[k][name] for k, name in self.changed)]

    def changes(self, kind: str, *tensors: Tensor) -> list[tuple[int, str]]:
        """Return which buffers a piece changes; batch norm does so without a new version."""
        parts = self.inputs.split(tensors, self.names)
        before = [cloned(part) for part in parts.buffers]
        getattr(self, FORWARD[kind])(parts)
        return [
            (k, name)
            for k, part in enumerate(parts.buffers)
            for name, x in part.items()
            if x._version > 0 or not torch.equal(x, before[k][name])
        ]

    def increment(self, *tensors: Tensor) -> list[Tensor]:
        """Return what a single step adds."""
        parts = self.inputs.split(tensors, self.names)
        y, times, sizes = parts.first[:3]
        return [self.work.scheme.increment(self.stage(parts, times, 0), y, sizes[0])]

    def back(self, *tensors: Tensor) -> list[Tensor]:
        """Return the gradients of the state, then of other tensors and weights that want some."""
        return self.pulled(self.states, lambda first: list(first[3]), tensors)

    def pulled(
        self,
        values: Callable[[Parts], list[Tensor]],
        cotangents: Callable[[list[Tensor]], list[Tensor]],
        tensors: Sequence[Tensor],
    ) -> list[Tensor]:
        """Pull the ``cotangents`` of some values back to the state and whatever wants gradients."""
        with torch.enable_grad():
            parts = self.inputs.split([x.detach() for x in tensors], self.names)
            others, slots = self.wanted
            named = [list(part.values()) for part in parts.weights]
            leaves = [parts.first[0]]
            leaves += [parts.others[self.work.field.others.index(k)] for k in others]
            leaves += [part[k] for part, wanted in zip(named, slots, strict=True) for k in wanted]
            for leaf in leaves:
                leaf.requires_grad_()
            return list(
                torch.autograd.grad(
                    values(parts), leaves, cotangents(parts.first),
                    allow_unused=True, materialize_grads=True,
                )
            )  # fmt: skip

    def states(self, parts: Parts) -> list[Tensor]:
        """Return the states after the steps."""
        y, times, sizes = parts.first[:3]
        states = []
        for j in range(len(self.piece.reads)):
            y = self.work.scheme.step(self.stage(parts, times, j), y, sizes[j])
            states.append(y)
        return states

    def stage(self, parts: Parts, times: Tensor, j: int) -> Callable[[int, Tensor], Tensor]:
        """Return the evaluations of step ``j``."""

        def stage(i: int, y: Tensor) -> Tensor:
            slot, place = self.piece.reads[j][i]
            buffers = parts.buffers[place]
            values = {**parts.weights[slot], **buffers}
            value = self.work.field.pure(values, y, times[j, i], parts.others)
            buffers.update({name: values[name] for name in buffers})
            return value

        return stage


def _check_first(work: Work, piece: Piece, inputs: Inputs) -> None:
    """Check, as every solve does at its first evaluation, what the field returns and reads."""
    names = list(work.field.shares(piece.slots[0]))

    def evaluate(y: Tensor) -> Tensor:
        weights = dict(zip(names, inputs.weights, strict=False))
        values = {**weights, **cloned(inputs.buffers[0])}
        return work.field.pure(values, y, inputs.first[1][0, 0].clone(), inputs.others)

    y = inputs.first[0].detach().clone()
    first_evaluation(evaluate, y, work.field.argument, inputs.all[1:] + list(work.params))


def _refuse_randomness(graph: torch.fx.GraphModule, argument: str) -> None:
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ValueError(
                f"compile: {argument} draws random numbers ({node.target}; dropout in training "
                "mode?), which its compiled recomputation would not repeat; use compile=False"
            )


def _refuse_followed(changed: Sequence[tuple[int, str]], field: CheckedField) -> None:
    read = frozenset() if field.module is None else read_buffers(field.module)
    for _, name in changed:
        if name in read:
            raise ValueError(
                f"compile: {field.argument} changes and reads its buffer {name!r} (spectral_norm "
                "in training mode?), which its compiled recomputation would not find as it was; "
                "use compile=False"
            )


def _compile(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    compiler = os.environ.get("CXX", "g++")
    if backend == "inductor" and not any(map(shutil.which, (compiler, "g++", "clang++"))):
        raise RuntimeError(
            "compile: no C++ compiler was found, and torch.compile needs one on a CPU; install "
            "g++ or clang++ (or name one: CXX=/path/to/g++), or use compile=False"
        )
    options: Any = OPTIONS if backend == "inductor" else None
    # Not dynamic=False, which sets and resets the compiler's settings at every call: no function
    # here ever meets a second shape.
    found: Callable[..., Any] = torch.compile(
        function, fullgraph=True, backend=backend, options=options
    )
    return found


def _thin_products() -> dict[Any, Callable[..., Any]]:
    """Return how to write products of matrices with a short edge: as sums that fuse with others."""
    return {torch.ops.aten.mm.default: _mm, torch.ops.aten.addmm.default: _addmm}


def _mm(a: Tensor, b: Tensor) -> Any:
    if a.shape[1] <= THIN:
        columns = [a[:, k, None] * b[k] for k in range(a.shape[1])]
        return sum(columns[1:], columns[0]) if columns else NotImplemented
    if 0 < b.shape[1] <= THIN:
        return torch.stack([(a * b[:, k]).sum(1) for k in range(b.shape[1])], 1)
    if 0 < a.shape[0] <= THIN:
        return torch.stack([(a[k, :, None] * b).sum(0) for k in range(a.shape[0])], 0)
    return NotImplemented


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    product = _mm(a, b) if beta == alpha == 1 else NotImplemented
    return product if product is NotImplemented else bias + product


def _shown(x: Tensor) -> Hashable:
    return tuple(x.shape), x.stride(), str(x.dtype), str(x.device)


def _wanting(tensors: Sequence[Tensor]) -> Hashable:
    return tuple(x.requires_grad for x in tensors)


def _mode() -> Hashable:
    return torch.is_inference_mode_enabled(), torch.is_grad_enabled()


def dense(x: Tensor) -> Tensor:
    """Return a tensor without gaps or overlaps, so that a piece does not meet ever other strides.

    Gradients of sums, and what was expanded, are the usual others.
    """
    formats = (torch.contiguous_format, torch.channels_last)[: 1 + (x.dim() == 4)]
    return x if any(x.is_contiguous(memory_format=f) for f in formats) else x.contiguous()


def check_times(problem: Problem) -> None:
    """Refuse times that need gradients: a piece has none of theirs."""
    if isinstance(problem.t, Tensor) and problem.t.requires_grad:
        raise ValueError(
            "compile: times that need gradients are not allowed; detach t, or use compile=False"
        )
