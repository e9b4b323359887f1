"""torch.func's transforms, forward mode, inference mode and torch.compile around a solve."""

import copy

import pytest
import torch
from fields import Tanh, needs_compile, randn
from loops import loop
from torch import nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)
from torch.fx.experimental.proxy_tensor import make_fx

from companion import Constant, OdeBlock, PiecewiseConstant, PiecewiseLinear, odeint
from companion.gradients import GRADIENTS
from companion.methods import ADAPTIVE, MULTISTEP, SCIPY
from companion.schemes import SCHEMES
from companion.solve import NonFiniteError

F64 = torch.float64
FIXED = [*SCHEMES, "async_leapfrog"]
RECOMPUTING = [name for name in GRADIENTS if name != "backprop"]
A = torch.tensor([[-1.0, 2.0], [-2.0, 0.5]], dtype=F64)
EYE = torch.eye(2, dtype=F64)


def close(found, expected, tolerance=1e-13):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def solve(f, y, t=(0.0, 1.0), **knobs):
    return odeint(f, y, t, **{"method": "rk4", "steps": 5, **knobs})[-1]


def linear(t, y):
    return y @ A.T


def rk4_matrix(h):
    """What a step of rk4 multiplies the state of a linear equation by."""
    z = h * A
    return EYE + z @ (EYE + z / 2 @ (EYE + z / 3 @ (EYE + z / 4)))


def unit():
    return nn.Sequential(nn.Linear(3, 3, dtype=F64), nn.Tanh())


def blocks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [
            OdeBlock(unit, Constant(), method="rk4", steps=2),
            OdeBlock(unit, PiecewiseConstant(4), method="heun", steps=4),
            OdeBlock(unit, PiecewiseLinear(2), method="async_leapfrog", steps=4),
        ]


# --- by value -------------------------------------------------------------------------------------


@loop("method", FIXED)
def test_vmap_gives_the_single_solves(method, device):
    """Of a module, of a function with a tuple, forwards and backwards, one level inside another."""
    field, ys = Tanh(device), randn(2, 4, 3, device=device)

    def end(y, t=(0.0, 1.0)):
        return solve(field, y, t, method=method)

    close(vmap(end)(ys[0]), torch.stack([end(y) for y in ys[0]]))
    close(vmap(vmap(end))(ys), torch.stack([torch.stack([end(y) for y in row]) for row in ys]))
    close(
        vmap(lambda y: end(y, (1.0, 0.5, -1.0)), in_dims=1, out_dims=1)(ys[0].T),
        torch.stack([end(y, (1.0, 0.5, -1.0)) for y in ys[0]], 1),
    )

    def pair(y):
        both = odeint(
            lambda t, s: (-s[0] * s[1], s[0].sum(-1, keepdim=True) * s[1]),
            (y, y[:1]),
            [0.0, 1.0],
            method=method,
        )
        return torch.cat([part[-1] for part in both])

    close(vmap(pair)(ys[0]), torch.stack([pair(y) for y in ys[0]]))


def test_derivatives_are_those_of_the_discrete_solve():
    y = torch.tensor([1.0, -0.5], dtype=F64)
    exact = torch.linalg.matrix_power(rk4_matrix(0.2), 5)
    close(jacrev(lambda y: solve(linear, y))(y), exact)
    close(jacfwd(lambda y: solve(linear, y))(y), exact)
    close(vmap(grad(lambda y, e: solve(linear, y) @ e), (None, 0))(y, EYE), exact)
    close(hessian(lambda y: solve(linear, y).square().sum())(y), 2 * exact.T @ exact)
    close(jvp(lambda y: solve(linear, y), (y,), (EYE[1],))[1], exact[:, 1])
    close(vjp(lambda y: solve(linear, y), y)[1](EYE[1])[0], exact[1])
    with forward_ad.dual_level():
        end = solve(linear, forward_ad.make_dual(y, EYE[0]))
        close(forward_ad.unpack_dual(end).tangent, exact[:, 0])


