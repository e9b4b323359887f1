"""The command line: ``companion list``, ``run``, ``show``, ``plot`` and ``new``.

What needs torch is imported where it is used: a listing or an error answers at once.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from companion.listing import Entry, entries, locate
from companion.version import VERSION


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    That is 0, 2 for input it cannot use, or 130 after Ctrl-C.

    Example:
        >>> main(["list", "C18-A6"])  # doctest: +ELLIPSIS
        C18-A6 (adjoint): Adjoint minus backprop against the number of steps...
        0
    """
    options = _parser().parse_args(arguments)
    try:
        with _interrupts():
            options.action(options)
            sys.stdout.flush()  # here, and not at exit, a reader that has left is noticed
    except (ValueError, TypeError) as error:
        print(f"companion: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "; the same command with --resume goes on" if options.command == "run" else ""
        print(f"companion: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


_pressed: list[int] = []
"""The interruptions of the command at work: an import may lose one."""


@contextmanager
def _interrupts() -> Iterator[None]:
    """Take any error that follows Ctrl-C for it: importing scipy turns it into others."""

    def note(number: int, frame: FrameType | None) -> None:
        _pressed.append(number)
        signal.default_int_handler(number, frame)

    _pressed.clear()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception:
        _stop_if_interrupted()
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop_if_interrupted() -> None:
    if _pressed:
        raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="companion", description="The course's experiments.")
    parser.add_argument("--version", action="version", version=f"companion {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="list the experiments, or all about one of them")
    listing.add_argument("id", metavar="ID", nargs="?", help="an experiment")
    listing.set_defaults(action=_list)
    _add_run(commands.add_parser("run", help="run one experiment and write OUT/ID.TIER.json"))
    showing = commands.add_parser("show", help="print the claims and numbers of a result")
    showing.add_argument("result", metavar="RESULT", help="ID, ID.TIER (recorded) or a file")
    showing.set_defaults(action=_show)
    plotting = commands.add_parser("plot", help="draw the curves of a result")
    plotting.add_argument("result", metavar="RESULT", help="ID, ID.TIER (recorded) or a file")
    plotting.add_argument("--out", type=Path, help="the picture, or a folder for ID.TIER.png")
    plotting.set_defaults(action=_plot)
    new = commands.add_parser("new", help="begin an experiment in a checkout of the repository")
    new.add_argument("id", metavar="ID", help="an ID that is not taken, such as FW13")
    new.add_argument("chapter", help="the slug of its chapter")
    new.add_argument("words", nargs=2, metavar="WORD", help="two words for the name of its file")
    new.add_argument(
        "--claim", metavar="TEXT", help="what it is to decide, in a line, or the ID of a claim"
    )
    new.set_defaults(action=_new)
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("id", metavar="ID", help="an ID from `companion list`")
    run.add_argument("--tier", default="smoke", help="smoke (one CPU thread), full (GPU) or tiny")
    run.add_argument("--seed", type=int, default=0, help="seed of the whole run")
    run.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    run.add_argument("--out", type=Path, default=Path("runs"), help="folder for the result")
    run.add_argument("--data", type=Path, help="folder with data sets (default: COMPANION_DATA)")
    run.add_argument("--resume", action="store_true", help="continue a run that was interrupted")
    run.add_argument("--every", type=float, default=30.0, help="seconds between two checkpoints")
    run.add_argument("--keep", action="store_true", help="keep trained models: OUT/ID.TIER.models")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="another value for a parameter, such as --set depths=[2,4]",
    )
    run.set_defaults(action=_run)


def _list(options: argparse.Namespace) -> None:
    if options.id is None:
        for entry in entries().values():
            print(f"{entry.id:9} {entry.chapter:17} {entry.title}")
    else:
        locate(options.id)  # an unknown one is refused with the nearest
        _describe(entries()[options.id])


def _describe(entry: Entry) -> None:
    print(f"{entry.id} ({entry.chapter}): {entry.title}")
    print(f"paper: {entry.paper}")
    print(f"claims: {', '.join(entry.claims) or 'none'}")
    for tier, values in entry.parameters.items():
        print(f"{tier}: " + ", ".join(f"{name}={value}" for name, value in values.items()))


def _run(options: argparse.Namespace) -> None:
    locate(options.id)
    from companion.commands.run import run

    _stop_if_interrupted()
    run(options)


def _show(options: argparse.Namespace) -> None:
    from companion.commands.show import show

    _stop_if_interrupted()
    show(options.result)


def _plot(options: argparse.Namespace) -> None:
    from companion.commands.show import plot

    _stop_if_interrupted()
    plot(options.result, options.out)


def _new(options: argparse.Namespace) -> None:
    from companion.commands.new import CLAIM, new

    claim = CLAIM if options.claim is None else options.claim
    for line in new(options.id, options.chapter, *options.words, claim=claim):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
