"""The convergence test by value: fields that are known, and classifiers whose limit is known."""

import math

import pytest
import torch
from torch import nn

from companion import OdeBlock, PiecewiseConstant
from companion.analysis.convergence import (
    CONTINUOUS,
    DISCRETE,
    classifier_convergence,
    convergence_test,
    fitted_order,
    graph_errors,
)
from companion.data import pendulum
from companion.models import ContinuousMLP, OneStepNet
from companion.ode import odeint
from companion.solve import NonFiniteError

TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
START = torch.tensor([1.0, 0.0], dtype=torch.float64)
END = torch.tensor([math.cos(1.6), -math.sin(1.6)], dtype=torch.float64)


class Linear(nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, x):
        return x @ self.matrix.mT


def stepper(method, matrix, step=0.1):
    net = OneStepNet(method, step=step, generator=torch.Generator().manual_seed(0))
    net.field = Linear(matrix)
    return net


def learnt_by_euler(step):
    """The perfect Euler net of the turn: (exp(hA) - 1) / h."""
    return (torch.matrix_exp(step * TURN) - torch.eye(2, dtype=torch.float64)) / step


def test_the_true_field_is_a_continuous_model_of_its_order():
    for method, order in (("euler", 1), ("midpoint", 2), ("rk4", 4)):
        net = stepper(method, TURN)
        found = convergence_test(net, START, END, time=1.6, methods=(), steps=(4, 8, 32, 64))
        assert found.steps == (4, 8, 16, 32, 64)  # its own is among them
        assert found.verdict == CONTINUOUS
        assert found.dip < 1
        assert found.order[method] == pytest.approx(order, abs=0.25)
        assert list(found.errors) == [method]


def test_errors_are_norms_and_not_their_squares():
    found = convergence_test(
        stepper("euler", TURN), START, END, time=1.6, methods=("euler",), steps=(16, 32)
    )
    for n, error in zip(found.steps, found.errors["euler"], strict=True):
        power = torch.linalg.matrix_power(torch.eye(2) + 1.6 / n * TURN, n)
        assert error == pytest.approx(float((power @ START - END).norm()), rel=1e-12)
    assert found.dip == pytest.approx(found.errors["euler"][1] / found.errors["euler"][0])


def test_a_perfect_euler_net_is_a_discrete_model():
    net = stepper("euler", learnt_by_euler(0.1))
    found = convergence_test(net, START, END, time=1.6, methods=("rk4",), steps=(8, 32, 64))
    assert found.errors["euler"][1] < 1e-13
    assert found.verdict == DISCRETE
    assert found.dip > 1e10
    assert min(found.errors["rk4"]) > 0.05  # nor does a better scheme help
    wanted = torch.matrix_exp(1.6 * net.field.matrix) @ START - END
    assert found.errors["rk4"][-1] == pytest.approx(float(wanted.norm()), rel=1e-5)


@pytest.mark.parametrize("speed", [0.0, 0.1, 1 / 3])
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_a_net_that_is_exact_under_every_graph_has_no_dip(method, speed):
    """A field without dependence on the state: errors are zero, or what rounding leaves."""

    class Drift(nn.Module):
        def forward(self, x):
            return torch.full_like(x, speed)

    net = stepper(method, TURN)
    net.field = Drift()
    end = START + 1.6 * speed
    found = convergence_test(net, START, end, time=1.6, methods=("midpoint",), steps=(8, 32, 999))
    assert found.dip == 1.0
    assert found.verdict == CONTINUOUS


def test_a_net_that_is_exact_at_its_own_step_alone_is_discrete():
    """Its own error is zero, not what rounding leaves: one step that lands on the point."""
    net = stepper("euler", torch.tensor([[0.0, 0.0], [0.0, 0.0]], dtype=torch.float64), step=1.0)

    class Half(nn.Module):
        def forward(self, x):
            return -0.5 * x

    net.field = Half()
    found = convergence_test(net, START, 0.5 * START, time=1.0, methods=(), steps=(1, 2, 4))
    assert found.errors["euler"][:2] == (0.0, 0.0625)  # 0.75^2 is not 0.5
    assert found.verdict == DISCRETE
    assert 1e12 < found.dip < math.inf


def test_a_classifier_without_any_logits_moves_by_nothing():
    net = nn.Sequential(perceptron(2.0)[0], nn.Linear(3, 3).double())
    for parameter in net[1].parameters():
        nn.init.zeros_(parameter)
    found = classifier_convergence(net, perceptron(2.0)[1], ["euler"], [4, 8])
    assert found.errors == {"euler": (0.0, 0.0)}
    assert found.dip == 0.0
    assert found.verdict == CONTINUOUS


