"""The depth loop: stages, steps, counts, and the search for the time of a failure."""

import math
from fractions import Fraction

import pytest
import torch

from companion.first_evaluation import check_value
from companion.gradients import Backprop
from companion.schemes import SCHEMES
from companion.solve import (
    FixedStep,
    Problem,
    Stage,
    Stats,
    Step,
    check_finite,
    intervals,
    time_like,
)


class Recorder:
    """A field that remembers where it was evaluated."""

    params = knots = ()
    module = None

    def __init__(self, value=lambda t, y: torch.zeros_like(y)):
        self.value = value
        self.stages = []
        self.recomputed = False

    def __call__(self, stage, y):
        self.stages.append(stage)
        return self.value(stage.t, y)

    def uses(self, stage):
        return ()

    def recomputation(self, weights=None):
        again = Recorder(self.value)
        self.recomputed = True
        return again


@pytest.mark.parametrize("name", list(SCHEMES))
def test_stages_carry_exact_positions(name, device, dtype):
    field, scheme = Recorder(), SCHEMES[name]
    solver = FixedStep(scheme, 3)
    y0 = torch.zeros(1, device=device, dtype=dtype)
    Problem(field, y0, [0.0, 0.75, 3.0], solver).integrate()
    expected = [
        (t0 + (n + float(c)) * width / 3, n, 3, c)
        for t0, width in ((0.0, 0.75), (0.75, 2.25))
        for n in range(3)
        for c in scheme.c
    ]
    assert [(s.step, s.steps, s.c) for s in field.stages] == [e[1:] for e in expected]
    assert [s.t for s in field.stages] == pytest.approx([e[0] for e in expected], abs=1e-15)
    assert all(isinstance(s.c, Fraction) for s in field.stages)


def test_steps_divide_each_interval_and_are_counted(device, dtype):
    stats = Stats(steps=1)
    y0 = torch.zeros(2, device=device, dtype=dtype)
    field = Recorder(lambda t, y: torch.ones_like(y))
    ys = Problem(field, y0, [0.0, 1.0, 5.0], FixedStep(SCHEMES["heun"], 4), stats).integrate()
    assert [y.tolist() for y in ys] == [[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]]
    assert stats == Stats(steps=9)
    assert len(field.stages) == 16


@pytest.mark.parametrize("traced", [False, True], ids=["floats", "tensor"])
def test_the_times_of_stages_are_those_of_the_interval(traced, device, dtype):
    """dy/dt = 2t on [1, 2]: midpoint is exact, the answer 3."""
    t = torch.tensor([1.0, 2.0], device=device, dtype=dtype) if traced else [1.0, 2.0]
    field = Recorder(lambda t, y: y * 0 + 2 * t)
    y0 = torch.zeros(1, device=device, dtype=dtype)
    ys = Problem(field, y0, t, FixedStep(SCHEMES["midpoint"], 2)).integrate()
    assert ys[-1].item() == pytest.approx(3.0, abs=1e-14)
    assert [float(s.t) for s in field.stages] == [1.0, 1.25, 1.5, 1.75]


def test_step_size_takes_the_dtype_of_the_state_only_if_it_is_a_tensor(device):
    y = torch.zeros((), device=device, dtype=torch.float32)
    assert Step((1.0, 3.0), 0, 0, 4).size(y) == 0.5
    t = torch.tensor([1.0, 3.0], device=device, dtype=torch.float64, requires_grad=True)
    h = Step(tuple(t.unbind()), 0, 0, 4).size(y)
    assert (h.dtype, h.item()) == (torch.float32, 0.5)
    assert h.requires_grad


def test_intervals_of_floats_and_of_a_tensor(device):
    assert list(intervals([0.0, 1.0, 3.0])) == [(0.0, 1.0), (1.0, 3.0)]
    pairs = list(intervals(torch.tensor([0.0, 1.0, 3.0], device=device)))
    assert [(a.item(), b.item()) for a, b in pairs] == [(0.0, 1.0), (1.0, 3.0)]


