"""The chapters: sound pairs, complete texts, outputs that a new run confirms."""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from chapter_skeleton import directives, lacks
from notebook_check import check
from notebook_sync import chapters, kernel_environment, read_text

import companion.exercises

ROOT = Path(__file__).parents[2]
chapter = pytest.mark.parametrize("text", chapters(ROOT), ids=lambda path: path.stem)


def test_pairs_agree_and_outputs_are_fresh():
    assert check(ROOT) == []


@chapter
def test_chapter_has_the_whole_skeleton(text):
    assert lacks(read_text(text), ROOT) == []


def labels(text):
    asked = [d for d in directives(text.read_text()) if d.name in ("exercise", "exercise-start")]
    return {label for d in asked for label in re.findall(r":label:\s*(\S+)", d.body)}


def checked():
    modules = pkgutil.iter_modules(companion.exercises.__path__, "companion.exercises.")
    found = [importlib.import_module(module.name) for module in modules]
    return {exercise.id for module in found for exercise in getattr(module, "EXERCISES", ())}


@chapter
def test_every_exercise_has_a_checker_of_the_same_name(text):
    assert labels(text) <= checked()


def test_every_checker_has_an_exercise_that_asks_for_it():
    assert checked() == set().union(*map(labels, chapters(ROOT)))


@pytest.mark.notebook
@pytest.mark.slow
@chapter
def test_a_new_run_confirms_the_outputs(text):
    """Every cell runs, and those tagged `nbval-check-output` print what is committed."""
    nbval = "--nbval-lax --nbval-current-env --nbval-cell-timeout=900 -p no:cacheprovider"
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", *nbval.split()]
    environment = {k: v for k, v in kernel_environment(ROOT).items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, os.fspath(text.with_suffix(".ipynb"))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
