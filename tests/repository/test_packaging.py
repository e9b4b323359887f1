"""The lists of packages agree, the versions agree, the workflows are well formed."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import (
    PackageNotFoundError,
    distributions,
    packages_distributions,
    requires,
    version,
)
from pathlib import Path
from typing import Any

import pytest
import yaml
from fields import COMPILE
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import companion

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LOCAL = {
    path.stem for folder in ("book", "tools", "tests") for path in ROOT.glob(f"{folder}/**/*.py")
}
LOCAL |= {"benchmarks", "companion", "figures"}
TARGETS = {
    target
    for line in (ROOT / "Makefile").read_text().splitlines()
    if (match := re.match(r"([a-z ]+):", line))
    for target in match[1].split()
}
COMMAND = re.compile(r"(\.ci/run|make)( (?P<target>[a-z]+|\$\{\{ matrix\.target \}\}))?")


def pins() -> dict[str, Version]:
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, number = line.partition("==")
        assert number, f"constraints.txt: {line!r} is not of the form name==version"
        assert canonicalize_name(name) not in found, f"constraints.txt names {name} twice"
        found[canonicalize_name(name)] = Version(number)
    return found


def requirements(*extras: str) -> list[Requirement]:
    """Return what the package needs, and what these of its extras, or all of them, need."""
    optional = PROJECT["optional-dependencies"]
    lists = [PROJECT["dependencies"], *(optional[name] for name in extras or optional)]
    return [Requirement(text) for texts in lists for text in texts]


def test_every_dependency_is_pinned_to_a_version_it_allows():
    locked = pins()
    for requirement in requirements():
        pin = locked.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in constraints.txt"
        assert pin in requirement.specifier, f"{requirement} does not allow {pin}"
        assert requirement.specifier, f"{requirement.name} has no lower bound in pyproject.toml"


def test_compiled_paths_ask_for_a_newer_torch_by_name():
    (needed,) = map(Requirement, PROJECT["optional-dependencies"]["compile"])
    (lowest,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch")
    (bound,) = lowest.specifier
    newer = ".".join(map(str, COMPILE))
    assert str(needed) == f"torch>={newer}"
    assert Version(bound.version) < Version(newer)


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
    script = (ROOT / "tools" / "environment.py").read_text()
    assert '"install", "-q", "-c", "constraints.txt", "-e", ".[book,test]"' in script


def supported() -> tuple[str, str]:
    """Return the lowest and the highest minor version of Python, as "3.11"."""
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    return f"3.{low}", f"3.{int(high) - 1}"


def test_one_range_of_pythons_everywhere():
    low, high = supported()
    for name in ("README.md", "book/how_to_use.md"):
        stated = re.findall(r"Python\s(3\.\d+\sto\s3\.\d+)", (ROOT / name).read_text())
        assert stated == [f"{low} to {high}"], name
        assert not re.search(r"Python\s3\.\d+\sor\snewer", (ROOT / name).read_text())
    tools = PYPROJECT["tool"]
    assert tools["mypy"]["python_version"] == low
    assert tools["ruff"]["target-version"] == "py" + low.replace(".", "")
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["image"].endswith(f":{low}")
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            for step in job["steps"]:
                if "python-version" in (options := step.get("with", {})):
                    matrix = job.get("strategy", {}).get("matrix", {})
                    text = str(matrix.get("python", [options["python-version"]]))
                    named = re.findall(r"3\.\d+", text)
                    assert named in ([low], [low, high]), f"{path.name}: {name}"


def test_every_pin_admits_the_lowest_and_the_highest_python():
    # The lowest patch level too: Debian 12 has 3.11.2. Pins of other versions than the installed
    # ones are left to `make lock`, which asks the package index.
    low, high = supported()
    installed = {canonicalize_name(d.name): d for d in distributions()}
    refused, read = [], set()
    for name, pin in pins().items():
        if name in installed and Version(installed[name].version).public == pin.public:
            read.add(name)
            needed = SpecifierSet(installed[name].metadata.get("Requires-Python") or "")
            if not (f"{low}.0" in needed and f"{high}.0" in needed):
                refused.append(f"{name}=={pin} needs Python {needed}")
    assert refused == []
    present = pins().keys() & installed.keys()  # the peers of the benchmarks need not be
    assert len(read) > 0.85 * len(present)
    assert {canonicalize_name(r.name) for r in requirements("book", "test")} <= present


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
    available, providers = installed_by(extras), packages_distributions()
    for path in (ROOT / folder).rglob("*.py"):
        for name in imported(path) - LOCAL:
            provided_by = {canonicalize_name(d) for d in providers.get(name, [name])}
            assert provided_by & available, f"{path.name} imports {name}: declare {provided_by}"


def test_workflows_are_valid():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    done = subprocess.run(
        [*command, "vendor.github-workflows", *WORKFLOWS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def targets(job: dict[str, Any]) -> set[str]:
    """Return the targets of the Makefile that a job runs; `.ci/run` alone runs `test`."""
    matrix = job.get("strategy", {}).get("matrix", {})
    found = set()
    for step in job["steps"]:
        command = step.get("run", "make book")
        if command.startswith("apt-get"):  # what a bare container lacks
            continue
        match = COMMAND.fullmatch(command)
        assert match is not None, f"not a target: {command}"
        name = match["target"] or "test"
        found |= set(matrix["target"]) if name == "${{ matrix.target }}" else {name}
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_are_bounded_and_run_the_targets_of_the_makefile(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert "timeout-minutes" in job, f"{name} may run for hours"
        assert targets(job) <= TARGETS, name


def test_the_week_checks_what_a_change_does_not():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "weekly.yml").read_text())["jobs"]
    found = set().union(*map(targets, jobs.values()))
    assert found == {"test", "weekly", "portable", "oldest", "newest", "lock", "book"}
    makefile = (ROOT / "Makefile").read_text()
    assert "\nweekly: environment ##" in makefile
    assert "\tCOMPANION_FRESH=1 $(PYTEST)\n" in makefile
    assert "\tATEN_CPU_CAPABILITY=default $(PYTEST)\n" in makefile


def test_ci_script_ends_with_the_readme_test_command():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o100, ".ci/run is not executable"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert text.splitlines()[-1] == 'CD_REQUIRE_BROWSER=1 make "${1:-test}"'
    assert re.search(r"^make test\b", (ROOT / "README.md").read_text(), re.MULTILINE)
