"""One strict build of the book, shared by all test processes of a run."""

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from bs4 import BeautifulSoup
from filelock import FileLock

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Book:
    """A built book: where its pages are, how the build ended and what it said."""

    html: Path
    status: int
    log: str

    def pages(self) -> dict[str, Path]:
        """Return the pages by name; the theme keeps templates that are none in `_static`."""
        found = {str(path.relative_to(self.html)): path for path in self.html.rglob("*.html")}
        return {name: found[name] for name in sorted(found) if not name.startswith("_static")}


@functools.cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def jupyter_book(source: Path, output: Path, **environment: str) -> Book:
    command = [
        Path(sys.executable).parent / "jupyter-book",
        "build",
        source,
        "--path-output",
        output,
    ]
    done = subprocess.run(
        [*command, "-W", "-n", "--keep-going"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "REPOSITORY_URL": "", **environment},
    )
    return Book(output / "_build" / "html", done.returncode, done.stdout)


def chapters_in_toc() -> list[str]:
    """Return the documents of the table of contents, in order."""

    def files(node: object) -> Iterator[str]:
        if isinstance(node, list):
            for item in node:
                yield from files(item)
        elif isinstance(node, dict):
            for key, value in node.items():
                if key in ("root", "file"):
                    yield value
                else:
                    yield from files(value)

    return list(files(yaml.safe_load((ROOT / "_toc.yml").read_text())))


def shared_book(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Book:
    """Return the book, built cold: a build that finds old pages says nothing about them."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    output, log = shared / "book", shared / "book.log"
    with FileLock(shared / "book.lock"):
        if not log.exists():
            built = jupyter_book(ROOT, output)
            log.write_text(f"{built.status}\n{built.log}", encoding="utf-8")
    status, _, text = log.read_text(encoding="utf-8").partition("\n")
    return Book(output / "_build" / "html", int(status), text)
