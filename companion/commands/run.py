"""``companion run``: run one experiment, resumably, and write its result."""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from companion.commands.show import verdicts
from companion.experiments import find
from companion.experiments.freshness import checked
from companion.experiments.running import close_folder, holds_parts
from companion.machine import resolve_device
from companion.results import Result
from companion.train import Team, connected, differences


def run(options: argparse.Namespace) -> None:
    """Run what the command line asks for, alone or as one of the processes of ``torchrun``.

    Raises:
        ValueError: an option that cannot be used; nothing has run.
        TypeError: a parameter of another type than the tier's.
    """
    with connected() as team:
        _run(options, team)


def _run(options: argparse.Namespace, team: Team) -> None:
    entry = find(options.id)
    target = options.out / f"{entry.id}.{options.tier}.json"
    parts, models = target.with_suffix(".parts"), target.with_suffix(".models")
    overrides = dict(_assignment(text) for text in options.set)
    device = _own_device(options.device, team)
    with _deterministic():
        identity = entry.identity(
            options.tier,
            options.seed,
            resolve_device(device),
            entry.parameters(options.tier, **overrides),
        )
        _check_out(options.out, target)
        if options.resume and _finished(target, parts, identity["provenance"]):
            if team.rank == 0:
                close_folder(parts, identity)
                print(f"{target} is complete: this run is finished")
            return
        with (
            _left_only_if_used(parts, identity, team),
            _progress(entry.id, shown=team.rank == 0) as report,
        ):
            result = entry(
                tier=options.tier,
                seed=options.seed,
                device=device,
                folder=parts,
                resume=options.resume,
                every=options.every,
                report=report,
                data=options.data,
                models=models if options.keep else None,
                **overrides,
            )
    team.wait()  # the parts are removed when everybody has read them
    if team.rank == 0:
        if not overrides and options.tier != "tiny":
            result = checked(result, entry)  # gives it a tiny run to be compared with later
        result.save(target)
        close_folder(parts, identity)  # only now: a kill in between loses nothing
        print("\n".join(verdicts(result)))
        if options.tier == "tiny":
            print("a tiny run tests the code: whether its claims hold says nothing")
        print(target)
        if options.keep:
            print(models if models.is_dir() else f"{entry.id} keeps no trained models")


def _own_device(device: str, team: Team) -> str:
    """Return the device of this process: of several, each takes the GPU it was given."""
    if device != "cuda" or team.size == 1 or not torch.cuda.is_available():
        return device
    return f"cuda:{torch.cuda.current_device()}"


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError as error:
        reason = error if equals else "the = is missing"
        raise ValueError(
            f"--set: {text!r} is not allowed; it must be NAME=JSON ({reason})"
        ) from None


def _check_out(out: Path, target: Path) -> None:
    """Refuse a place that cannot be written before hours of work, not after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(
            f"--out: {str(out)!r} is not allowed; it must be a folder that can be written "
            f"({error.strerror})"
        ) from error
    if target.is_dir():
        raise ValueError(f"the result cannot be written: {target} is a folder")


def _finished(target: Path, parts: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether ``target`` already holds the result of just this run.

    Another run's result is refused, unless there are parts to go on from: then a run was already
    begun that is to replace it.
    """
    if not target.exists():
        return False
    made = Result.load(target).provenance
    stored = {name: getattr(made, name) for name in wanted}
    differing = differences(stored, wanted)
    if differing and not holds_parts(parts):
        raise ValueError(
            f"nothing to resume: {target} is the finished result of another run, which differs in "
            f"{', '.join(differing)}; choose another --out, or leave out --resume to replace it"
        )
    return not differing


@contextmanager
def _deterministic() -> Iterator[None]:
    """Allow only operations that give the same bits each time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _left_only_if_used(parts: Path, identity: Mapping[str, Any], team: Team) -> Iterator[None]:
    """Remove the folder of parts of a run that ends before it has any."""
    try:
        yield
    except BaseException:
        if team.rank == 0 and not holds_parts(parts):
            close_folder(parts, identity)
        raise


@contextmanager
def _progress(title: str, shown: bool) -> Iterator[Any]:
    """Yield a callback that moves a progress bar on stderr, if it is to be shown."""
    from tqdm import tqdm  # only the command line shows a bar

    layout = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=100.0, desc=title, bar_format=layout, disable=not shown) as bar:

        def report(fraction: float, part: str) -> None:
            bar.set_postfix_str(part, refresh=False)
            bar.update(100 * fraction - bar.n)

        yield report
