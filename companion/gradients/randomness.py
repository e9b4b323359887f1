"""Random numbers that a backward pass can draw again without storing them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from companion.gradients.recompute import RandomState, random_state, same_state
from companion.solve import Field, Stage

__all__ = ["SeededField", "replayable", "replaying"]


class SeededField:
    """A field whose random numbers depend on a base seed and its place in the solve, nothing else.

    The place is the interval, the step and the stage's point in the step. So a dropout mask is a
    function of depth: whoever evaluates the field there again gets the same one.

    Attributes:
        base: the base seed; ``None`` once the first evaluation has drawn no random numbers.
        interval: index of the interval at work.
    """

    def __init__(self, field: Field, base: int | None) -> None:
        """Wrap ``field``."""
        self.field = field
        self.params: tuple[Tensor, ...] = field.params
        self.module: nn.Module | None = field.module
        self.base = base
        self.interval = 0
        self.quiet: RandomState | None = None
        self._first = True

    def __call__(self, stage: Stage, y: Tensor) -> Tensor:
        """Evaluate the field with the random numbers of the stage's place."""
        if self.base is None:
            return self.field(stage, y)
        _seed(self._place(self.base, stage), y.device)
        if not self._first:
            return self.field(stage, y)
        self._first = False
        before = random_state(y.device)
        value = self.field(stage, y)
        after = random_state(y.device)
        if same_state(before, after):
            self.base, self.quiet = None, after
        return value

    def uses(self, stage: Stage) -> Sequence[int]:
        """Return the indices into ``params`` that an evaluation at ``stage`` reads."""
        return self.field.uses(stage)

    def recomputation(self) -> SeededField:
        """Return the same field for a backward pass."""
        again = SeededField(self.field.recomputation(), self.base)
        again._first = False
        return again

    def _place(self, base: int, stage: Stage) -> int:
        assert stage.c is not None  # only fixed grids have places to seed
        place = self.interval * stage.steps + stage.step
        return base + 12 * place + int(12 * stage.c)  # the schemes' fractions are twelfths


@contextmanager
def replayable(field: Field, device: torch.device) -> Iterator[SeededField]:
    """Yield the field with random numbers of its own; advance the generator if it drew any.

    Raises:
        ValueError: at the end, if it drew numbers, but none in its first evaluation.
    """
    with replaying(device):
        seeded = SeededField(field, int(torch.randint(2**62, ())))
        yield seeded
        if seeded.quiet is not None and not same_state(seeded.quiet, random_state(device)):
            raise ValueError(
                "gradient: the field draws random numbers in some steps only, which a backward "
                "pass cannot repeat; use gradient='backprop'"
            )
    if seeded.base is not None:
        torch.randint(2**62, ())  # the base seed is used up: the next solve gets another


def replaying(device: torch.device) -> AbstractContextManager[None]:
    """Return a context that leaves the generators of ``device`` and the CPU as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators of ``device`` and the CPU; those of other devices are left alone."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