def test_a_coarse_dip_does_not_count():
    """Worse at coarser steps is what every method is; only finer ones decide."""
    found = convergence_test(
        stepper("rk4", TURN, step=0.2), START, END, time=1.6, methods=(), steps=(1, 2, 16)
    )
    assert found.errors["rk4"][0] > 100 * found.errors["rk4"][2]
    assert found.verdict == CONTINUOUS


def test_order_is_fitted_to_steps_that_are_not_finer():
    net = stepper("midpoint", TURN + 1e-3 * torch.eye(2))  # a plateau far below the own step
    found = convergence_test(net, START, END, time=1.6, methods=(), steps=(4, 8, 640, 1280))
    assert found.order["midpoint"] == pytest.approx(2, abs=0.3)


def test_a_state_that_is_not_finite_counts_as_infinite():
    def evaluate(method, n):
        if n == 1:
            raise NonFiniteError("y0: gone")
        return torch.ones(2) / n

    errors = graph_errors(evaluate, torch.zeros(2), ["a", "a"], [1, 2, 4])
    assert errors["a"] == pytest.approx((math.inf, 2**-0.5, 2**-1.5))
    assert fitted_order([1, 2, 4], errors["a"]) == pytest.approx(1)
    assert math.isnan(fitted_order([1, 2], [0.0, 1.0]))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"time": 1.65}, "time"),
        ({"time": 0.01}, "time"),
        ({"steps": (16,)}, "steps"),
        ({"steps": (0, 32)}, "steps"),
        ({"methods": ("leapfrog",)}, "method"),
    ],
)
def test_bad_arguments_are_named(options, name):
    given = {"time": 1.6, "methods": (), "steps": (32,)} | options
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        convergence_test(stepper("euler", TURN), START, END, **given)


# Classifiers


def perceptron(scale, method="euler"):
    torch.manual_seed(3)
    net = ContinuousMLP(
        5, 3, width=4, hidden=6, basis=PiecewiseConstant(4), method=method, steps=4, scale=scale
    )
    return net.double(), torch.randn(20, 5, dtype=torch.float64)


def test_classifier_errors_are_logit_deviations_from_the_reference():
    net, x = perceptron(2.0)
    found = classifier_convergence(net, x, ["euler", "rk4"], [8, 4], reference=("rk4", 16))
    assert found.steps == (4, 8)
    own = net(x).detach()
    truth = net.with_graph(method="rk4", steps=16)(x).detach()
    for method in ("euler", "rk4"):
        for n, error in zip(found.steps, found.errors[method], strict=True):
            logits = net.with_graph(method=method, steps=n)(x).detach()
            assert error == pytest.approx(float((logits - truth).norm() / own.norm()), rel=1e-9)
    assert found.dip == pytest.approx(found.errors["euler"][0], rel=1e-12)  # its own graph


def test_classifier_orders_and_verdicts():
    net, x = perceptron(0.5)
    found = classifier_convergence(net, x, ["euler", "midpoint"], [16, 32, 64], ("rk4", 64))
    assert found.order["euler"] == pytest.approx(1, abs=0.1)
    assert found.order["midpoint"] == pytest.approx(2, abs=0.2)
    assert found.verdict == CONTINUOUS
    net, x = perceptron(8.0)
    rough = classifier_convergence(net, x, ["euler"], [4])
    assert rough.dip > 0.15
    assert rough.verdict == DISCRETE
    fine = classifier_convergence(net.with_graph(method="rk4", steps=64), x, ["euler"], [4])
    assert fine.dip < 0.01
    assert fine.verdict == CONTINUOUS


def test_classifiers_run_in_evaluation_mode_and_get_their_modes_back():
    residual = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    block = OdeBlock(residual, PiecewiseConstant(2), method="midpoint", steps=2).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    first = classifier_convergence(block, x, ["euler"], [4, 8])
    assert first == classifier_convergence(block, x, ["euler"], [4, 8])
    assert block.training
    assert block.weights.template[1].training
    assert all(int(n) == 0 for n in block.weights.stacks.get_buffer("2.num_batches_tracked"))


def test_numerical_methods_by_the_same_function():
    start, end = pendulum.exact([0.0, 2.0])

    def evaluate(method, n):
        return odeint(lambda t, x: pendulum.field(x), start, [0.0, 2.0], method=method, steps=n)[-1]

    errors = graph_errors(evaluate, end, ["euler"], [400, 800])
    assert errors["euler"] == pytest.approx((0.524, 0.251), rel=5e-3)


def test_states_of_different_shapes_are_refused_not_broadcast() -> None:
    net = OneStepNet("euler", step=0.1, generator=torch.Generator().manual_seed(0))
    start, end = torch.ones(2).double(), torch.ones(3, 2).double()
    with pytest.raises(ValueError, match=r"end: shape \(3, 2\)"):
        convergence_test(net, start, end, time=0.2, methods=(), steps=(4,))
