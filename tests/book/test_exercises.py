"""Every exercise accepts its solution and rejects the listed mistakes."""

import importlib
import pkgutil
import re
from collections import Counter

import numpy as np
import pytest
import torch
from loops import loop

import companion.exercises as exercises
from companion.exercises import Exercise, WrongAnswer

MODULES = [
    importlib.import_module(f"companion.exercises.{info.name}")
    for info in pkgutil.iter_modules(exercises.__path__)
]
ALL: list[Exercise] = [e for m in MODULES for e in getattr(m, "EXERCISES", ())]


def test_every_exercise_that_is_written_is_listed():
    written = [e.id for m in MODULES for e in vars(m).values() if isinstance(e, Exercise)]
    assert ALL
    assert sorted(written) == sorted(e.id for e in ALL)


def hints(exercise):
    """What the checker says of each mistake."""
    found = {}
    for mistake, answer in exercise.wrong.items():
        try:
            exercise.check(answer)
        except WrongAnswer as hint:
            found[mistake] = str(hint)
        else:
            pytest.fail(f"{mistake}: accepted")
    return found


@pytest.mark.parametrize("exercise", ALL, ids=lambda e: e.id)
def test_mistakes_are_rejected_and_told_apart(exercise):
    """No two thirds of the mistakes get one hint; numbers in it do not make it another."""
    found = hints(exercise)
    assert len(found) >= 4
    assert all(len(hint.split()) >= 3 for hint in found.values()), found
    kinds = Counter(re.sub(r"[-+]?\d[\d.e+-]*", "#", hint) for hint in found.values())
    assert len(kinds) >= 3, kinds
    assert 3 * max(kinds.values()) <= 2 * len(found), kinds


def test_ids_are_unique():
    ids = [e.id for e in ALL]
    assert len(ids) == len(set(ids))


# Exceptions in an answer


def by_name(name):
    return next(e for e in ALL if e.id == name)


FUNCTIONS = [e for e in ALL if callable(e.solution) and not isinstance(e.solution, torch.nn.Module)]


class Own(Exception):
    pass


ERRORS = (Own, TypeError, ValueError, RuntimeError, AttributeError, KeyError)


@pytest.mark.parametrize("exercise", FUNCTIONS, ids=lambda e: e.id)
def test_an_exception_inside_an_answer_is_shown_as_such(exercise):
    """Checkers catch some kinds themselves, for answers of another form: not in its place."""
    for error in ERRORS:

        def answer(*arguments, error=error):
            raise error("my own slip")

        with pytest.raises(WrongAnswer, match=rf"{error.__name__}: .?my own slip") as found:
            exercise.check(answer)
        assert "Return" not in str(found.value)


@pytest.mark.parametrize("exercise", FUNCTIONS, ids=lambda e: e.id)
def test_an_exception_after_some_right_calls_is_shown_too(exercise):
    calls = []

    def answer(*arguments):
        calls.append(1)
        if len(calls) == 2:
            return [][3]
        return exercise.solution(*arguments)

    try:
        exercise.check(answer)
    except WrongAnswer as hint:
        message = str(hint)
    else:
        message = "IndexError: list index out of range (in line 1: return" if len(calls) < 2 else ""
    assert re.search(r"IndexError: list index out of range \(in line \d+: return", message)


class Slip(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(2))

    def forward(self, *arguments):
        return arguments[-1] @ torch.ones(5, 7).to(arguments[-1])


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("adjoint-ex-bounce", lambda: (Slip(), torch.ones(2), 1.0)),
        ("graphs-ex-exact", lambda: (Slip(), torch.ones(4, 2))),
        ("refinement-ex-together", Slip),
        ("limits-ex-cheap", Slip),
        ("free-order-ex-straight", lambda: ([Slip() for _ in range(20)], torch.ones(4, 2))),
        ("isode-ex-opposite", lambda: (Slip(), [0.5, -0.5] * 8)),
    ],
)
def test_an_exception_inside_a_module_is_shown_as_such(name, answer):
    with pytest.raises(WrongAnswer, match=r"Your answer raises RuntimeError: .*(size|mul|shape)"):
        by_name(name).check(answer())


