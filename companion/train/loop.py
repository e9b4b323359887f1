"""The state of a training run, and the file it is kept in."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from companion.arguments import check_type
from companion.block import refine
from companion.files import load_checkpoint, save_checkpoint
from companion.train.batches import RowSource, TensorSource, device_of, kind, tensor_hash
from companion.train.refinement import Refinement
from companion.train.run_differences import differences
from companion.train.team import Team

History = dict[str, list[float]]
"""One list per quantity, one entry per finished epoch; ``"loss"`` is the mean training loss.

Names that begin with ``refined_`` have one entry per refinement.
"""


@dataclass(frozen=True)
class Snapshot:
    """Where training keeps its state, and how often.

    Attributes:
        path: the checkpoint file. If it exists, training goes on from it.
        every: seconds between two writes; 0 writes after every step.

    Raises:
        TypeError: ``path`` is not a :class:`~pathlib.Path`.
        ValueError: ``every`` is negative.
    """

    path: Path
    every: float = 30.0

    def __post_init__(self) -> None:
        check_type("path", self.path, Path)
        check_type("every", self.every, int, float)
        if not self.every >= 0:
            raise ValueError(
                f"every: {self.every!r} is not allowed; it must be at least 0, in seconds"
            )


@dataclass
class Loop:
    """The state of a training run; everything a checkpoint holds."""

    model: nn.Module
    optimiser: Optimizer
    source: TensorSource | RowSource
    batch_size: int
    clip: float | None
    team: Team
    refinement: Refinement | None = None
    drop_last: bool = False
    made_with: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    position: int = 0
    order: Tensor | None = None
    total: Tensor | None = None
    history: History = field(default_factory=dict)
    refined: int = 0

    def __post_init__(self) -> None:
        self.rates = [float(group["lr"]) for group in self.optimiser.param_groups]

    @property
    def rows(self) -> int:
        """Rows that an epoch trains on."""
        rows = len(self.source)
        return rows - rows % self.batch_size if self.drop_last else rows

    def refinement_due(self) -> bool:
        """Whether the model must be refined before the next step."""
        return self.refinement is not None and self.refined < self.refinement.due(self.epoch)

    def refine(self, on_epoch: Callable[[], Mapping[str, float]] | None) -> None:
        """Refine the model once, and add what it then achieves to the history."""
        assert self.refinement is not None
        self.refinement.apply(self.model, self.optimiser)
        self.refined += 1
        if on_epoch is not None:
            self._record({f"refined_{name}": value for name, value in on_epoch().items()})

    def batches(self) -> Iterator[tuple[list[Tensor], int, float]]:
        """Yield what is left of the current epoch, in random order.

        That is this process's share of each batch, the rows of the batch, and the weight of the
        share's loss.
        """
        if self.order is None:
            self.order = self.source.shuffled()
        starts = range(self.position, self.rows, self.batch_size)
        rows = [self.order[start : start + self.batch_size] for start in starts]
        batches = self.source.batches(rows, self.team)
        for wanted, (batch, weight) in zip(rows, batches, strict=True):
            self.position += len(wanted)
            yield batch, len(wanted), weight

    def set_rates(self, schedule: Callable[[float], float] | None, epochs: int) -> None:
        """Set the learning rates for the next step."""
        if schedule is None:
            return
        batches = -(-self.rows // self.batch_size)
        step = self.epoch * batches + (self.position - 1) // self.batch_size
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * schedule(step / (epochs * batches))

    def step(self, loss: Tensor, rows: int, weight: float) -> None:
        """Take a step down the gradient of the mean loss over a batch of ``rows``."""
        loss = loss * weight
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimiser.step()
        term = self.team.sum(loss.detach() * (rows / self.team.size))
        self.total = term if self.total is None else self.total + term

    def end_epoch(self, on_epoch: Callable[[], Mapping[str, float]] | None) -> None:
        """Add an epoch's numbers to the history."""
        assert self.total is not None
        self.team.agree(self.model)
        numbers = {"loss": self.total.item() / self.rows}
        if on_epoch is not None:
            numbers |= on_epoch()
        self._record(numbers)
        self.epoch, self.position, self.order, self.total = self.epoch + 1, 0, None, None

    def _record(self, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.history.setdefault(name, []).append(float(value))

    def fingerprint(self) -> dict[str, Any]:
        """Describe, before the first step, what makes a run this one and no other."""
        groups = [
            {name: repr(value) for name, value in group.items() if name != "params"}
            | {"parameters": len(group["params"])}
            for group in self.optimiser.param_groups
        ]
        # Named only where it is asked for: files from before there was the choice keep their runs.
        dropping = {"drop_last": True} if self.drop_last else {}
        return dropping | {
            "batch_size": self.batch_size,
            "clip": self.clip,
            "optimiser": type(self.optimiser).__name__,
            "optimiser group": {str(i): group for i, group in enumerate(groups)},
            "data": self.source.fingerprint(),
            "generator": f"a state with hash {tensor_hash(self.source.generator.get_state())}",
            "model": {name: kind(p) for name, p in self.model.named_parameters()},
            "refinement": None if self.refinement is None else repr(self.refinement),
        }

    def save(self, path: Path) -> None:
        """Write the state; of several processes, the first does."""
        if self.team.rank > 0:
            return
        device = device_of(self.model)
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rates": self.rates,
            "made_with": self.made_with,
            "epoch": self.epoch,
            "position": self.position,
            "order": self.order,
            "total": self.total,
            "history": self.history,
            "refined": self.refined,
            "generator": self.source.generator.get_state(),
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        save_checkpoint(path, state)

    def begin(self, snapshot: Snapshot | None, epochs: int) -> None:
        """Take over what an earlier run of the same kind left off at, if it left anything."""
        if snapshot is not None:
            self.made_with = self.fingerprint()
            self.resume(snapshot.path)
        if self.epoch > epochs:
            raise ValueError(
                f"epochs: {epochs!r} is not allowed; it must be at least the {self.epoch} already "
                "done"
            )

    def resume(self, path: Path) -> None:
        """Take over the state stored at ``path``, if there is one."""
        if not path.exists():
            return
        state = load_checkpoint(path)
        try:
            self._take(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"checkpoint {path} does not fit this run: {error}; give fit what the run began "
                "with, or delete the file to start anew"
            ) from error

    def _take(self, state: dict[str, Any]) -> None:
        if "made_with" not in state:
            raise ValueError("it does not say which run it belongs to")
        if differing := differences(state["made_with"], self.made_with):
            raise ValueError("they differ in " + _listed(differing))
        self.refined = state["refined"]
        for _ in range(self.refined):
            refine(self.model)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.rates, self.order, self.history = state["rates"], state["order"], state["history"]
        self.epoch, self.position = state["epoch"], state["position"]
        device = device_of(self.model)
        self.total = None if state["total"] is None else state["total"].to(device)
        self.source.generator.set_state(state["generator"])
        torch.set_rng_state(state["cpu"])
        if state["cuda"] is not None and device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], device)


def _listed(phrases: Sequence[str], most: int = 4) -> str:
    """Join phrases by commas; a large model may differ in hundreds of them."""
    rest = len(phrases) - most
    return ", ".join(phrases[:most]) + (f" and {rest} more" if rest > 0 else "")