@loop("method", FIXED)
def test_derivatives_of_a_nonlinear_field_are_autograds(method, device):
    field, y = Tanh(device), randn(3, device=device)

    def end(y):
        return solve(field, y, method=method)

    expected = torch.autograd.functional.jacobian(end, y)
    close(jacrev(end)(y), expected)
    close(jacfwd(end)(y), expected)
    second = torch.autograd.functional.hessian(lambda y: end(y).square().sum(), y)
    close(hessian(lambda y: end(y).square().sum())(y), second)
    close(jacrev(jacrev(lambda y: end(y).square().sum()))(y), second)


def test_solves_without_values_are_traced():
    """By torch.func, by make_fx, on the meta device: nothing is checked that is not there."""
    y = torch.tensor([1.0, -0.5], dtype=F64)
    exact = torch.linalg.matrix_power(rk4_matrix(0.2), 5)
    _, forward = linearize(lambda y: solve(linear, y), y)
    close(forward(EYE[0]), exact[:, 0])
    close(make_fx(lambda y: solve(linear, y))(y)(2 * y), 2 * exact @ y)
    block = OdeBlock(unit, PiecewiseConstant(2), method="rk4", steps=2).to("meta")
    assert block(torch.zeros(5, 3, dtype=F64, device="meta")).shape == (5, 3)


def test_parameters_of_a_module_are_differentiated_too(device):
    field, ys = Tanh(device), randn(4, 3, device=device)
    params = dict(field.named_parameters())

    def loss(params, y):
        return solve(lambda t, y: functional_call(field, params, (t, y)), y).square().sum()

    found = vmap(grad(loss), (None, 0))(params, ys)
    for k, y in enumerate(ys):
        single = torch.autograd.grad(loss(params, y), list(params.values()))
        for name, expected in zip(params, single, strict=True):
            close(found[name][k], expected)


@loop("times", ["a time", "all times"])
def test_transforms_follow_the_times(times, device):
    """dy/dt is the derivative of rk4's polynomial to the power of the steps; none is lost."""
    first, last = torch.zeros(3, dtype=F64), torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    y0 = torch.ones(1, dtype=F64)
    if times == "a time":

        def end(t):
            return solve(lambda t, y: -y, y0, torch.stack([first[0], t]))

        value, slope = vmap(lambda t: jvp(end, (t,), (torch.ones_like(t),)))(last)
        close(vmap(jacrev(end))(last), slope)
    else:

        def end(t):
            return solve(lambda t, y: -y, y0, t)

        t = torch.stack([first, last], 1)
        value = vmap(end)(t)
        slope = vmap(jacfwd(end))(t)[..., 1]
        close(vmap(jacrev(end))(t)[..., 1], slope)
        with forward_ad.dual_level():
            dual = solve(lambda t, y: -y, y0, forward_ad.make_dual(t[1], t[1]))
            close(forward_ad.unpack_dual(dual).tangent, slope[1] * last[1])
    z = -last / 5
    step = 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
    close(value.squeeze(1), step**5)
    close(slope.squeeze(1), -(step**4) * (1 + z + z**2 / 2 + z**3 / 6))


