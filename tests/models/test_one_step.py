"""One-step nets: their formula, their schemes, other graphs, and implicit steps by value."""

import math

import pytest
import torch
from torch import nn

from companion.data import pendulum
from companion.models import OneStepNet, TanhField
from companion.models.implicit_step import IMPLICIT, implicit_step
from companion.schemes import SCHEMES, get_scheme


def net(method="euler", step=0.1, seed=0, hidden=7):
    return OneStepNet(
        method, step=step, hidden=hidden, generator=torch.Generator().manual_seed(seed)
    )


def states(*shape):
    return torch.randn(*shape, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


# The field and one explicit step


def test_field_is_two_layers_without_an_output_bias():
    field = TanhField(50, generator=torch.Generator().manual_seed(1))
    assert {n: tuple(p.shape) for n, p in field.named_parameters()} == {
        "inner": (50, 2), "shift": (50,), "outer": (2, 50)
    }  # fmt: skip
    x = states(3)
    for row, found in zip(x, field(x), strict=True):
        hidden = torch.tanh(field.inner @ row + field.shift)
        torch.testing.assert_close(found, field.outer @ hidden, rtol=1e-13, atol=1e-15)
    with torch.no_grad():
        field.inner.zero_()
        field.shift.zero_()
    assert torch.equal(field(x), torch.zeros_like(x))  # a bias would be left


def test_initial_values_have_their_sizes():
    field = TanhField(4000, generator=torch.Generator().manual_seed(2))
    found = [field.inner.std().item(), field.shift.std().item(), field.outer.std().item()]
    assert found == pytest.approx([0.5, 1.0, 0.1], rel=0.05)


@pytest.mark.parametrize("method", SCHEMES)
def test_one_step_is_a_step_of_the_scheme(method):
    model, x = net(method, step=0.3), states(4)
    wanted = get_scheme(method).step(lambda i, y: model.field(y), x, 0.3)
    torch.testing.assert_close(model(x), wanted, rtol=1e-14, atol=1e-15)


def test_an_euler_net_is_a_residual_layer_bit_for_bit():
    model, x = net(step=0.25), states(4)
    assert torch.equal(model(x), x + 0.25 * model.field(x))


def test_rollout_repeats_the_step_and_takes_other_graphs():
    model, x = net("midpoint"), states(3)
    path = model.rollout(x, 3)
    assert path.shape == (4, 3, 2)
    torch.testing.assert_close(path[3], model(model(model(x))), rtol=1e-12, atol=1e-14)
    other = model.rollout(x, 2, method="rk4", step=0.05)
    step = get_scheme("rk4").step
    wanted = step(lambda i, y: model.field(y), x, 0.05)
    wanted = step(lambda i, y: model.field(y), wanted, 0.05)
    torch.testing.assert_close(other[-1], wanted, rtol=1e-12, atol=1e-14)
    model.field = Pendulum()
    far = model.rollout(pendulum.exact(0.0), 400, method="rk4", step=0.005)[-1]
    torch.testing.assert_close(far, pendulum.exact(2.0), rtol=0, atol=1e-7)


def test_a_stack_of_fields_is_each_of_them():
    models = [net("rk4", seed=seed) for seed in (0, 1)]
    stack = net("rk4")
    for name in ("inner", "shift", "outer"):
        values = torch.stack([m.field.get_parameter(name).detach() for m in models])
        setattr(stack.field, name, nn.Parameter(values if name != "shift" else values[:, None]))
    x = states(5)
    for k, model in enumerate(models):
        torch.testing.assert_close(stack(x.expand(2, 5, 2))[k], model(x), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: net(step=0.0), "step"),
        (lambda: net(step=-1), "step"),
        (lambda: net(hidden=0), "hidden"),
        (lambda: net()(torch.full((2,), math.nan, dtype=torch.float64)), "y0"),
        (lambda: net().rollout(states(1), 0), "steps"),
        (lambda: net().rollout(states(1), 1, step=0.0), "step"),
        (lambda: net("leapfrog")(states(1)), "method"),
        (lambda: implicit_step(torch.sin, states(1), 0.1, "rk4"), "method"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call()


class Pendulum(nn.Module):
    def forward(self, x):
        return pendulum.field(x)


# Implicit steps


@pytest.mark.parametrize("method", IMPLICIT)
def test_implicit_step_solves_its_equation(method):
    x, h = states(6), 0.4
    end = implicit_step(pendulum.field, x, h, method)
    stage = end if method == "backward_euler" else (x + end) / 2
    torch.testing.assert_close(end, x + h * pendulum.field(stage), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", IMPLICIT)
def test_implicit_step_of_a_linear_field_is_its_rational_function(method):
    matrix = torch.tensor([[-1.0, 2.0], [0.5, -300.0]], dtype=torch.float64)
    x, h = states(4), 0.2
    eye = torch.eye(2, dtype=torch.float64)
    if method == "backward_euler":
        wanted = torch.linalg.solve(eye - h * matrix, x.mT).mT
    else:
        wanted = torch.linalg.solve(eye - h / 2 * matrix, (eye + h / 2 * matrix) @ x.mT).mT
    found = implicit_step(lambda x: x @ matrix.mT, x, h, method)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", IMPLICIT)
def test_gradient_of_an_implicit_step(method):
    """Against differences in the state and the parameters: the solve is differentiated too."""
    model, x = net(method, step=0.5, hidden=3), states(2).requires_grad_()
    with torch.no_grad():
        model.field.outer *= 8  # a step far from explicit
    names = [name for name, _ in model.field.named_parameters()]

    def end(x, *values):
        def field(y):
            return torch.func.functional_call(model.field, dict(zip(names, values)), (y,))  # noqa: B905

        return implicit_step(field, x, 0.5, method)

    torch.autograd.gradcheck(end, (x, *model.field.parameters()), atol=1e-7, rtol=1e-6)


def test_implicit_midpoint_steps_back_exactly_and_the_others_do_not():
    model, x = net("implicit_midpoint", step=0.4), states(5)
    with torch.no_grad():
        model.field.outer *= 10
        back = implicit_step(model.field, model(x), -0.4, "implicit_midpoint")
        torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
        other = implicit_step(model.field, model(x), -0.4, "backward_euler")
        assert (other - x).abs().max() > 1e-3
        half = model.rollout(x, 2, step=0.2)[-1]
        assert 1e-6 < (half - model(x)).abs().max() < 0.5


def test_newton_that_does_not_converge_says_so():
    with pytest.raises(ValueError, match=r"^h: 1.0 is not allowed here; Newton"):
        implicit_step(lambda x: x**2 + 1, states(1).abs() + 3, 1.0, "backward_euler")


def test_single_precision():
    x = states(3).float()
    end = implicit_step(pendulum.field, x, 0.1, "implicit_midpoint")
    assert end.dtype == torch.float32
    wanted = implicit_step(pendulum.field, x.double(), 0.1, "implicit_midpoint")
    torch.testing.assert_close(end.double(), wanted, rtol=0, atol=1e-5)
