"""Before anything is installed: one clear line where it cannot work, and no environment half made.

A small script stands for each Python. It answers as that version would, notes what it was asked to
install, and makes folders that look like environments: nothing is fetched and nothing is built.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("Makefile", "pyproject.toml", "constraints.txt", "tools/environment.py")

FAKE = """#!/bin/sh
echo "$*" >> {log}
case "$1 $2" in
"-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"
  printf 'home = {home}\\nversion = {dotted}\\ncommand = {home}/python -m venv %s\\n' "$3" \\
    > "$3/pyvenv.cfg" ;;
"-m pip") test ! -e {offline} ;;
"-m http.server" | "-m jupyterbook") ;;
*) exec {real} -c '
import runpy, sys
sys.version_info = ({commas}, "final", 0)
sys.executable = sys._base_executable = "{home}/python"
sys.modules.update(dict.fromkeys("{missing}".split()))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")' "$@" ;;
esac
"""


class Machine:
    """A copy of the files that set up, and Pythons that pretend."""

    def __init__(self, folder: Path) -> None:
        self.root, self.log, self.offline = folder / "course", folder / "log", folder / "offline"
        for name in FILES:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        self.venv = self.root / ".venv"

    def python(self, version: str, missing: str = "", name: str | None = None) -> Path:
        home = self.root.parent / (name or version)
        home.mkdir()
        places = {"log": self.log, "offline": self.offline, "home": home, "real": sys.executable}
        commas = version.replace(".", ", ")
        script = FAKE.format(dotted=version, commas=commas, missing=missing, **places)
        (home / "python").write_text(script)
        (home / "python").chmod(0o755)
        return home / "python"

    def make(self, *arguments: str | Path, python: str | Path) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        command = ["make", "--no-print-directory", *arguments, f"PYTHON={python}"]
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True
        )

    def asked(self) -> list[str]:
        """What the Pythons were asked to make: "venv", "pip"."""
        return re.findall(r"^-m (venv|pip)\b", self.log.read_text(), re.MULTILINE)

    def set_up(self, python: Path) -> None:
        done = self.make("environment", python=python)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def range_of_versions() -> tuple[int, int]:
    text = (ROOT / "pyproject.toml").read_text()
    low, above = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', text).groups()
    return int(low), int(above) - 1


LOW, HIGH = range_of_versions()


@pytest.mark.parametrize(
    ("version", "age"), [(f"3.{LOW - 1}.13", "old"), ("2.7.18", "old"), (f"3.{HIGH + 1}.0", "new")]
)
def test_a_python_out_of_range_is_named_in_one_line(machine, version, age):
    python = machine.python(version)
    for target in ("environment", "book", "test", "check"):
        done = machine.make(target, python=python)
        assert done.returncode != 0
        first, *rest = done.stderr.splitlines()
        short = version.rpartition(".")[0]
        assert first == (
            f"Python {short} ({python}) is too {age}: this project needs Python "
            f"3.{LOW} to 3.{HIGH}. Name one: make PYTHON=/path/to/python"
        )
        assert all(line.startswith("make") for line in rest)
        assert machine.asked() == []
        assert not machine.venv.exists()


@pytest.mark.parametrize("missing", ["ensurepip", "venv"])
def test_a_python_without_venv_or_pip_is_named_in_one_line(machine, missing):
    python = machine.python(f"3.{LOW}.2", missing=missing)
    done = machine.make("book", python=python)
    assert done.returncode != 0
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"{python} cannot make a virtual environment with pip (")
    assert missing in first
    assert first.endswith("On Debian and Ubuntu: apt install python3-venv")
    assert all(line.startswith("make") for line in rest)
    assert machine.asked() == []


def test_a_python_that_is_not_there_is_named_in_one_line(machine):
    done = machine.make("book", python="python3.99")
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        "python3.99: not found. Install Python (README.md says which), or name one: "
        "make PYTHON=/path/to/python"
    )


@pytest.mark.parametrize("version", [f"3.{LOW}.0", f"3.{HIGH}.9"])
def test_the_ends_of_the_range_are_set_up_once(machine, version):
    python = machine.python(version)
    machine.set_up(python)
    assert machine.asked() == ["venv", "pip"]
    machine.set_up(python)
    assert machine.asked() == []
    machine.set_up(machine.venv / "bin" / "python")  # as after `source .venv/bin/activate`
    assert machine.asked() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_another_lock_updates_the_environment_and_keeps_it(machine, name):
    python = machine.python(f"3.{LOW}.4")
    machine.set_up(python)
    os.utime(machine.root / name)  # a checkout of the same text is no change
    machine.set_up(python)
    assert machine.asked() == []
    with (machine.root / name).open("a") as file:
        file.write("# another\n")
    machine.set_up(python)
    assert machine.asked() == ["pip"]


@pytest.mark.parametrize("update", [False, True])
def test_what_was_never_finished_is_made_anew(machine, update):
    python = machine.python(f"3.{LOW}.4")
    if update:
        machine.set_up(python)
        (machine.root / "constraints.txt").write_text("numpy==2.0.0\n")
    machine.offline.touch()
    done = machine.make("environment", python=python)
    assert done.returncode != 0
    machine.offline.unlink()
    done = machine.make("environment", python=python)
    assert (done.returncode, done.stdout) == (0, ".venv is made anew: it was never finished\n")
    assert machine.asked() == ["venv", "pip"]


def test_an_environment_of_another_python_is_made_anew(machine):
    one = machine.python(f"3.{LOW}.4")
    others = [
        machine.python(f"3.{HIGH}.1"),
        machine.python(f"3.{HIGH}.1", name="elsewhere"),
    ]
    machine.set_up(one)
    for other in others:
        before = machine.venv.joinpath("pyvenv.cfg").read_text()
        done = machine.make("environment", python=other)
        assert done.stdout.startswith(".venv is made anew: it was made by Python ")
        assert machine.asked() == ["venv", "pip"]
        assert machine.venv.joinpath("pyvenv.cfg").read_text() != before


def test_an_environment_whose_python_went_away_is_made_anew(machine):
    python = machine.python(f"3.{LOW}.4")
    machine.set_up(python)
    (machine.venv / "bin" / "python").unlink()
    (machine.venv / "bin" / "python").symlink_to(machine.root / "gone")
    done = machine.make("environment", python=python)
    assert done.stdout == ".venv is made anew: it holds no Python that runs\n"
    assert machine.asked() == ["venv", "pip"]


def test_an_environment_that_was_moved_is_made_anew(machine):
    python = machine.python(f"3.{LOW}.4")
    machine.set_up(python)
    machine.root = machine.root.rename(machine.root.with_name("moved"))
    done = machine.make("environment", python=python)
    assert done.stdout.startswith(".venv is made anew: it was made in ")


def test_a_linked_environment_is_left_alone(machine, tmp_path):
    (tmp_path / "shared").mkdir()
    machine.venv.symlink_to(tmp_path / "shared")
    machine.set_up(machine.python(f"3.{LOW}.4"))
    assert machine.asked() == []
    assert list((tmp_path / "shared").iterdir()) == []


def test_serve_builds_only_what_was_never_built(machine):
    python = machine.python(f"3.{LOW}.4")
    page = machine.root / "_build" / "html" / "index.html"
    page.parent.mkdir(parents=True)
    page.touch()
    done = machine.make("serve", "PORT=8123", python=python)
    assert done.returncode == 0, done.stderr
    assert machine.log.read_text().splitlines() == [
        "-m http.server 8123 --bind 127.0.0.1 --directory _build/html"
    ]
    page.unlink()
    machine.make("serve", python=python)
    assert machine.asked() == ["venv", "pip"]  # on the way to a book, which is not here
