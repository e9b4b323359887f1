"""A training loop that can be killed at any step and resumed bit for bit."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from companion.arguments import check_type
from companion.block import compiling
from companion.train.batches import (
    Augment,
    Rows,
    RowSource,
    TensorSource,
    check_rows,
    device_of,
)
from companion.train.loop import History, Loop, Snapshot
from companion.train.refinement import Refinement
from companion.train.team import Team


def fit(
    model: nn.Module,
    loss: Callable[..., Tensor],
    data: Sequence[Tensor] | Rows,
    *,
    optimiser: Callable[[Iterable[nn.Parameter]], Optimizer],
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    schedule: Callable[[float], float] | None = None,
    clip: float | None = None,
    drop_last: bool = False,
    augment: Augment | None = None,
    refinement: Refinement | None = None,
    workers: int = 0,
    parallel: bool = False,
    compile: bool | str = False,
    on_epoch: Callable[[], Mapping[str, float]] | None = None,
    snapshot: Snapshot | None = None,
    report: Callable[[float], None] | None = None,
) -> History:
    r"""Train ``model`` in place on shuffled minibatches.

    With a snapshot, the state of model, optimiser, shuffling and random generators is saved now
    and then and at the end. A run that finds such a file continues from it, in the middle of an
    epoch too, and ends with the same bits as one that was never interrupted. The file knows its
    run: the names and shapes of the parameters, the optimiser as first made, the data, the
    generator's state at the start, ``batch_size``, ``clip``, ``drop_last`` and ``refinement``. The
    initial weights and the functions ``loss``, ``schedule``, ``augment`` and ``on_epoch`` cannot be
    compared; keep them as they were.
    More ``epochs`` than before lengthen the run; a schedule then sees fractions of the new length.
    Give it the model as it was before all refinements, too.

    With ``parallel``, all processes call this with the same arguments on models with the same
    values. Each takes its share of every batch, gradients are averaged as by
    :func:`~companion.train.data_parallel`, layer by layer while others are still computed, and only
    the first process writes snapshots. Where no layer mixes the samples of a batch, as batch norm
    does, the result is that of one process up to rounding.

    Args:
        model: the module to train.
        loss: called as ``loss(model, *batch)``; returns the mean loss over the batch, a scalar.
        data: tensors with one row per sample, all with the same number of rows; or samples that
            are read when they are needed, such as :class:`companion.data.ImageFolder`.
        optimiser: makes the optimiser from the parameters, such as
            ``lambda p: torch.optim.SGD(p, lr=0.1)``.
        epochs: number of passes over the data.
        batch_size: rows per step; the last batch of an epoch may be smaller.
        generator: CPU generator that draws the order of the rows and what ``augment`` needs; to
            continue from a snapshot, seeded as at the start of the run.
        schedule: factor on the learning rates, given the finished fraction of all steps in
            $[0, 1)$.
        clip: largest norm of the whole gradient, above 0, or ``None``.
        drop_last: whether to leave out the last batch of an epoch if it would be smaller. Which
            rows it would hold is drawn anew every epoch; the mean loss is that of the others.
        augment: called as ``augment(x, generator)`` with the first tensor of each batch; returns
            what to train on in its place. Not for samples that are read when needed.
        refinement: at which epochs the model's blocks are refined, or ``None``. The schedule of the
            learning rates goes on.
        workers: processes that read such samples; 0 reads them in this one.
        parallel: whether the processes of ``torch.distributed`` train one model together.
        compile: whether the model's blocks solve by compiled pieces in the steps of training, as
            ``OdeBlock(..., compile=True)``. Another batch size compiles anew: see ``drop_last``.
        on_epoch: called after each epoch; the numbers it returns join the history. Called after
            each refinement too; there ``refined_`` is put before their names.
        snapshot: where to keep the state, or ``None``.
        report: called with the finished fraction after every epoch.

    Returns:
        The history, with ``"loss"`` and what ``on_epoch`` returned.

    Raises:
        TypeError: ``epochs``, ``batch_size``, ``workers``, ``generator``, ``clip``, ``refinement``
            or ``snapshot`` of another type; a block to refine whose basis has no cells; data that
            are neither tensors in a sequence nor such samples; a function that cannot be called, or
            an optimiser in place of one that makes it; a loss that returns no tensor.
        ValueError: data of different lengths or none, ``epochs`` or ``batch_size`` below 1,
            ``workers`` below 0, ``clip`` not above 0, a generator that is not on the CPU,
            ``augment`` or ``workers`` with data they are not for, ``drop_last`` that would leave no
            batch, ``refinement`` of a model without blocks or with an optimiser whose state cannot
            be split, ``parallel`` in a process on its own, a loss that returns more than a number,
            or a snapshot that is unreadable or belongs to another run; the message says in what
            they differ.
        RuntimeError: ``loss`` failed in one of several processes; the others wait for it, so let
            it end.

    Example:
        >>> from companion.train import seeded
        >>> x = torch.linspace(-1, 1, 32).unsqueeze(1)
        >>> with seeded(0):
        ...     model = nn.Linear(1, 1)
        >>> history = fit(model, lambda m, x, y: ((m(x) - y) ** 2).mean(), (x, 3 * x),
        ...               optimiser=lambda p: torch.optim.SGD(p, lr=0.3), epochs=20, batch_size=8,
        ...               generator=torch.Generator().manual_seed(0))
        >>> len(history["loss"]), round(model.weight.item(), 2)
        (20, 3.0)
    """
    _check_options(epochs, batch_size, workers, generator, clip, snapshot)
    check_type("refinement", refinement, Refinement, type(None))
    if refinement is not None:
        refinement.check(model)
    _check_functions(
        loss, optimiser, schedule=schedule, augment=augment, on_epoch=on_epoch, report=report
    )
    source = _source(model, data, augment, workers, generator)
    _check_drop_last(drop_last, batch_size, len(source))
    team = _team(parallel)
    loop = Loop(
        model, optimiser(model.parameters()), source, batch_size, clip, team, refinement, drop_last
    )
    if refinement is not None:
        refinement.check_optimiser(model, loop.optimiser)
    loop.begin(snapshot, epochs)
    network, saved_at = team.wrap(model), time.monotonic()
    while loop.epoch < epochs:
        while loop.refinement_due():
            del network  # several processes' network holds on to the parameters' old shapes
            team.wait()
            loop.refine(on_epoch)
            network = team.wrap(model)
        for batch, rows, weight in loop.batches():
            loop.set_rates(schedule, epochs)
            with team.united(), compiling(model, compile):
                value = _scalar(loss(network, *batch))
            loop.step(value, rows, weight)
            if snapshot is not None and time.monotonic() - saved_at >= snapshot.every:
                loop.save(snapshot.path)
                saved_at = time.monotonic()
        loop.end_epoch(on_epoch)
        if report is not None:
            report(loop.epoch / epochs)
    if snapshot is not None:
        loop.save(snapshot.path)
    del network
    team.wait()
    return loop.history


def _team(parallel: bool) -> Team:
    if parallel and not dist.is_initialized():
        raise ValueError(
            "parallel: True is not allowed in a process on its own; it needs processes that "
            "torch.distributed has connected: start them with torchrun"
        )
    return Team.running() if parallel else Team()


def _source(
    model: nn.Module,
    data: Sequence[Tensor] | Rows,
    augment: Augment | None,
    workers: int,
    generator: torch.Generator,
) -> TensorSource | RowSource:
    check_rows("data", data)
    if isinstance(data, Sequence):
        if workers:
            raise ValueError(
                f"workers: {workers} is not allowed; it must be 0 for tensors, which are in memory"
            )
        return TensorSource(data, augment, generator)
    if augment is not None:
        raise ValueError(
            f"augment: {augment!r} is not allowed; it must be None for samples that are read with "
            "their own changes"
        )
    return RowSource(data, workers, device_of(model), generator)


def _check_options(
    epochs: int,
    batch_size: int,
    workers: int,
    generator: torch.Generator,
    clip: float | None,
    snapshot: Snapshot | None,
) -> None:
    wanted = {"epochs": (epochs, 1), "batch_size": (batch_size, 1), "workers": (workers, 0)}
    for name, (value, least) in wanted.items():
        check_type(name, value, int)
        if value < least:
            raise ValueError(f"{name}: {value!r} is not allowed; it must be at least {least}")
    check_type("generator", generator, torch.Generator)
    if generator.device.type != "cpu":
        raise ValueError(
            f"generator: one on {generator.device} is not allowed; it must be on the CPU"
        )
    check_type("clip", clip, int, float, type(None))
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: {clip!r} is not allowed; it must be above 0, or None")
    check_type("snapshot", snapshot, Snapshot, type(None))


def _check_drop_last(drop_last: object, batch_size: int, rows: int) -> None:
    if not isinstance(drop_last, bool):
        raise TypeError(f"drop_last: {drop_last!r} is not allowed; it must be True or False")
    if drop_last and batch_size > rows:
        raise ValueError(
            f"batch_size: {batch_size!r} is not allowed with drop_last; it must be at most the "
            f"{rows} rows there are, or no batch would be left"
        )


def _check_functions(loss: object, optimiser: object, **optional: object) -> None:
    if not callable(loss):
        raise TypeError(f"loss: {loss!r} is not allowed; it must be a function loss(model, *batch)")
    if not callable(optimiser):
        raise TypeError(
            f"optimiser: {type(optimiser).__name__} itself is not allowed; it must be a function "
            "that makes one, such as lambda p: torch.optim.SGD(p, lr=0.1)"
        )
    for name, value in optional.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name}: {value!r} is not allowed; it must be a function or None")


def _scalar(value: Tensor) -> Tensor:
    """Return what the loss returned, or say why it cannot be trained on."""
    if not isinstance(value, Tensor):
        raise TypeError(f"loss: the value {value!r} is not allowed; it must be a tensor")
    if not value.requires_grad or value.is_complex():
        found = "a complex number" if value.is_complex() else "a tensor that needs no gradient"
        raise ValueError(
            f"loss: {found} is not allowed; it must be a real number that depends on parameters "
            "that are trained"
        )
    if value.numel() != 1:
        raise ValueError(
            f"loss: a tensor of shape {tuple(value.shape)} is not allowed; it must be a scalar, "
            "the mean over the batch"
        )
    return value
