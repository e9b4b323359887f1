"""Every chapter runs with the tiny parameters of its front matter.

All of them each week, where everything is computed anew; else those whose outputs are older than
what they rest on. In a file of its own: these runs can go beside those of test_notebooks.py.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import papermill
import pytest
import yaml
from notebook_check import faults
from notebook_sync import chapters, kernel_environment, read_text

ROOT = Path(__file__).parents[2]
chapter = pytest.mark.parametrize("text", chapters(ROOT), ids=lambda path: path.stem)


@chapter
def test_tiny_parameters_are_known_and_not_the_defaults(text):
    tiny = read_text(text).metadata["tiny"]
    known = papermill.inspect_notebook(text.with_suffix(".ipynb"))
    assert set(tiny) <= set(known)
    defaults = {name: ast.literal_eval(known[name]["default"]) for name in tiny}
    assert tiny != defaults


@pytest.mark.notebook
@pytest.mark.slow
@chapter
def test_chapter_runs_with_tiny_parameters(text, tmp_path):
    if os.environ.get("COMPANION_FRESH") != "1" and not list(faults(text, ROOT)):
        pytest.skip("its outputs are fresh: `make weekly` runs it")
    tiny = read_text(text).metadata["tiny"]
    values = yaml.safe_dump(tiny)
    notebook = os.fspath(text.with_suffix(".ipynb"))
    script = os.fspath(ROOT / "tools" / "papermill_run.py")
    done = subprocess.run(
        [sys.executable, script, notebook, os.fspath(tmp_path / "out.ipynb"), "-y", values],
        env=kernel_environment(ROOT),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
