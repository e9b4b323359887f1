"""The wheel holds all of the package and the recorded results, and works without the repository."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import nbformat
import pytest
from notebook_sync import chapters, kernel_environment

from companion import records
from companion.results import Result

ROOT = Path(__file__).parents[2]
SOURCES = ("companion", "book/results", "pyproject.toml", "setup.py", "MANIFEST.in")
TEXTS = ("README.md", "LICENSE")
BUILD = "from setuptools import build_meta as b; import sys; b.{step}(sys.argv[1])"


def build(step: str, source: Path, target: Path) -> Path:
    """Build from the folder `source` as `python -m build` does, without the network."""
    target.mkdir()
    command = [sys.executable, "-c", BUILD.format(step=step), target]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(target.iterdir())


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The source archive, made from a copy of what it is made of, and the wheel made from it."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in (*SOURCES, *TEXTS):
        source, target = ROOT / name, folder / "sources" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copy(source, target)
    sdist = build("build_sdist", folder / "sources", folder / "sdist")
    shutil.unpack_archive(sdist, folder / "unpacked")
    return sdist, build("build_wheel", next((folder / "unpacked").iterdir()), folder / "wheel")


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """A function that runs Python with the content of the wheel, away from the repository."""
    folder = tmp_path_factory.mktemp("installed")
    site = folder / "site-packages"
    with zipfile.ZipFile(archives[1]) as wheel:
        wheel.extractall(site)

    environment = kernel_environment(site)
    environment.pop("COMPANION_FRESH", None)  # what the wheel records is to answer

    def python(*arguments: str | Path, cwd: Path = folder) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return python


def test_wheel_holds_the_package_the_records_and_nothing_else(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "companion").rglob("*.py")}
    wanted |= {f"companion/recorded/{id}.{tier}.json" for id, tier in records.names()}
    assert found == wanted | {"companion/py.typed"}


def test_source_archive_leaves_the_tests_out(archives):
    with tarfile.open(archives[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*TEXTS, "setup.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith(("tests", "notebooks"))]


def test_wheel_reads_its_own_records(installed):
    code = (
        "import companion, companion.records as r;"
        "print(companion.__file__, r.folder(), r.load('C18-A6', 'smoke').to_json(), sep='\\n')"
    )
    module, folder, text = installed("-c", code).split("\n", 2)
    assert "site-packages" in Path(module).parts[:-2]
    assert Path(folder) == Path(module).parent / "recorded"
    assert Result.from_json(text) == records.load("C18-A6", "smoke")


def test_wheel_runs_exercises_lists_and_runs_experiments(installed, tmp_path):
    code = (
        "from companion.exercises.residual_steps import EXERCISES as exercises\n"
        "for exercise in exercises: print(exercise.id, exercise.check(exercise.solution))"
    )
    assert len(installed("-c", code).splitlines()) >= 4
    listed = installed("-m", "companion", "list")
    assert all(id in listed for id, _ in records.names())
    installed("-m", "companion", "run", "C18-A6", "--tier", "smoke", "--out", tmp_path)
    assert Result.load(tmp_path / "C18-A6.smoke.json").misses == ()


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("COMPANION_FRESH") != "1", reason="`make weekly` runs it")
@pytest.mark.parametrize("text", chapters(ROOT), ids=lambda path: path.stem)
def test_wheel_runs_a_notebook_that_lies_alone(installed, tmp_path, text):
    """As on Colab: a wheel is installed, a notebook was downloaded, and nothing else is there."""
    notebook = nbformat.read(text.with_suffix(".ipynb"), as_version=4)
    probe = "import companion; print(companion.__file__)"
    notebook.cells.append(nbformat.v4.new_code_cell(probe))
    nbformat.write(notebook, tmp_path / "alone.ipynb")
    installed("-m", "papermill", "alone.ipynb", "executed.ipynb", cwd=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"alone.ipynb", "executed.ipynb"}
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    assert "site-packages/companion" in executed.cells[-1].outputs[0].text
    assert not [
        o for c in executed.cells for o in c.get("outputs", ()) if o.get("name") == "stderr"
    ]
