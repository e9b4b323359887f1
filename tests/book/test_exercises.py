"""Every exercise accepts its solution and rejects the listed mistakes."""

import importlib
import pkgutil

import pytest

import companion.exercises as exercises
from companion.exercises import Exercise, WrongAnswer

MODULES = [
    importlib.import_module(f"companion.exercises.{info.name}")
    for info in pkgutil.iter_modules(exercises.__path__)
]
ALL: list[Exercise] = [e for m in MODULES for e in getattr(m, "EXERCISES", ())]
WRONG = [(e, mistake) for e in ALL for mistake in e.wrong]


@pytest.mark.parametrize("exercise", ALL, ids=lambda e: e.id)
def test_solution_is_accepted(exercise):
    message = exercise.check(exercise.solution)
    assert isinstance(message, str)
    assert message


def test_at_least_four_mistakes_are_listed():
    assert ALL
    assert [e.id for e in ALL if len(e.wrong) < 4] == []


@pytest.mark.parametrize(("exercise", "mistake"), WRONG, ids=[f"{e.id}-{m}" for e, m in WRONG])
def test_mistake_is_rejected_with_a_hint(exercise, mistake):
    with pytest.raises(WrongAnswer, match=r"\w+ \w+"):
        exercise.check(exercise.wrong[mistake])


def test_ids_are_unique():
    ids = [e.id for e in ALL]
    assert len(ids) == len(set(ids))
