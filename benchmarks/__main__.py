"""`python -m benchmarks [NAME ...] [--rounds N] [--out FILE]`: run, print the table, record it."""

import argparse
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.harness import report, save, table

NAMES = ("fixed_steps", "compiled", "gradients", "adaptive", "block", "memory")
RESULTS = Path(__file__).parent / "results" / "speed.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=40, help="interleaved rounds (default 40)")
    parser.add_argument("--out", type=Path, help="file for the numbers; all NAMEs: the book's")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"NAME: {', '.join(sorted(unknown))} is not one of {', '.join(NAMES)}")
    if arguments.rounds < 2:
        parser.error(f"--rounds: {arguments.rounds} is not allowed; it must be at least 2")
    torch.set_num_threads(1)
    reports = []
    for name in arguments.names or NAMES:
        module = import_module(f"benchmarks.{name}")
        print(f"\n{module.QUESTION}", flush=True)
        rows = module.run(rounds=arguments.rounds, **module.FULL)
        print(table(rows), flush=True)
        reports.append(report(name, module.QUESTION, module.EXCLUDED, rows))
    out = arguments.out or (None if arguments.names else RESULTS)
    if out is not None:
        save(out, reports, arguments.rounds)
        print(f"\nwritten to {out}")


if __name__ == "__main__":
    main()