@loop("number", range(3))
def test_blocks_follow(number):
    """vmap over inputs, over members' weights; gradients per sample; Jacobians; forward mode."""
    block, x = blocks()[number], randn(4, 2, 3, device="cpu")
    params = dict(block.named_parameters())
    close(vmap(block)(x), torch.stack([block(one) for one in x]))
    members = {name: torch.stack([p, 2 * p, -p]) for name, p in params.items()}
    found = vmap(lambda p, x: functional_call(block, p, (x,)), (0, None))(members, x[0])
    for k, factor in enumerate((1, 2, -1)):
        scaled = {name: factor * p for name, p in params.items()}
        close(found[k], functional_call(block, scaled, (x[0],)))

    def loss(params, x):
        return functional_call(block, params, (x,)).square().sum()

    each = vmap(grad(loss), (None, 0))(params, x)
    for k, one in enumerate(x):
        single = torch.autograd.grad(block(one).square().sum(), list(params.values()))
        for name, expected in zip(params, single, strict=True):
            close(each[name][k], expected)
    tangents = {name: torch.ones_like(p) for name, p in params.items()}
    detached = {name: p.detach() for name, p in params.items()}
    _, along = jvp(lambda p: loss(p, x[0]), (detached,), (tangents,))
    close(along, sum(g[0].sum() for g in each.values()))
    expected = torch.autograd.functional.jacobian(block, x[0])
    close(jacrev(block)(x[0]), expected)
    close(jacfwd(block)(x[0]), expected)
    close(
        hessian(lambda x: block(x).square().sum())(x[0]),
        torch.autograd.functional.hessian(lambda x: block(x).square().sum(), x[0]),
    )


def test_norms_follow_as_their_layers_do():
    """In evaluation mode; in training mode the statistics may be handed in, as torch asks."""
    norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    block = OdeBlock(norm, PiecewiseConstant(2), steps=2).double()
    x = randn(4, 5, 3, device="cpu")
    params, buffers = dict(block.named_parameters()), dict(block.named_buffers())
    start = {name: b.clone() for name, b in buffers.items()}

    def loss(params, buffers, x):
        return functional_call(block, {**params, **buffers}, (x,)).square().sum()

    found = grad(loss)(params, start, x[0])
    single = torch.autograd.grad(block(x[0]).square().sum(), list(params.values()))
    for name, expected in zip(params, single, strict=True):
        close(found[name], expected)
    assert all(torch.equal(start[name], b) for name, b in buffers.items())
    with pytest.raises(RuntimeError, match="running_mean"):
        vmap(block)(x)
    block.eval()
    close(vmap(block)(x), torch.stack([block(one) for one in x]))
    members = [copy.deepcopy(block), block]
    members[0](x[0])
    for mode in (False, True):
        params, buffers = stack_module_state([member.train(mode) for member in members])
        found = vmap(lambda p, b: functional_call(block, (p, b), (x[1],)))(params, buffers)
        close(found, torch.stack([copy.deepcopy(member)(x[1]) for member in members]))


# --- checks and refusals --------------------------------------------------------------------------


def test_checks_on_values_hold_under_transforms():
    ys = torch.tensor([[1.0], [1e200]], dtype=F64)

    def square(y, t=(0.0, 2.0)):
        return solve(lambda t, y: y * y, y, t, method="euler", steps=2)

    with pytest.raises(NonFiniteError, match=r"stopped being finite at t = 1;"):
        vmap(square)(ys)
    with pytest.raises(NonFiniteError, match=r"stopped being finite at t = 1;"):
        vmap(grad(lambda y: square(y).sum()))(ys)
    with pytest.raises(NonFiniteError, match=r"stopped being finite; take"):
        vmap(square, (None, 0))(ys[1], torch.tensor([[0.0, 2.0], [0.0, 1.0]], dtype=F64))
    with pytest.raises(NonFiniteError, match="1 of 2 values are not finite before"):
        vmap(square)(torch.tensor([[1.0], [float("nan")]]))
    with pytest.raises(ValueError, match=r"t: \[0.0, -0.0\] is not allowed; it must strictly"):
        vmap(square, (None, 0))(ys[0], torch.tensor([[0.0, 2.0], [0.0, -0.0]], dtype=F64))
    with pytest.raises(TypeError, match=r"t: a list of tensors .* stack them"):
        vmap(lambda t: square(ys[0], [0.0, t]))(torch.tensor([1.0, 2.0]))
    for wrap in (vmap, jacfwd, jacrev, lambda f: vmap(jacrev(f))):
        with pytest.raises(ValueError, match="func: changed its input in place"):
            wrap(lambda y: solve(lambda t, y: y.mul_(-1), y * 1))(torch.zeros(2, 1))
        with pytest.raises(ValueError, match=r"returned shape \(1, 1\) for a state of shape"):
            wrap(lambda y: solve(lambda t, y: y.sum().reshape(1, 1), y))(torch.zeros(2, 3))


