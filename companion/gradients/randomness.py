"""Random numbers of a field: whether it draws any, and how a backward pass draws them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from companion.solve import Field, Stage

__all__ = [
    "RandomState",
    "SeededField",
    "draws",
    "random_state",
    "replayable",
    "replayed",
    "replaying",
    "same_state",
]

RandomState = tuple[Tensor, ...]


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices operations that draw random numbers, from any generator of torch, in this thread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found = self.found or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def draws(field: Field, places: Iterable[tuple[Stage, Tensor]]) -> bool:
    """Say whether a field draws random numbers at one of some places.

    The states of the generators cannot tell: other threads draw from them too. Nor can the first
    evaluation: a field may draw there what it keeps for all others. So it is evaluated again, and
    watched; its buffers and the generators stay as they were.
    """
    again = field.recomputation()
    again.stats = None
    for stage, y in places:
        before = random_state(y.device)
        with torch.no_grad(), _Draws() as watch:
            again(stage, y)
        if watch.found:
            _set_random_state(before, y.device)
            return True
    return False


class SeededField:
    """A field whose random numbers depend on a base seed and its place in the solve, nothing else.

    The place is how deep into the solve a stage stands. So a dropout mask is a function of depth:
    whoever evaluates the field there again gets the same one.

    Attributes:
        base: the base seed; ``None`` if the field draws no random numbers.
    """

    def __init__(self, field: Field, base: int | None) -> None:
        """Wrap ``field``."""
        self.field = field
        self.params: tuple[Tensor, ...] = field.params
        self.module: nn.Module | None = field.module
        self.knots, self.uses, self.follows = field.knots, field.uses, field.follows
        self.stats = field.stats
        self.base = base

    def __call__(self, stage: Stage, y: Tensor) -> Tensor:
        """Evaluate the field with the random numbers of the stage's place."""
        if self.base is not None:
            _seed(_seed_of(self.base, stage), y.device)
        return self.field(stage, y)

    def recomputation(self, weights: Sequence[Tensor] | None = None) -> SeededField:
        """Return the same field for a backward pass."""
        return SeededField(self.field.recomputation(weights), self.base)


class _Watched(SeededField):
    """A field in its forward solve: its first two evaluations decide whether it is seeded.

    If the first does not move the generators, the field draws nothing. If it does, that may be
    another thread's doing, or a number that the field draws once and keeps: the second is watched.
    The generators are given back as soon as it is known that nobody draws from them here.
    """

    def __init__(self, field: Field, device: torch.device) -> None:
        self.before = random_state(device)
        super().__init__(field, int(torch.randint(2**62, ())))
        self.quiet: RandomState | None = None
        self.last: tuple[Stage, Tensor] | None = None
        self.known = self.moved = False

    def __call__(self, stage: Stage, y: Tensor) -> Tensor:
        first, self.last = self.last is None, (stage, y)
        if self.known or self.base is None:
            return super().__call__(stage, y)
        _seed(_seed_of(self.base, stage), y.device)
        if first:
            seeded = random_state(y.device)
            value = self.field(stage, y)
            self.moved = not same_state(seeded, random_state(y.device))
            draws_none = not self.moved
        else:
            with _Draws() as watch:
                value = self.field(stage, y)
            self.known, draws_none = True, not watch.found
        if draws_none:
            self.base = None
            self.give_back(y.device)
            self.quiet = random_state(y.device)
        return value

    def give_back(self, device: torch.device) -> None:
        """Put the generators back; where they were used, so that the next solve differs."""
        _set_random_state(self.before, device)
        if self.moved:
            torch.randint(2**62, ())


@contextmanager
def replayable(field: Field, device: torch.device) -> Iterator[SeededField]:
    """Yield the field with random numbers of its own; advance the generator if it drew any.

    Raises:
        ValueError: at the end, if it drew numbers, but none in its first evaluation.
    """
    seeded = _Watched(field, device)
    try:
        yield seeded
    finally:
        if seeded.base is not None:
            seeded.give_back(device)
    last, seeded.last = seeded.last, None
    if seeded.quiet is None or same_state(seeded.quiet, random_state(device)):
        return
    if last is not None and draws(field, [last]):
        raise ValueError(
            "gradient: the field draws random numbers in some steps only, which a backward "
            "pass cannot repeat; use gradient='backprop'"
        )


def replaying(device: torch.device, seeded: bool = True) -> AbstractContextManager[None]:
    """Return a context that leaves the generators of ``device`` and the CPU as they were.

    It does nothing unless the field is ``seeded``: other threads may be drawing.
    """
    if not seeded:
        return nullcontext()
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextmanager
def replayed(random: RandomState | None, device: torch.device) -> Iterator[None]:
    """Draw the numbers that follow the state ``random``, and put the generators back after."""
    if random is None:
        yield
        return
    with replaying(device):
        _set_random_state(random, device)
        yield


def random_state(device: torch.device) -> RandomState:
    """Return the states of the generators that a field on ``device`` draws from."""
    if device.type == "cuda":
        return torch.random.get_rng_state(), torch.cuda.get_rng_state(device)
    return (torch.random.get_rng_state(),)


def same_state(one: RandomState, other: RandomState) -> bool:
    """Say whether no random number was drawn between two states."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _set_random_state(states: RandomState, device: torch.device) -> None:
    torch.random.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def _seed_of(base: int, stage: Stage) -> int:
    """Return the seed of a place: of its depth, so that two steps that meet there share it."""
    assert stage.c is not None  # only fixed grids have places to seed
    twelfths = 12 * (stage.output * stage.steps + stage.step + stage.c)
    if twelfths.denominator == 1:  # as in all schemes here
        return base + int(twelfths)
    digest = blake2b(f"{base} {twelfths}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators of ``device`` and the CPU; those of other devices are left alone."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
