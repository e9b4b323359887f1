"""Run a notebook with other parameters, and refuse names that it does not have.

papermill itself only prints a line for an unknown name, then runs with the defaults.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import papermill
import yaml


def main(arguments: list[str] | None = None) -> int:
    """Run one notebook from the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters"
    )
    options = parser.parse_args(arguments)
    parameters = {name: yaml.safe_load(value) for name, value in options.parameters}
    try:
        run(options.notebook, options.output, parameters)
    except ValueError as error:
        parser.error(str(error))
    return 0


def run(notebook: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Execute `notebook` in its own folder with `parameters` and write the result to `output`.

    Raises:
        ValueError: a parameter is unknown, or `output` is the notebook itself; nothing has run.
    """
    known = list(papermill.inspect_notebook(notebook))
    if unknown := sorted(parameters.keys() - set(known)):
        raise ValueError(f"{notebook.name} has no parameter {', '.join(unknown)}; it has {known}")
    if output.resolve() == notebook.resolve():
        raise ValueError(f"output must not be the notebook itself: {output}")
    papermill.execute_notebook(
        notebook, output, parameters, cwd=notebook.parent, progress_bar=False
    )


if __name__ == "__main__":
    sys.exit(main())
