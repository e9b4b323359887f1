"""The lists of packages agree, the versions agree, the workflows are well formed."""

import ast
import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import companion

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LOCAL = {
    path.stem for folder in ("book", "tools", "tests") for path in ROOT.glob(f"{folder}/**/*.py")
}
LOCAL |= {"benchmarks", "companion"}


def pins() -> dict[str, Version]:
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, number = line.partition("==")
        assert number, f"constraints.txt: {line!r} is not of the form name==version"
        assert canonicalize_name(name) not in found, f"constraints.txt names {name} twice"
        found[canonicalize_name(name)] = Version(number)
    return found


def requirements() -> list[Requirement]:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(text) for texts in lists for text in texts]


def test_every_dependency_is_pinned_to_a_version_it_allows():
    locked = pins()
    for requirement in requirements():
        pin = locked.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in constraints.txt"
        assert pin in requirement.specifier, f"{requirement} does not allow {pin}"
        assert requirement.specifier, f"{requirement.name} has no lower bound in pyproject.toml"


def test_no_pin_names_a_machine():
    # A local version such as +cpu, or a path, exists on one machine or index only.
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"[+@/]|--", text)


def test_conda_environment_is_the_same_install():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, from_pip = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    assert from_pip == {"pip": ["-c constraints.txt", "-e .[book,test]"]}
    makefile = (ROOT / "Makefile").read_text()
    assert "pip install -q -c constraints.txt -e '.[book,test]'" in makefile


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    number = PROJECT["version"]
    assert version("continuous-depth") == companion.__version__ == number
    assert citation["version"] == number
    released = f"## [{number}] - {citation['date-released']}"
    assert released in (ROOT / "CHANGELOG.md").read_text()


def imported(path: Path) -> set[str]:
    """Return what a file imports as it loads; an import inside a function may be optional."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names)


def installed_by(extras: list[str]) -> set[str]:
    """Return what an install with these extras brings, dependencies of dependencies included."""
    waiting = PROJECT["dependencies"] + [
        text for extra in extras for text in PROJECT["optional-dependencies"][extra]
    ]
    found: set[str] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and name not in found:
            found.add(name)
            with suppress(PackageNotFoundError):
                waiting += requires(requirement.name) or []
    return found


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("companion", []), ("book", ["book"]), ("tools", ["book"]), ("tests", ["book", "test"])],
)
def test_what_is_imported_is_installed(folder, extras):
    available, distributions = installed_by(extras), packages_distributions()
    for path in (ROOT / folder).rglob("*.py"):
        for name in imported(path) - LOCAL:
            provided_by = {canonicalize_name(d) for d in distributions.get(name, [name])}
            assert provided_by & available, f"{path.name} imports {name}: declare {provided_by}"


def test_workflows_are_valid():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    done = subprocess.run(
        [*command, "vendor.github-workflows", *WORKFLOWS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_are_bounded_and_run_the_readme_commands(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert "timeout-minutes" in job, f"{name} may run for hours"
        for step in job["steps"]:
            assert step.get("run", "make book") in (".ci/run", "make book"), step


def test_ci_script_ends_with_the_readme_test_command():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o100, ".ci/run is not executable"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert text.splitlines()[-1] == "CD_REQUIRE_BROWSER=1 make test"
    assert re.search(r"^make test\b", (ROOT / "README.md").read_text(), re.MULTILINE)