TRANSFORMS = {
    "vmap": lambda f, y: vmap(f)(y.expand(2, 1)),
    "grad": lambda f, y: grad(lambda y: f(y).sum())(y),
    "jacrev": lambda f, y: jacrev(f)(y),
    "vjp": lambda f, y: vjp(f, y),
    "hessian": lambda f, y: hessian(lambda y: f(y).sum())(y),
}
FORWARD = {
    "jacfwd": lambda f, y: jacfwd(f)(y),
    "jvp": lambda f, y: jvp(f, (y,), (y,)),
}


@loop("transform", {**TRANSFORMS, **FORWARD})
def test_adaptive_methods_say_what_to_use_instead(transform):
    call = {**TRANSFORMS, **FORWARD}[transform]
    for method in (*ADAPTIVE, SCIPY):
        with pytest.raises(ValueError, match=rf"method: '{method}' .* cannot follow; .*'rk4'"):
            call(
                lambda y, m=method: odeint(lambda t, y: -y, y, [0.0, 1.0], method=m)[-1], EYE[0, :1]
            )
    block = OdeBlock(nn.Linear(1, 1, dtype=F64), method="dopri5")
    with pytest.raises(ValueError, match=r"method: 'dopri5' .* cannot follow; .*'rk4'"):
        call(block, EYE[0, :1])


@loop("method", MULTISTEP)
def test_adams_methods_have_derivatives_and_no_batches(method):
    def end(y):
        return solve(lambda t, y: -y, y, method=method)

    with pytest.raises(ValueError, match=rf"method: '{method}' .* cannot follow; .*'rk4'"):
        vmap(end)(torch.ones(2, 1, dtype=F64))
    for jacobian in (jacrev, jacfwd):  # the solve is linear in y
        close(jacobian(end)(EYE[0, :1]).squeeze(), end(EYE[0, :1]).squeeze())


@loop("gradient", RECOMPUTING)
def test_recomputing_gradients_say_what_to_use_instead(gradient):
    """Also where no parameter needs the gradient; where nothing does, they are plain solves."""
    method = "async_leapfrog" if gradient == "reversible" else "rk4"
    knobs = {"method": method, "steps": 2, "gradient": gradient}
    block = OdeBlock(nn.Linear(1, 1, dtype=F64), **knobs)
    for call in TRANSFORMS.values():
        with pytest.raises(ValueError, match=f"'{gradient}' goes back .*gradient='backprop'"):
            call(block, EYE[0, :1])
    functions = set(TRANSFORMS) - {"vmap"}
    for name in functions:
        with pytest.raises(ValueError, match=f"'{gradient}' goes back .*gradient='backprop'"):
            TRANSFORMS[name](lambda y: solve(lambda t, y: -y, y, **knobs), EYE[0, :1])
    x = randn(3, 2, 1, device="cpu")
    with torch.no_grad():
        close(vmap(block)(x), block(x))
    plain = block.with_graph(gradient="backprop")
    close(jacfwd(block)(x[0]), jacrev(plain)(x[0]))


# --- inference mode -------------------------------------------------------------------------------


