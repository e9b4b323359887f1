"""The command line: ``python -m companion list`` and ``python -m companion run ID``."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from companion.data.official import VARIABLE
from companion.experiments import find
from companion.experiments.running import close_folder, holds_parts
from companion.listing import entries
from companion.machine import resolve_device
from companion.results import Result
from companion.train import Team, connected, differences


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    That is 0, 2 for input it cannot use, or 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.command == "list":
            _list()
        else:
            with connected() as team:
                _run(options, team)
    except (ValueError, TypeError) as error:
        print(f"companion: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("companion: interrupted; the same command with --resume goes on", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="companion", description="Run the course's experiments.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the experiments, their claims and their parameters")
    run = commands.add_parser("run", help="run one experiment and write OUT/ID.TIER.json")
    run.add_argument("id", metavar="ID", help="an ID from `list`")
    run.add_argument("--tier", default="smoke", help="smoke (two CPU cores) or full (GPU)")
    run.add_argument("--seed", type=int, default=0, help="seed of the whole run")
    run.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    run.add_argument("--out", type=Path, default=Path("runs"), help="folder for the result")
    run.add_argument("--data", type=Path, help=f"folder with data sets (default: {VARIABLE})")
    run.add_argument("--resume", action="store_true", help="continue a run that was interrupted")
    run.add_argument("--every", type=float, default=30.0, help="seconds between two checkpoints")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="another value for a parameter, such as --set depths=[2,4]",
    )
    return parser


def _list() -> None:
    for entry in entries().values():
        print(f"{entry.id}  {entry.title}")
        print(f"    paper: {entry.paper}; claims: {', '.join(entry.claims)}")
        for tier, values in entry.parameters.items():
            print(f"    {tier}: " + ", ".join(f"{name}={value}" for name, value in values.items()))


def _run(options: argparse.Namespace, team: Team) -> None:
    entry = find(options.id)
    target = options.out / f"{entry.id}.{options.tier}.json"
    parts = options.out / f"{entry.id}.{options.tier}.parts"
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
        with _progress(entry.id, shown=team.rank == 0) as report:
            result = entry(
                tier=options.tier,
                seed=options.seed,
                device=device,
                folder=parts,
                resume=options.resume,
                every=options.every,
                report=report,
                data=options.data,
                **overrides,
            )
    if team.rank == 0:
        result.save(target)
        close_folder(parts, identity)  # only now: a kill in between loses nothing
        _show(result, target)


def _own_device(device: str, team: Team) -> str:
    """Return the device of this process: of several, each takes the GPU it was given."""
    if device != "cuda" or team.size == 1 or not torch.cuda.is_available():
        return device
    return f"cuda:{torch.cuda.current_device()}"


def _show(result: Result, target: Path) -> None:
    for claim in result.claims:
        verdict = "holds" if claim.holds else "MISSES"
        print(f"{claim.id} {verdict}: {claim.text}: {claim.observed:.4g}")
    print(target)


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError as error:
        reason = error if equals else "the = is missing"
        raise ValueError(f"--set must be NAME=JSON; got {text!r} ({reason})") from None


def _check_out(out: Path, target: Path) -> None:
    """Refuse a place that cannot be written before hours of work, not after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(
            f"--out must be a folder that can be written; got {str(out)!r} ({error.strerror})"
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
def _progress(title: str, shown: bool) -> Iterator[Any]:
    """Yield a callback that moves a progress bar on stderr, if it is to be shown."""
    from tqdm import tqdm  # only the command line shows a bar

    layout = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=100.0, desc=title, bar_format=layout, disable=not shown) as bar:

        def report(fraction: float, part: str) -> None:
            bar.set_postfix_str(part, refresh=False)
            bar.update(100 * fraction - bar.n)

        yield report


if __name__ == "__main__":
    sys.exit(main())
