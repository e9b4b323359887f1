"""What every field does besides computing a value: count, check, and remember its buffers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from companion.arguments import not_allowed
from companion.buffers import BufferLog, cloned
from companion.first_evaluation import FirstValue, first_evaluation
from companion.flat import LineFinder
from companion.solve import Stage, Stats

__all__ = ["CheckedField", "Recomputed", "check_params", "replacing"]

Tensors = dict[str, Tensor]


class CheckedField(ABC):
    """A field of one solve. Subclasses say how a value is computed, purely.

    Attributes:
        argument: the field's name in messages.
        params: every tensor besides the state that may need a gradient.
        module: the module whose mode decides what an evaluation does, if there is one.
        knots: the times at which it jumps, for a solver that would step across them.
        stats: where to count evaluations.
        others: the indices into ``params`` of what is none of the module's parameters.
        uniform: whether all stages read the same parameters and buffers.
        lines: finds straight lines for its module, if it has one.
    """

    others: Sequence[int]
    uniform: bool
    lines: LineFinder | None
    argument: ClassVar[str]

    def __init__(
        self,
        module: nn.Module | None,
        params: tuple[Tensor, ...],
        finds_params: bool,
        stats: Stats | None,
    ) -> None:
        """Prepare a solve; ``finds_params`` says that autograd will not see the evaluations."""
        self.module, self.params, self.stats = module, params, stats
        self.knots: tuple[float, ...] = ()
        self.checked = False
        self.first: FirstValue | None = None
        self.finds_params = finds_params and torch.is_grad_enabled()
        self.own = self.arranged(params)
        self.logs: dict[Hashable, BufferLog] = {}
        if self.finds_params:
            self.logs = self._new_logs()
        self.following = any(log.read for log in self.logs.values())

    @abstractmethod
    def arranged(self, weights: Sequence[Tensor]) -> Any:
        """Return tensors that stand for ``params`` in the form that :meth:`evaluate` takes."""

    @abstractmethod
    def evaluate(
        self, stage: Stage, y: Tensor, weights: Any, buffers: dict[str, Tensor] | None
    ) -> Tensor:
        """Return the value; read ``weights`` and ``buffers``, or the live ones if ``None``."""

    @abstractmethod
    def uses(self, stage: Stage) -> Sequence[int]:
        """Return the indices into ``params`` that an evaluation at ``stage`` reads."""

    @abstractmethod
    def place(self, stage: Stage) -> Hashable:
        """Say which set of buffers an evaluation at ``stage`` finds."""

    @abstractmethod
    def live(self, place: Hashable) -> Mapping[str, Tensor]:
        """Return the buffers of one set as they are now."""

    @property
    @abstractmethod
    def owner(self) -> object:
        """The module or function that the field is made of."""

    @abstractmethod
    def state(self) -> Hashable:
        """Return what a value depends on besides tensors, as far as it shows."""

    @abstractmethod
    def slot(self, stage: Stage) -> Hashable:
        """Say which parameters an evaluation at ``stage`` reads, and in which sums."""

    @abstractmethod
    def shares(self, stage: Stage) -> dict[str, Sequence[tuple[int, float]]]:
        """Return the module's parameters at ``stage``: indices into ``params``, and factors."""

    @abstractmethod
    def time(self, stage: Stage) -> float:
        """Return the time that the module is given."""

    @abstractmethod
    def pure(self, values: Tensors, y: Tensor, t: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return the value for these parameters and buffers; put buffers that it replaces there."""

    @abstractmethod
    def _new_logs(self) -> dict[Hashable, BufferLog]: ...

    def __call__(self, stage: Stage, y: Tensor) -> Tensor:
        """Evaluate the field in a forward solve."""
        if self.stats is not None:
            self.stats.nfe += 1
        if self.following:
            place = self.place(stage)
            self.logs[place].note(stage, self.live(place))
        if self.checked:
            value = self.evaluate(stage, y, self.own, None)
            if self.first is not None:
                self.first.check(self.argument)
                self.first = None
            return value
        self.checked = True
        known = self.params if self.finds_params else None
        self.first = None if torch.compiler.is_compiling() else FirstValue()

        def evaluate(y: Tensor) -> Tensor:
            value = self.evaluate(stage, y, self.own, None)
            if self.first is not None:
                self.first.note(value)
            return value

        value = first_evaluation(evaluate, y, self.argument, known)
        if self.following and self.logs[place := self.place(stage)].changed(self.live(place)):
            for log in self.logs.values():
                log.unseen = True
        return value

    def found(self, place: Hashable, stage: Stage, again: bool) -> Tensors:
        """Return the buffers of one set as they are, or ``again`` as a forward solve found them."""
        log = self.logs.get(place) if again else None
        return dict(self.live(place)) if log is None else log.at(stage)

    def recomputation(self, weights: Sequence[Tensor] | None = None) -> Recomputed:
        """Return the field for a backward pass; see :class:`companion.solve.Field`."""
        return Recomputed(self, self.params if weights is None else tuple(weights))

    def follows(self, stage: Stage, y: Tensor) -> list[str]:
        """Name the buffers that the solve has changed and an evaluation at ``stage`` depends on."""
        place = self.place(stage)
        log, live = self.logs.get(place), self.live(place)
        changed = [] if log is None else log.changed(live)
        if log is None or not changed:
            return []
        value = self.evaluate(stage, y, self.own, cloned(log.start))
        return [
            name
            for name in changed
            if not torch.equal(
                value, self.evaluate(stage, y, self.own, cloned(log.start | {name: live[name]}))
            )
        ]


class Recomputed:
    """A field for a backward pass: a pure function of the state and its ``params``."""

    def __init__(self, field: CheckedField, weights: tuple[Tensor, ...]) -> None:
        """Take ``weights`` in place of the field's own parameters."""
        self.field, self.params = field, weights
        self.module, self.knots, self.uses = field.module, field.knots, field.uses
        self.stats = field.stats
        if field.lines is not None:
            field.lines.begin()  # hooks may have come or gone since the forward solve
        self.weights = field.arranged(weights)
        self.bare = field.module is None or next(field.module.buffers(), None) is None

    def __call__(self, stage: Stage, y: Tensor) -> Tensor:
        """Evaluate the field again."""
        field = self.field
        if self.stats is not None:
            self.stats.nfe_backward += 1
        if self.bare:
            return field.evaluate(stage, y, self.weights, {})
        place = field.place(stage)
        log = field.logs.get(place)
        buffers = cloned(field.live(place)) if log is None else log.at(stage)
        return field.evaluate(stage, y, self.weights, buffers)

    def recomputation(self, weights: Sequence[Tensor] | None = None) -> Recomputed:
        """Return the same field with other weights."""
        return self.field.recomputation(weights)

    def follows(self, stage: Stage, y: Tensor) -> list[str]:
        """Name what the forward solve changed; see :class:`companion.solve.Field`."""
        return self.field.follows(stage, y)


class replacing(TorchFunctionMode):
    """Let torch's functions see other tensors in the place of some, known by identity.

    For tensors that a function reads from outside, which nobody can hand to it.
    """

    def __init__(self, others: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Replace the first of each pair by the second."""
        super().__init__()
        self.others = {id(old): new for old, new in others}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` with the others."""
        args, kwargs = tree_map(self._other, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _other(self, value: object) -> object:
        return self.others.get(id(value), value) if isinstance(value, Tensor) else value


def check_params(params: object) -> tuple[Tensor, ...]:
    """Return the ``params`` of a solve as a tuple.

    Raises:
        TypeError: for anything but a tuple or list of tensors.
    """
    if not isinstance(params, tuple | list) or not all(isinstance(p, Tensor) for p in params):
        raise TypeError(not_allowed("params", params, "pass a tuple of tensors"))
    return tuple(params)
