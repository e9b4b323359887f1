"""Keep the chapters' texts and their executed notebooks together.

python tools/notebooks.py sync [--only NAME] [--force]   re-execute what is stale
python tools/notebooks.py check                          say what is wrong; run nothing
"""

import argparse
import sys
from pathlib import Path

from nbclient.exceptions import CellExecutionError
from notebook_check import check, faults
from notebook_sync import chapters, sync

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="say what is wrong with the notebooks; run nothing")
    syncing = commands.add_parser("sync", help="re-execute the notebooks whose outputs are stale")
    syncing.add_argument("--only", metavar="NAME", help="one chapter, as 02 or 03_adjoint")
    syncing.add_argument("--force", action="store_true", help="execute even if nothing changed")
    options = parser.parse_args(arguments)
    if options.command == "check":
        return _report(check(root))
    names = [text.stem for text in chapters(root)]
    if options.only is not None and not any(_matches(name, options.only) for name in names):
        parser.error(f"--only {options.only}: the chapters are {', '.join(names) or '(none)'}")
    return max((_sync(text, root, options) for text in chapters(root)), default=0)


def _sync(text: Path, root: Path, options: argparse.Namespace) -> int:
    if options.only is not None and not _matches(text.stem, options.only):
        return 0
    try:
        done = sync(text, root, options.force)
    except (CellExecutionError, ValueError) as error:
        return _report([f"{text.name}: {error}"])
    print(f"{text.stem}: {done}", flush=True)
    return _report([f"{text.name}: {fault}" for fault in faults(text, root)])


def _matches(name: str, wanted: str) -> bool:
    return wanted in (name, name[:2])


def _report(lines: list[str]) -> int:
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
