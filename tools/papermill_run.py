"""Run a notebook with other parameters, and refuse names that it does not have.

papermill itself only prints a line for an unknown name, then runs with the defaults. Options are
read and values typed as on its own command line: -p takes numbers, True, False and None, -r text,
-y YAML.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import papermill
import yaml
from papermill.cli import NoDatesSafeLoader, _resolve_type


@click.command(help=__doc__.splitlines()[0])
@click.argument("notebook", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("-p", "--parameters", nargs=2, multiple=True, metavar="NAME VALUE")
@click.option("-r", "--parameters_raw", "raw", nargs=2, multiple=True, metavar="NAME TEXT")
@click.option(
    "-y",
    "--parameters_yaml",
    "documents",
    multiple=True,
    metavar="YAML",
    help="A mapping, for values that are lists or mappings: 'depths: [2, 4]'.",
)
def command(
    notebook: Path,
    output: Path,
    parameters: Sequence[tuple[str, str]],
    raw: Sequence[tuple[str, str]],
    documents: Sequence[str],
) -> None:
    """Run one notebook; what is wrong with the options is an error of their use."""
    try:
        run(notebook, output, typed(documents, parameters, raw))
    except (ValueError, yaml.YAMLError) as error:
        raise click.UsageError(str(error)) from error


def main(arguments: list[str] | None = None) -> int:
    """Run one notebook from the command line and return its exit status."""
    try:
        command.main(arguments, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from error
    return 0


def typed(
    documents: Sequence[str],
    parameters: Sequence[tuple[str, str]],
    raw: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Give values the types that papermill gives them; -r wins over -p, and -p over -y.

    Raises:
        ValueError: a YAML document that is no mapping.
    """
    values: dict[str, Any] = {}
    for document in documents:
        found = yaml.load(document, Loader=NoDatesSafeLoader) or {}
        if not isinstance(found, dict):
            raise ValueError(f"-y: {document!r} is not allowed; it must be a mapping, NAME: VALUE")
        values |= found
    # papermill's own function: a copy of its rules would go its own way some day.
    values |= {name: _resolve_type(value) for name, value in parameters}
    return values | dict(raw)


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
