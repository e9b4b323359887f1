"""Turn chapter texts into executed notebooks: one way, only where stale, to the same bytes."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from notebook_record import digest, record

TEXT_FORMAT = "md:myst"
RECORD = "executed_from"


def chapters(root: Path) -> list[Path]:
    """Return the chapter texts `notebooks/NN_slug.md` under `root`, in order."""
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.md"))


def sync(text: Path, root: Path, force: bool = False) -> str:
    """Bring the executed twin of `text` up to date; return what was done.

    Markdown, comments and figure captions are carried over without running anything. Code cells
    run again when they, or the companion modules they import, changed since the recorded run.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the old notebook is left as it was.
    """
    target = text.with_suffix(".ipynb")
    notebook = read_text(text)
    wanted = record(notebook, root)
    old = _read_executed(target)
    if force or old is None or not _was_run_from(old, wanted):
        done = "executed"
        _execute(notebook, root)
    else:
        done = "text updated"
        for new_cell, old_cell in zip(code_cells(notebook), code_cells(old), strict=True):
            new_cell.outputs = old_cell.outputs
            new_cell.execution_count = old_cell.execution_count
    notebook.metadata[RECORD] = {**wanted, "outputs": outputs_digest(notebook)}
    changed = _write(target, notebook)
    return done if changed or done == "executed" else "up to date"


def read_text(path: Path) -> NotebookNode:
    """Read a MyST text notebook with stable cell ids and only the metadata worth keeping."""
    notebook = jupytext.read(path, fmt=TEXT_FORMAT)
    kept = {key: notebook.metadata[key] for key in ("tiny",) if key in notebook.metadata}
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
            **kept,
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        # Ids from the content: an edit to one cell leaves the ids of all others alone.
        base = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:10]
        seen[base] = seen.get(base, 0) + 1
        cell.id = base if seen[base] == 1 else f"{base}-{seen[base]}"
    return notebook


def code_cells(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """Yield the code cells of `notebook`."""
    return (cell for cell in notebook.cells if cell.cell_type == "code")


def outputs_digest(notebook: NotebookNode) -> str:
    """Return a hash of every output, to tell when one was edited or made elsewhere."""
    return digest([[cell.execution_count, cell.outputs] for cell in code_cells(notebook)])


def kernel_environment(root: Path) -> dict[str, str]:
    """Return an environment in which a kernel gives the same numbers on any number of cores."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {
        **os.environ,
        **threads,
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(root),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else a frozen interpreter warns on stderr
    }


def _read_executed(path: Path) -> NotebookNode | None:
    try:
        return nbformat.read(path, as_version=4)
    except (FileNotFoundError, ValueError):  # not there, or broken by a merge: make it anew
        return None


def _was_run_from(notebook: NotebookNode, wanted: dict[str, Any]) -> bool:
    recorded = dict(notebook.metadata.get(RECORD, {}))
    untouched = recorded.pop("outputs", None) == outputs_digest(notebook)
    return untouched and recorded == wanted


def _execute(notebook: NotebookNode, root: Path) -> None:
    client = NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(root / "notebooks")}},
    )
    language_info = notebook.metadata.language_info
    client.execute(env=kernel_environment(root))
    notebook.metadata.language_info = language_info  # the kernel's own names its Python version


def _write(path: Path, notebook: NotebookNode) -> bool:
    """Write `notebook` if its text differs from what is there; return whether it did."""
    text = nbformat.writes(notebook, version=4) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    temporary = path.with_suffix(".ipynb.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return True
