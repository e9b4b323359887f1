"""A training loop that can be killed at any step and resumed bit for bit."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from companion.basis import PiecewiseLinear
from companion.files import load_checkpoint, save_checkpoint

History = dict[str, list[float]]
"""One list per quantity, one entry per finished epoch; ``"loss"`` is the mean training loss."""


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
        _check_type("path", self.path, Path)
        _check_type("every", self.every, int, float)
        if not self.every >= 0:
            raise ValueError(f"every must be at least 0 seconds; got {self.every}")


def fit(
    model: nn.Module,
    loss: Callable[..., Tensor],
    data: Sequence[Tensor],
    *,
    optimiser: Callable[[Iterable[nn.Parameter]], Optimizer],
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    schedule: Callable[[float], float] | None = None,
    clip: float | None = None,
    on_epoch: Callable[[], Mapping[str, float]] | None = None,
    snapshot: Snapshot | None = None,
    report: Callable[[float], None] | None = None,
) -> History:
    r"""Train ``model`` in place on shuffled minibatches.

    With a snapshot, the state of model, optimiser, shuffling and random generators is saved now
    and then and at the end. A run that finds such a file continues from it, in the middle of an
    epoch too, and ends with the same bits as one that was never interrupted. The file knows its
    run: the names and shapes of the parameters, the optimiser as first made, the data, the
    generator's state at the start, ``batch_size`` and ``clip``. The initial weights and the
    functions ``loss``, ``schedule`` and ``on_epoch`` cannot be compared; keep them as they were.
    More ``epochs`` than before lengthen the run; a schedule then sees fractions of the new length.

    Args:
        model: the module to train.
        loss: called as ``loss(model, *batch)``; returns the mean loss over the batch, a scalar.
        data: tensors with one row per sample, all with the same number of rows.
        optimiser: makes the optimiser from the parameters, such as
            ``lambda p: torch.optim.SGD(p, lr=0.1)``.
        epochs: number of passes over the data.
        batch_size: rows per step; the last batch of an epoch may be smaller.
        generator: CPU generator that draws the order of the rows; to continue from a snapshot,
            seeded as at the start of the run.
        schedule: factor on the learning rates, given the finished fraction of all steps in
            $[0, 1)$.
        clip: largest norm of the whole gradient, above 0, or ``None``.
        on_epoch: called after each epoch; the numbers it returns join the history.
        snapshot: where to keep the state, or ``None``.
        report: called with the finished fraction after every epoch.

    Returns:
        The history, with ``"loss"`` and what ``on_epoch`` returned.

    Raises:
        TypeError: ``epochs``, ``batch_size``, ``generator``, ``clip`` or ``snapshot`` of another
            type.
        ValueError: data of different lengths, ``epochs`` or ``batch_size`` below 1, ``clip`` not
            above 0, a generator that is not on the CPU, or a snapshot that is unreadable or
            belongs to another run; the message says in what they differ.

    Example:
        >>> x = torch.linspace(-1, 1, 32).unsqueeze(1)
        >>> with seeded(0):
        ...     model = nn.Linear(1, 1)
        >>> history = fit(model, lambda m, x, y: ((m(x) - y) ** 2).mean(), (x, 3 * x),
        ...               optimiser=lambda p: torch.optim.SGD(p, lr=0.3), epochs=20, batch_size=8,
        ...               generator=torch.Generator().manual_seed(0))
        >>> len(history["loss"]), round(model.weight.item(), 2)
        (20, 3.0)
    """
    _check_data(data)
    _check_options(epochs, batch_size, generator, clip, snapshot)
    loop = _Loop(model, optimiser(model.parameters()), generator, len(data[0]), batch_size, clip)
    if snapshot is not None:
        loop.made_with = _fingerprint(loop, data)
        loop.resume(snapshot.path)
    if loop.epoch > epochs:
        raise ValueError(f"epochs must be at least the {loop.epoch} already done; got {epochs}")
    saved_at = time.monotonic()
    while loop.epoch < epochs:
        for rows in loop.batches():
            loop.set_rates(schedule, epochs)
            batch = [tensor[rows.to(tensor.device)] for tensor in data]
            loop.step(loss(model, *batch), len(rows))
            if snapshot is not None and time.monotonic() - saved_at >= snapshot.every:
                loop.save(snapshot.path)
                saved_at = time.monotonic()
        loop.end_epoch(on_epoch)
        if report is not None:
            report(loop.epoch / epochs)
    if snapshot is not None:
        loop.save(snapshot.path)
    return loop.history


def step_decay(*milestones: float, factor: float = 0.1) -> Callable[[float], float]:
    """Return a schedule that multiplies the rate by ``factor`` at each finished fraction.

    Example:
        >>> rate = step_decay(0.5, 0.75)
        >>> [round(rate(p), 6) for p in (0.0, 0.5, 0.9)]
        [1.0, 0.1, 0.01]
    """
    return lambda progress: factor ** sum(progress >= point for point in milestones)


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it.

    For what ignores explicit generators: initial weights and dropout.

    Example:
        >>> with seeded(0):
        ...     a = torch.rand(1)
        >>> with seeded(0):
        ...     b = torch.rand(1)
        >>> bool(a == b)
        True
    """
    with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def split_optimiser_state(optimiser: Optimizer) -> None:
    """Refine the optimiser's state as the weight functions of its parameters have been refined.

    Momenta and second moments, of $n$ rows along the leading axis, follow their parameter:

    - $kn$ rows, from splitting the cells of :class:`~companion.basis.PiecewiseConstant`: every row
      is copied $k$ times, so that all copies keep moving as the original did;
    - $2n - 1$ rows, from splitting those of :class:`~companion.basis.PiecewiseLinear`: the mean of
      two neighbours is put between them, as for the weights themselves.

    State of the parameter's own shape, and scalars such as step counts, stay as they are. Call it
    after each refinement: two at once can look like another one, such as 3 nodes that became 9.

    Raises:
        ValueError: a state tensor whose shape does not fit its parameter in this way.

    Example:
        >>> weight = nn.Parameter(torch.ones(1, 2))
        >>> adam = torch.optim.Adam([weight])
        >>> weight.sum().backward(); adam.step()
        >>> weight.data = weight.data.repeat_interleave(2, dim=0)
        >>> split_optimiser_state(adam)
        >>> adam.state[weight]["exp_avg"].shape
        torch.Size([2, 2])
    """
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.ndim == 0 or value.shape == parameter.shape:
                continue
            old, new = value.shape[0], parameter.shape[0]
            if value.shape[1:] == parameter.shape[1:] and new % old == 0:
                state[name] = value.repeat_interleave(new // old, dim=0)
            elif value.shape[1:] == parameter.shape[1:] and new == 2 * old - 1:
                state[name] = PiecewiseLinear(cells=old - 1).refine(value)
            else:
                raise ValueError(
                    f"optimiser state {name!r} of shape {tuple(value.shape)} cannot be split for a "
                    f"parameter of shape {tuple(parameter.shape)}"
                )


def differences(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Say in which fields two descriptions of a run differ, one phrase a field.

    Args:
        stored: the description that lies in a file.
        wanted: the description of the run at hand.
        prefix: put before the names; fields of nested descriptions are joined by dots.

    Example:
        >>> differences({"seed": 0, "parameters": {"rate": 1.0}},
        ...             {"seed": 5, "parameters": {"rate": 1.0}})
        ['seed (0 there, 5 here)']
        >>> differences({"parameters": {"rate": 1.0}}, {"parameters": {}})
        ['parameters.rate (1.0 there, None here)']
    """
    found = []
    for name in [*wanted, *(name for name in stored if name not in wanted)]:
        there, here = stored.get(name), wanted.get(name)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            found += differences(there, here, f"{prefix}{name}.")
        elif there != here:
            found.append(f"{prefix}{name} ({there} there, {here} here)")
    return found


@dataclass
class _Loop:
    """The state of a training run; everything a checkpoint holds."""

    model: nn.Module
    optimiser: Optimizer
    generator: torch.Generator
    rows: int
    batch_size: int
    clip: float | None
    made_with: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    position: int = 0
    order: Tensor | None = None
    total: Tensor | None = None
    history: History = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rates = [float(group["lr"]) for group in self.optimiser.param_groups]

    def batches(self) -> Iterator[Tensor]:
        """Yield what is left of the current epoch, in random order."""
        if self.order is None:
            self.order = torch.randperm(self.rows, generator=self.generator)
        while self.position < self.rows:
            rows = self.order[self.position : self.position + self.batch_size]
            self.position += len(rows)
            yield rows

    def set_rates(self, schedule: Callable[[float], float] | None, epochs: int) -> None:
        if schedule is None:
            return
        batches = -(-self.rows // self.batch_size)
        step = self.epoch * batches + (self.position - 1) // self.batch_size
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * schedule(step / (epochs * batches))

    def step(self, loss: Tensor, rows: int) -> None:
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimiser.step()
        term = loss.detach() * rows
        self.total = term if self.total is None else self.total + term

    def end_epoch(self, on_epoch: Callable[[], Mapping[str, float]] | None) -> None:
        assert self.total is not None
        numbers = {"loss": self.total.item() / self.rows}
        if on_epoch is not None:
            numbers |= on_epoch()
        for name, value in numbers.items():
            self.history.setdefault(name, []).append(float(value))
        self.epoch, self.position, self.order, self.total = self.epoch + 1, 0, None, None

    def save(self, path: Path) -> None:
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
            "generator": self.generator.get_state(),
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        save_checkpoint(path, state)

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
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.rates, self.order, self.history = state["rates"], state["order"], state["history"]
        self.epoch, self.position = state["epoch"], state["position"]
        device = next(self.model.parameters()).device
        self.total = None if state["total"] is None else state["total"].to(device)
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["cpu"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])


def _fingerprint(loop: _Loop, data: Sequence[Tensor]) -> dict[str, Any]:
    """Describe, before the first step, what makes a run this one and no other."""
    groups = [
        {name: repr(value) for name, value in group.items() if name != "params"}
        | {"parameters": len(group["params"])}
        for group in loop.optimiser.param_groups
    ]
    return {
        "batch_size": loop.batch_size,
        "clip": loop.clip,
        "optimiser": type(loop.optimiser).__name__,
        "optimiser group": {str(i): group for i, group in enumerate(groups)},
        "data": {str(i): f"{_kind(x)} with hash {_hash(x)}" for i, x in enumerate(data)},
        "generator": f"a state with hash {_hash(loop.generator.get_state())}",
        "model": {name: _kind(p) for name, p in loop.model.named_parameters()},
    }


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _hash(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(raw.data).hexdigest()[:12]


def _listed(phrases: Sequence[str], most: int = 4) -> str:
    """Join phrases by commas; a large model may differ in hundreds of them."""
    rest = len(phrases) - most
    return ", ".join(phrases[:most]) + (f" and {rest} more" if rest > 0 else "")


def _check_data(data: Sequence[Tensor]) -> None:
    lengths = [len(tensor) for tensor in data]
    if not lengths or len(set(lengths)) > 1 or lengths[0] < 1:
        raise ValueError(f"data must be tensors with equally many rows, at least 1; got {lengths}")


def _check_options(
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    clip: float | None,
    snapshot: Snapshot | None,
) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        _check_type(name, value, int)
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    _check_type("generator", generator, torch.Generator)
    if generator.device.type != "cpu":
        raise ValueError(f"generator must be on the CPU; got one on {generator.device}")
    _check_type("clip", clip, int, float, type(None))
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be above 0, or None; got {clip}")
    _check_type("snapshot", snapshot, Snapshot, type(None))


def _check_type(name: str, value: object, *allowed: type) -> None:
    if isinstance(value, bool) or not isinstance(value, allowed):
        kinds = " or ".join("None" if t is type(None) else t.__name__ for t in allowed)
        raise TypeError(f"{name} must be of type {kinds}; got {value!r}")
