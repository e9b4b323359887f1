"""`python -m benchmarks [NAME ...] [--rounds N] [--out FILE]`: run, print the table, record it.

With NAMEs, the record keeps what it holds of the others.
"""

import argparse
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.harness import report, save, table

NAMES = (
    "fixed_steps",
    "adaptive",
    "flow",
    "memory_free",
    "block",
    "depth",
    "memory",
)
RESULTS = Path(__file__).parent / "results" / "speed.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=40, help="interleaved rounds (default 40)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the numbers")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"NAME: {', '.join(sorted(unknown))} is not one of {', '.join(NAMES)}")
    if arguments.rounds < 2:
        parser.error(f"--rounds: {arguments.rounds} is not allowed; it must be at least 2")
    torch.set_num_threads(1)
    for name in arguments.names or NAMES:
        module = import_module(f"benchmarks.{name}")
        print(f"\n{module.QUESTION}", flush=True)
        rows = module.run(rounds=arguments.rounds, **module.FULL)
        print(table(rows), flush=True)
        entry = report(name, module.QUESTION, module.EXCLUDED, rows, arguments.rounds)
        save(arguments.out, [entry], NAMES)
        print(f"written to {arguments.out}", flush=True)


if __name__ == "__main__":
    main()
