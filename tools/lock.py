"""What the lists of packages allow: their two ends, and a resolver's word on the lock.

python tools/lock.py requirements oldest   what the package needs, each at its lower bound
python tools/lock.py requirements newest   the same without bounds, for the newest versions
python tools/lock.py resolve UV            does the lock hold on every supported Python?
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from environment import supported

ROOT = Path(__file__).resolve().parent.parent
ENDS = ("oldest", "newest")

# Their versions come with the build of torch that the platform has, so that the lock leaves them.
_FREE = re.compile(r"(nvidia|cuda)-|triton")
_NEEDED = re.compile(r"([\w.-]+)>=([\w.]+)(,<\w+)?")
_RESOLVE = "pip compile -q pyproject.toml --all-extras -c constraints.txt --only-binary :all:"


def requirements(end: str) -> Iterator[str]:
    """Yield lines for pip: the package's needs at one end of what they allow, tests as locked.

    Raises:
        ValueError: `end` is neither `"oldest"` nor `"newest"`.
    """
    if end not in ENDS:
        raise ValueError(f"end must be one of {ENDS}; got {end!r}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        name, bound = _parts(text)
        yield f"{name}=={bound}.*" if end == "oldest" else name
    own = {_parts(text)[0] for text in project["dependencies"]}
    pins = _pins((ROOT / "constraints.txt").read_text())
    for text in project["optional-dependencies"]["test"]:
        name = _parts(text)[0]
        if name not in own:
            yield f"{name}=={pins[name]}"


def versions() -> list[str]:
    """Return the Pythons to resolve for: the first patch level of each supported version."""
    (_, low), (_, high) = supported()
    return [f"3.{minor}.0" for minor in range(low, high + 1)]


def unpinned(resolved: str, lock: str) -> list[str]:
    """Return what a resolver chose and the lock does not name."""
    chosen, locked = _pins(resolved), _pins(lock)
    return sorted(name for name in chosen if name not in locked and not _FREE.match(name))


def resolve(uv: str) -> list[str]:
    """Return what is wrong with the lock, by version of Python."""
    lock, wrong = (ROOT / "constraints.txt").read_text(), []
    for version in versions():
        command = [uv, *_RESOLVE.split(), "--no-annotate", "--no-header"]
        command += ["--python-version", version]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            wrong.append(f"Python {version}: {done.stderr.strip()}")
        elif free := unpinned(done.stdout, lock):
            wrong.append(f"Python {version}: constraints.txt does not pin {', '.join(free)}")
        else:
            print(f"Python {version}: the lock holds", flush=True)
    return wrong


def main(arguments: list[str]) -> int:
    """Run one command and return its exit status."""
    match arguments:
        case ["requirements", end] if end in ENDS:
            print("\n".join(requirements(end)))
            return 0
        case ["resolve", uv]:
            wrong = resolve(uv)
            print("\n".join(wrong), file=sys.stderr)
            return 1 if wrong else 0
    print(__doc__, file=sys.stderr)
    return 2


def _parts(text: str) -> tuple[str, str]:
    match = _NEEDED.fullmatch(text)
    assert match is not None, f"{text!r} is not of the form name>=version"
    return _name(match[1]), match[2]


def _pins(text: str) -> dict[str, str]:
    pairs = (line.split("==") for line in text.splitlines() if "==" in line)
    return {_name(name): version for name, version in pairs}


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