@loop("value", [0.0, 1.0, -1.0, float("nan")])
def test_inference_mode_refuses_changes_in_place(value):
    """Also one that leaves the values as they are, here; later it might not."""
    with torch.inference_mode():
        inside = torch.full((2,), value)
    for y in (inside, torch.full((2,), value)):
        with torch.inference_mode():
            for change in (lambda t, y: y.mul_(-1), lambda t, y: y.relu_(), lambda t, y: y.add_(0)):
                with pytest.raises(ValueError, match="func: changed its input in place"):
                    odeint(change, y.clone(), [0.0, 1.0], method="euler")
            with pytest.raises(ValueError, match="residual: changed its input in place"):
                OdeBlock(nn.ReLU(inplace=True))(y.clone())
            with pytest.raises(ValueError, match="func: changed its input in place"):
                vmap(lambda y: solve(lambda t, y: y.mul_(-1), y))(y.clone())


def test_inference_mode_checks_what_others_check():
    with torch.inference_mode():
        y = torch.ones(2)
        for f, error in {
            (lambda t, y: y.sum()): "returned shape",
            (lambda t, y: y.double()): "returned torch.float64",
            (lambda t, y: y / 0): "stopped being finite",
        }.items():
            with pytest.raises(ValueError, match=error):
                odeint(f, y, [0.0, 1.0], method="euler")
        with pytest.raises(ValueError, match="before the first step"):
            odeint(lambda t, y: -y, y / 0, [0.0, 1.0], method="euler")
        with pytest.raises(ValueError, match="strictly"):
            odeint(lambda t, y: -y, y, torch.zeros(2), method="euler")


# --- torch.compile --------------------------------------------------------------------------------


def compiled(function, **options):
    torch.compiler.reset()
    return torch.compile(function, backend="eager", **options)


ARGUMENTS = {
    "method: 'rk5' is not": {"method": "rk5"},
    "steps: 0 is not": {"steps": 0},
    "steps: 2 is not": {"method": "dopri5", "steps": 2},
    "rtol: -1 is not": {"method": "dopri5", "rtol": -1, "steps": None},
    "gradient: 'x' is not": {"gradient": "x"},
    r"t: \[0.0, 1.0, 0.5\] is not": {"t": [0.0, 1.0, 0.5]},
    r"t: \[0.0, nan\] is not": {"t": [0.0, float("nan")]},
    r"t: \[\] is not": {"t": []},
    r"t: shape \(1, 2\)": {"t": torch.zeros(1, 2)},
}


@needs_compile
@loop("message", ARGUMENTS)
def test_compiled_code_checks_arguments(message):
    """All that are Python values; the values of tensors are not known there."""
    arguments = {"t": [0.0, 1.0]} | ARGUMENTS[message]
    with pytest.raises(ValueError, match=message):
        compiled(lambda y: solve(lambda t, y: -y, y, **arguments))(torch.ones(2, dtype=F64))


FIELDS = {
    r"func: returned shape \(\) for a state": lambda t, y: y.sum(),
    "func: returned torch.float32 for a state": lambda t, y: y.float(),
    "func: returned float; it must": lambda t, y: 1.0,
}


@needs_compile
@loop("message", FIELDS)
def test_compiled_code_checks_shapes_and_dtypes(message):
    """A graph that must be whole ends with an error of the compiler, which has ours in it."""
    with pytest.raises(RuntimeError, match=message):
        compiled(lambda y: solve(FIELDS[message], y), fullgraph=True)(torch.ones(2, dtype=F64))


@needs_compile
def test_compiled_blocks_check_shapes_and_compiled_transforms_are_right():
    with pytest.raises(RuntimeError, match=r"residual: returned shape \(3, 1\) for a state"):
        compiled(OdeBlock(nn.Linear(2, 1)), fullgraph=True)(torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"x: torch.float64 is not the dtype of the weights"):
        compiled(OdeBlock(nn.Linear(2, 2)))(torch.ones(3, 2, dtype=F64))
    ys = torch.ones(3, 2, dtype=F64)
    mapped = compiled(lambda ys: vmap(lambda y: solve(linear, y, steps=1))(ys), fullgraph=True)
    close(mapped(ys), solve(linear, ys, steps=1))
