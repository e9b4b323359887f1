"""Both ends of what the lists of packages allow, and how a resolver's answer is read."""

import sys
import tomllib
from pathlib import Path

import lock
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
NEEDED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def test_oldest_is_the_lower_bound_of_all_that_the_package_needs():
    lines = {r.name: r for r in map(Requirement, lock.requirements("oldest"))}
    for needed in map(Requirement, NEEDED):
        (bound,) = (s.version for s in needed.specifier if s.operator == ">=")
        chosen = lines[needed.name].specifier
        assert Version(bound) in chosen
        assert Version(f"{Version(bound).major + 1}.0") not in chosen
    assert "pytest" in lines
    assert "jupyter-book" not in lines  # the book is built with the lock only


def test_newest_has_no_bounds():
    lines = {r.name: r for r in map(Requirement, lock.requirements("newest"))}
    assert all(str(lines[Requirement(text).name].specifier) == "" for text in NEEDED)


def test_every_supported_python_is_asked_for_at_its_first_patch_level():
    assert lock.versions()[0] == "3.11.0"
    assert [v.rpartition(".")[2] for v in lock.versions()] == ["0"] * len(lock.versions())


def test_what_comes_with_a_build_of_torch_needs_no_pin():
    resolved = "torch==2.13.0\nnvidia-cublas==13.1\ntriton==3.7\nruamel.yaml==0.19\nyarl==1.2\n"
    assert lock.unpinned(resolved, "torch==2.13.0\nruamel_yaml==0.19\n") == ["yarl"]


@pytest.fixture
def resolver(tmp_path):
    """A resolver with an answer for each Python: a script in the place of uv."""

    def make(answer: str) -> str:
        script = tmp_path / "uv"
        code = f"import sys\nversion = sys.argv[-1]\n{answer}\n"
        script.write_text(f"#!{sys.executable}\n{code}")
        script.chmod(0o755)
        return str(script)

    return make


def test_a_lock_that_holds_everywhere(resolver, capsys):
    assert lock.main(["resolve", resolver("print('torch==2.13.0')")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [f"Python {version}: the lock holds" for version in lock.versions()]


def test_a_lock_that_fails_on_one_python_names_it(resolver, capsys):
    answer = "if version == '3.11.0': sys.exit('soupsieve==4.1.1 needs 3.11.5')"
    assert lock.main(["resolve", resolver(answer)]) == 1
    assert capsys.readouterr().err.strip() == "Python 3.11.0: soupsieve==4.1.1 needs 3.11.5"
    answer = "if version == '3.12.0': print('aiolib==1.0')"
    assert lock.main(["resolve", resolver(answer)]) == 1
    message = "Python 3.12.0: constraints.txt does not pin aiolib"
    assert capsys.readouterr().err.strip() == message


def test_other_commands_are_refused(capsys):
    assert lock.main(["requirements", "middle"]) == 2
    assert "requirements oldest" in capsys.readouterr().err