def test_an_exception_that_comes_late_is_found_in_the_answer():
    """A generator runs in the checker's own loop."""

    def answer(x0, rate, end):
        yield 1.0
        yield x0 / 0

    with pytest.raises(WrongAnswer, match="ZeroDivisionError"):
        by_name("adjoint-ex-linear").check(lambda *given: list(answer(*given)))


@pytest.mark.parametrize("exercise", ALL, ids=lambda e: e.id)
def test_answers_of_any_kind_end_in_a_hint(exercise):
    for answer in (None, ..., 3, "text", [], {}, object(), (1, 2, 3), float("nan")):
        for given in (answer, lambda *arguments, answer=answer: answer):
            with pytest.raises(WrongAnswer, match=r"\w+ \w+"):
                exercise.check(given)


def test_interrupting_is_not_an_answer():
    def answer(*arguments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        by_name("adjoint-ex-linear").check(answer)


def test_ipython_shows_the_hint_alone(tmp_path):
    """In a cell, as readers see it: no frame of the checker, for a wrong value or an exception."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell()
    shell.run_cell("from companion.exercises.adjoint import LINEAR")
    for answer, shown in (
        ("lambda x, r, T: (1.0, 2.0, 3.0)", "Not yet: At x0=1.5"),
        (
            "lambda x, r, T: 1 / 0",
            "Not yet: Your answer raises ZeroDivisionError: division by zero",
        ),
    ):
        with capture_output() as found:
            result = shell.run_cell(f"LINEAR.check({answer})")
        assert isinstance(result.error_in_exec, WrongAnswer)
        text = found.stdout + found.stderr
        assert shown in text
        for frame in ("Traceback", "checking.py", "adjoint.py", "-->", "During handling"):
            assert frame not in text
    InteractiveShell.clear_instance()


# Right answers in another form


def same(value):
    return value


def single(value):
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.float()
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float32)
    if isinstance(value, tuple | list):
        return type(value)(map(single, value))
    return {k: single(v) for k, v in value.items()} if isinstance(value, dict) else value


def arrays(value):
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if isinstance(value, float | int):
        return np.asarray(value)
    if isinstance(value, tuple | list):
        return type(value)(map(arrays, value))
    return {k: arrays(v) for k, v in value.items()} if isinstance(value, dict) else value


def lists(value):
    if isinstance(value, torch.Tensor):
        return value.detach().tolist()
    if isinstance(value, tuple | list):
        return list(map(lists, value))
    return {k: lists(v) for k, v in value.items()} if isinstance(value, dict) else value


def tensors(value):
    if isinstance(value, float | int):
        return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    if isinstance(value, tuple | list):
        return type(value)(map(tensors, value))
    return {k: tensors(v) for k, v in value.items()} if isinstance(value, dict) else value


FORMS = (same, single, arrays, lists, tensors)

# A block has one form; the smallest error of a pendulum is as small as single precision rounds.
ONE_FORM = {("residual-ex-stack", form) for form in (single, arrays, lists, tensors)}
ONE_FORM.add(("pendulum-ex-error", single))


@pytest.mark.parametrize("exercise", ALL, ids=lambda e: e.id)
@loop("form", FORMS)
def test_the_solution_is_accepted_in_any_form(exercise, form):
    answer = exercise.solution
    if form is not same:
        if (exercise.id, form) in ONE_FORM or isinstance(answer, torch.nn.Module):
            return
        if exercise in FUNCTIONS:
            solution = answer

            def answer(*given):
                return form(solution(*given))
        else:
            answer = form(answer)
    message = exercise.check(answer)
    assert isinstance(message, str)
    assert message


def test_numbers_of_one_entry_and_integers_of_any_kind():
    spacing = by_name("adjoint-ex-spacing")
    for kind in (np.int64, torch.tensor, np.asarray):
        assert spacing.check(lambda *given, kind=kind: kind(spacing.solution(*given)))
    with pytest.raises(WrongAnswer, match="integer"):
        spacing.check(lambda *given: float(spacing.solution(*given)))
    period = by_name("pendulum-ex-period")
    assert period.check(lambda rho0: [period.solution(rho0)])
    assert period.check(lambda rho0: torch.tensor([period.solution(rho0)], requires_grad=True))
