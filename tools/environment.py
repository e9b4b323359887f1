"""Make `.venv` what the lock says, or tell in one line why that cannot be done.

python tools/environment.py          check this Python, then make or update `.venv`
python tools/environment.py --check  check this Python only

It runs before anything is installed, under whatever Python there is: it needs the standard library
only, and is written so that a Python too old for the project still reads it.
"""

from __future__ import print_function

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
INSTALL = ("install", "-q", "-c", "constraints.txt", "-e", ".[book,test]")


def supported():
    """Return the lowest and the highest version that `requires-python` admits, as (3, minor)."""
    text = _read(os.path.join(ROOT, "pyproject.toml"))
    low, above = re.search(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"$', text, re.M).groups()
    return (3, int(low)), (3, int(above) - 1)


def complaint():
    """Return what is wrong with this Python, in one line, or `None`."""
    low, high = supported()
    version = tuple(sys.version_info[:2])
    if not low <= version <= high:
        age = "old" if version < low else "new"
        return (
            "Python {}.{} ({}) is too {}: this project needs Python {}.{} to {}.{}. "
            "Name one: make PYTHON=/path/to/python"
        ).format(*(version + (sys.executable, age) + low + high))
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        return (
            "{} cannot make a virtual environment with pip ({}). On Debian and Ubuntu: "
            "apt install python3-venv"
        ).format(sys.executable, error)
    return None


def fault(folder):
    """Return why `folder` cannot be kept as the environment, or `None`."""
    settings = os.path.join(folder, "pyvenv.cfg")
    if not (os.access(_python(folder), os.X_OK) and os.path.exists(settings)):
        return "it holds no Python that runs"
    if not os.path.exists(_stamp(folder)):
        return "it was never finished"
    made = dict(re.findall(r"^(\S+) *= *(.*?) *$", _read(settings), re.M))
    version = ".".join(made.get("version", "").split(".")[:2])
    here = getattr(sys, "_base_executable", sys.executable)  # also from within an environment
    wanted = "{}.{}".format(*sys.version_info[:2])
    if version != wanted or not _same(made.get("home", ""), os.path.dirname(here)):
        return "it was made by Python {} of {}".format(version, made.get("home", "?"))
    place = made.get("command", "").rpartition(" -m venv ")[2]
    if place.startswith("/") and not _same(place, folder):  # its scripts name the old place
        return "it was made in {}".format(place)
    return None


def lock():
    """Return a hash of the two files that decide what is installed."""
    texts = [_read(os.path.join(ROOT, name)) for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256("\n".join(texts).encode("utf-8")).hexdigest()


def prepare(folder):
    """Bring the environment in `folder` up to date and return an exit status."""
    if os.path.lexists(folder):
        if os.path.islink(folder):  # shared with another checkout, which looks after it
            return 0
        why = fault(folder)
        if why is None and _read(_stamp(folder)) == lock():
            return 0
        if why is not None:
            print("{} is made anew: {}".format(os.path.basename(folder), why), flush=True)
            shutil.rmtree(folder)
        else:
            os.remove(_stamp(folder))  # an update that breaks off leaves nothing to rely on
    commands = [(_python(folder), "-m", "pip") + INSTALL]
    if not os.path.exists(folder):
        commands.insert(0, (sys.executable, "-m", "venv", folder))
    for command in commands:
        status = subprocess.call(command, cwd=ROOT)
        if status:
            return status
    with io.open(_stamp(folder), "w", encoding="utf-8") as file:
        file.write(lock())
    return 0


def main(arguments):
    """Check, prepare, and return an exit status."""
    problem = complaint()
    if problem is not None:
        print(problem, file=sys.stderr)
        return 1
    return 0 if arguments == ["--check"] else prepare(os.path.join(ROOT, ".venv"))


def _python(folder):
    return os.path.join(folder, "bin", "python")


def _stamp(folder):
    return os.path.join(folder, ".installed")


def _same(one, other):
    return os.path.realpath(one) == os.path.realpath(other)


def _read(path):
    with io.open(path, encoding="utf-8") as file:
        return file.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