def test_time_like_matches_the_state(device):
    for dtype in (torch.float32, torch.float64):
        y = torch.zeros(3, device=device, dtype=dtype)
        for t in (0.1, torch.tensor(0.1, dtype=torch.float64)):
            time = time_like(t, y)
            assert time.shape == ()
            assert (time.dtype, time.device) == (dtype, y.device)
            assert time.item() == torch.tensor(0.1, dtype=dtype).item()


def test_time_like_keeps_the_gradient():
    t = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    time_like(t, torch.zeros(1)).backward()
    assert t.grad.item() == 1.0


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (3.0, TypeError, "func: returned float; it must return a tensor"),
        (torch.zeros(3), ValueError, r"func: returned shape \(3,\) for a state of shape \(2,\)"),
        (torch.zeros(()), ValueError, r"func: returned shape \(\)"),
        (torch.zeros(2, 1), ValueError, r"func: returned shape \(2, 1\)"),
        (torch.zeros(2, dtype=torch.float64), ValueError, "func: returned torch.float64 .*float32"),
        (torch.zeros(2, device="meta"), ValueError, "func: returned a tensor on meta"),
    ],
    ids=["number", "longer", "scalar", "column", "double", "other device"],
)
def test_what_a_field_returns_is_checked(value, kind, words):
    with pytest.raises(kind, match=words):
        check_value(value, torch.zeros(2), "func")


def test_a_value_of_lower_precision_passes_under_autocast_only():
    low = torch.zeros(2, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_value(low, torch.zeros(2), "func")
    with pytest.raises(ValueError, match="bfloat16"):
        check_value(low, torch.zeros(2), "func")


def growing(t, y):
    """Return a field that becomes infinite for t > 1.3."""
    return torch.full_like(y, math.inf) if t > 1.3 else torch.ones_like(y)


def blowing_up(device, t, field):
    y0 = torch.zeros(2, device=device, dtype=torch.float64)
    return Problem(field, y0, t, FixedStep(SCHEMES["euler"], 10))


@pytest.mark.parametrize(
    ("t", "where"), [([0.0, 1.0, 3.0], "1.6"), ([0.0, 2.0], "1.6"), ([1.0, 2.0], "1.5")]
)
def test_a_failure_is_located_to_the_step(t, where, device):
    """Euler from 1.4 is the first step that reads t > 1.3 in the two first grids."""
    problem = blowing_up(device, t, Recorder(growing))
    with pytest.raises(ValueError, match=f"y0: .* finite at t = {where};"):
        check_finite(Backprop().differentiable_states(problem), problem)


def test_a_failure_backwards_in_time_is_located(device):
    field = Recorder(lambda t, y: torch.full_like(y, math.inf if t < 0.25 else 1.0))
    problem = blowing_up(device, [1.0, 0.0], field)
    with pytest.raises(ValueError, match=r"finite at t = 0.1;"):
        check_finite(Backprop().differentiable_states(problem), problem)


def test_a_bad_start_is_named(device):
    problem = blowing_up(device, [0.5, 1.0], Recorder())
    problem.y0[1] = math.nan
    with pytest.raises(ValueError, match=r"y0: 1 of 2 values are not finite before"):
        check_finite(Backprop().differentiable_states(problem), problem)


def test_only_a_failure_pays_for_the_search(device):
    field = Recorder()
    problem = blowing_up(device, [0.0, 1.0], field)
    check_finite(Backprop().differentiable_states(problem), problem)
    assert len(field.stages) == 10
    assert not field.recomputed
    failing = blowing_up(device, [0.0, 2.0], Recorder(growing))
    with pytest.raises(ValueError, match="finite"):
        check_finite(Backprop().differentiable_states(failing), failing)
    assert failing.field.recomputed  # the search runs on the copy that leaves buffers alone
    assert len(failing.field.stages) == 10


def test_a_stage_of_a_solver_without_a_grid_has_no_position():
    assert Stage(0.3).c is None
