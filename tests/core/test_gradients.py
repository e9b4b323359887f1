"""Every gradient method by value: against autograd, closed forms, finite differences."""

import pytest
import torch
import torchdiffeq
from fields import Tanh, gradients, knobs, largest_difference, randn
from torch import nn

from companion import counting, odeint
from companion.gradients import (
    GRADIENTS,
    Adjoint,
    Backprop,
    Checkpoint,
    Reconstruct,
    Reversible,
    get_gradient,
)
from companion.observe import fit_slope, saved_bytes
from companion.schemes import SCHEMES

FIXED = pytest.mark.parametrize("method", list(SCHEMES))
EVERY = pytest.mark.parametrize("gradient", list(GRADIENTS))
TIMES = [0.1, 0.6, 1.0]
FIXED_ONLY = ("reconstruct", "reversible")


def method_for(gradient, method):
    """Return the method under which a gradient is tested; skip what it refuses by design."""
    if method == "dopri5" and gradient in FIXED_ONLY:
        pytest.skip(f"{gradient} needs a fixed grid")
    return "async_leapfrog" if gradient == "reversible" else method


def by_value(solve, field, device, dtype=torch.float64, times=TIMES):
    """Return the gradients of a loss on all outputs for y0, the times and every parameter."""
    y0 = randn(2, 3, device=device, dtype=dtype).requires_grad_()
    t = torch.tensor(times, device=device, dtype=dtype, requires_grad=True)
    ys = solve(field, y0, t)
    weights = randn(*ys.shape, device=device, dtype=dtype, seed=9)
    return gradients((ys * weights + 0.3 * ys.square()).sum(), [y0, t, *field.parameters()])


def solver(**keywords):
    return lambda field, y0, t: odeint(field, y0, t, **keywords)


@pytest.fixture(scope="module")
def truth(device):
    """The gradients of the continuous problem, through 400 small steps of plain autograd."""
    field = Tanh(device)
    return by_value(solver(method="rk4", steps=400), field, device)


# --- backprop, checkpoint: the exact gradient of the discretised problem --------------------------


def by_hand(name, steps):
    """Return a solve written with plain operations, which autograd differentiates."""
    scheme = SCHEMES[name]

    def solve(field, y0, t):
        states = [y0]
        for i in range(len(t) - 1):
            y, h = states[-1], (t[i + 1] - t[i]) / steps
            for n in range(steps):
                slopes = []
                for row, c in zip(scheme.a, scheme.c, strict=True):
                    stage = y
                    for a, k in zip(row, slopes, strict=True):
                        stage = stage + float(a) * h * k
                    slopes.append(field(t[i] + (n + float(c)) * h, stage))
                for b, k in zip(scheme.b, slopes, strict=True):
                    y = y + float(b) * h * k
            states.append(y)
        return torch.stack(states)

    return solve


@FIXED
@pytest.mark.parametrize(
    "gradient", ["backprop", "checkpoint", Checkpoint(every=2), Checkpoint(every=5),
                 Checkpoint(every=99)], ids=str,
)  # fmt: skip
def test_discrete_gradients_equal_those_of_a_loop_by_hand(method, gradient, device):
    """y0, all times, all parameters; segments that divide the steps, and others that don't."""
    field = Tanh(device)
    found = by_value(solver(method=method, steps=6, gradient=gradient), field, device)
    expected = by_value(by_hand(method, 6), field, device)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@FIXED
@pytest.mark.parametrize("gradient", ["backprop", Checkpoint(every=2)], ids=str)
def test_gradcheck(method, gradient, device):
    """Against finite differences, for y0, the times and the parameters at once."""
    w = randn(3, 3, device=device, seed=4).requires_grad_()
    b = randn(3, device=device, seed=5).requires_grad_()
    y0 = randn(3, device=device).requires_grad_()
    t = torch.tensor([0.0, 0.4, 1.0], device=device, dtype=torch.float64, requires_grad=True)

    def solve(y0, t, *params):
        return odeint(
            lambda t, y: torch.sin(y @ w + b * t), y0, t, method=method, steps=3,
            gradient=gradient, params=(w, b),
        )  # fmt: skip

    assert torch.autograd.gradcheck(solve, (y0, t, w, b))


@FIXED
def test_checkpoint_in_float32_is_backprop_to_rounding(method, device):
    found = [
        by_value(
            solver(method=method, steps=4, gradient=gradient),
            Tanh(device, torch.float32), device, torch.float32,
        )
        for gradient in ("backprop", "checkpoint")
    ]  # fmt: skip
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


@EVERY
@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
def test_every_method_meets_the_closed_form_of_a_linear_system(gradient, back, device, dtype):
    """dL/dA of w . exp(A) y0 by differentiating the matrix exponential itself."""
    a = (randn(3, 3, device=device) / 2).requires_grad_()
    y0, w = randn(3, device=device, seed=2).requires_grad_(), randn(3, device=device, seed=3)
    t = [1.0, 0.0] if back else [0.0, 1.0]
    method, steps = method_for(gradient, "rk4"), 6000 if gradient == "reversible" else 60
    y = odeint(
        lambda t, y: a @ y, y0, t, method=method, steps=steps, gradient=gradient, params=(a,)
    )[-1]
    found = gradients((w * y).sum(), [y0, a])
    expected = gradients((w * (torch.matrix_exp(-a if back else a) @ y0)).sum(), [y0, a])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


# --- the continuous adjoint -----------------------------------------------------------------------

# The two differ by the order of the scheme, or by more: with Heun's the leading terms cancel.
DIFFERENCE = {"euler": 1, "midpoint": 2, "heun": 3, "kutta3": 3, "rk4": 4, "rk4_38": 4}


@FIXED
def test_adjoint_minus_discrete_gradient_falls_with_the_order(method, device):
    """For each of y0, the times and the parameters by itself."""
    grid = [24, 36, 48, 72, 96] if SCHEMES[method].order < 4 else [16, 24, 32, 48]
    rows = []
    for steps in grid:
        field = Tanh(device)
        pair = [
            by_value(solver(method=method, steps=steps, gradient=gradient), field, device)
            for gradient in ("backprop", "adjoint")
        ]
        y0, t, *params = [(a - b).norm().item() for a, b in zip(*pair, strict=True)]
        rows.append((y0, sum(params), t))
    y0, params, t = (fit_slope(grid, column).value for column in zip(*rows, strict=True))
    if method in DIFFERENCE:
        assert y0 == pytest.approx(-DIFFERENCE[method], abs=0.1)
        assert params == pytest.approx(-DIFFERENCE[method], abs=0.1)
    assert max(y0, params) < -SCHEMES[method].order + 0.1
    # The discrete gradient for a time is itself of order p only.
    assert t == pytest.approx(-SCHEMES[method].order, abs=0.2)


@FIXED
def test_adjoint_converges_to_the_true_gradient_with_the_order(method, truth, device):
    grid = [24, 36, 48, 72, 96] if SCHEMES[method].order < 4 else [12, 16, 24, 32]
    errors = []
    for steps in grid:
        found = by_value(
            solver(method=method, steps=steps, gradient="adjoint"), Tanh(device), device
        )
        errors.append(sum((a - b).norm().item() for a, b in zip(found, truth, strict=True)))
    slope = fit_slope(grid, errors)
    assert slope.value == pytest.approx(-SCHEMES[method].order, abs=0.1)


LIBRARY = {
    "dopri5": ({"rtol": 1e-9, "atol": 1e-10}, 1e-6),
    "bosh3": ({"rtol": 1e-8, "atol": 1e-9}, 1e-6),
    "implicit_adams": ({"steps": 40, "rtol": 1e-10, "atol": 1e-11}, 1e-6),
    "scipy_solver": ({"rtol": 1e-9, "atol": 1e-10}, 1e-6),
}


@pytest.mark.parametrize("method", list(LIBRARY))
def test_adjoint_through_library_methods_meets_the_truth(method, truth, device):
    keywords, tolerance = LIBRARY[method]
    found = by_value(solver(method=method, gradient="adjoint", **keywords), Tanh(device), device)
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", ["dopri5", "implicit_adams"])
def test_backprop_through_library_methods_meets_the_truth(method, truth, device):
    keywords, tolerance = LIBRARY[method]
    found = by_value(solver(method=method, **keywords), Tanh(device), device)
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_adjoint_tolerances_matter_and_are_its_own(truth, device):
    errors = []
    for rtol in (1e-3, 1e-5, 1e-7, 1e-9):
        gradient = Adjoint(rtol=rtol, atol=rtol)
        found = by_value(solver(rtol=1e-10, atol=1e-10, gradient=gradient), Tanh(device), device)
        errors.append(largest_difference(found, truth))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[0] > 1e-5
    assert errors[3] < 1e-6


def test_every_part_of_the_adjoint_meets_its_tolerance_whatever_the_number_of_parameters(device):
    """One norm over 20000 unused entries would drown the error of three states."""

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = Tanh(device)
            self.padding = nn.Parameter(torch.zeros(20_000, device=device, dtype=torch.float64))

        def forward(self, t, y):
            return self.field(t, y) + 0 * self.padding[0]

    counts = []
    for field in (Tanh(device), Padded()):
        y0 = randn(2, 3, device=device).requires_grad_()
        with counting() as stats:
            ys = odeint(field, y0, [0.0, 3.0], rtol=1e-7, atol=1e-7, gradient="adjoint")
        ys[-1].sum().backward()
        counts.append(stats.nfe_backward)
    assert counts[1] > 0.8 * counts[0]


@FIXED
def test_the_backward_solve_can_have_its_own_method_and_steps(method, truth, device):
    """Coarse forwards, fine backwards: the state starts from the coarse end, so p stays."""
    gradient = Adjoint(method=method, steps=7)
    with counting() as stats:
        by_value(solver(method="rk4", steps=3, gradient=gradient), Tanh(device), device)
    ends = 3  # the gradient for each time takes one evaluation
    assert stats.nfe == 4 * 3 * 2
    assert stats.nfe_backward == SCHEMES[method].stages * 7 * 2 + ends
    found = by_value(
        solver(method="rk4", steps=40, gradient=Adjoint(method="rk4_38", steps=50)),
        Tanh(device), device,
    )  # fmt: skip
    assert largest_difference(found, truth) < 1e-6


@pytest.mark.parametrize(
    ("forward", "backward"), [("rk4", "dopri5"), ("dopri5", "rk4"), ("dopri5", "bosh3")]
)
def test_forward_and_backward_methods_may_be_of_different_kinds(forward, backward, truth, device):
    gradient = Adjoint(backward, **knobs(backward, steps=60, rtol=1e-8, atol=1e-9))
    keywords = knobs(forward, steps=60, rtol=1e-9, atol=1e-10)
    found = by_value(solver(method=forward, gradient=gradient, **keywords), Tanh(device), device)
    assert largest_difference(found, truth) < 1e-6


# --- several outputs ------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_gradients_with_many_outputs_against_finite_differences(gradient, method, device, dtype):
    """Losses of different weight on all of seven outputs: every jump of the adjoint counts."""
    method = method_for(gradient, method)
    field = Tanh(device)
    t = torch.tensor([0.0, 0.1, 0.25, 0.7, 0.8, 1.3, 1.5], device=device, dtype=dtype)
    t.requires_grad_()
    y0 = randn(3, device=device).requires_grad_()
    weights = randn(7, 3, device=device, seed=7)
    steps = 30 if gradient in ("adjoint", "reconstruct") else 5

    options = knobs(method, steps=steps, rtol=1e-10, atol=1e-11)

    def loss(y0, t):
        ys = odeint(field, y0, t, method=method, gradient=gradient, **options)
        return (weights * ys).sum()

    found = torch.autograd.grad(loss(y0, t), [y0, t])
    with torch.no_grad():
        for x, grad in zip((y0, t), found, strict=True):
            for k in range(len(x)):
                move = torch.zeros_like(x)
                move[k] = 1e-5
                moves = [move if x is y else torch.zeros_like(y) for y in (y0, t)]
                up = loss(y0 + moves[0], t + moves[1])
                down = loss(y0 - moves[0], t - moves[1])
                assert grad[k].item() == pytest.approx(((up - down) / 2e-5).item(), abs=2e-6)


@EVERY
def test_a_loss_on_one_output_sees_only_what_came_before(gradient, device, dtype):
    """d y(t_1) / d t_2 is zero, and so are the gradients of a piece of field used later only."""

    class Switch(nn.Module):
        def __init__(self):
            super().__init__()
            self.early = nn.Parameter(torch.ones((), device=device, dtype=dtype))
            self.late = nn.Parameter(torch.ones((), device=device, dtype=dtype))

        def forward(self, t, y):
            return torch.where(t < 1, self.early, self.late) * y

    field = Switch()
    t = torch.tensor([0.0, 0.5, 2.0], device=device, dtype=dtype, requires_grad=True)
    ys = odeint(
        field, torch.ones(1, device=device, dtype=dtype), t, method=method_for(gradient, "rk4"),
        steps=600 if gradient == "reversible" else 30, gradient=gradient,
    )  # fmt: skip
    early, late, times = gradients(ys[1].sum(), [field.early, field.late, t])
    growth = torch.tensor(0.5).exp().item()
    assert early.item() == pytest.approx(0.5 * growth, rel=1e-5)
    assert late.item() == 0
    assert times.tolist() == pytest.approx([-growth, growth, 0], rel=1e-5)


def backward_evaluations(outputs: int, device) -> tuple[int, int]:
    """Return the evaluations of both libraries' adjoints at the same tolerance."""

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.field, self.calls = Tanh(device), 0

        def forward(self, t, y):
            self.calls += 1
            return self.field(t, y)

    counts = []
    t = torch.linspace(0, 2, outputs, device=device, dtype=torch.float64)
    for solve, keywords in (
        (odeint, {"gradient": "adjoint"}),
        (torchdiffeq.odeint_adjoint, {}),
    ):
        field, y0 = Counted(), randn(2, 3, device=device).requires_grad_()
        ys = solve(field, y0, t, rtol=1e-6, atol=1e-6, **keywords)
        forward = field.calls
        ys.sum().backward()
        counts.append(field.calls - forward)
    return counts[0], counts[1]


def test_the_step_size_is_kept_across_outputs(device):
    """torchdiffeq looks for a first step at every output: twice the evaluations for 100."""
    ours, theirs = backward_evaluations(100, device)
    assert ours <= 0.55 * theirs
    assert ours <= 7.2 * 99  # one step of six evaluations an interval, and one to begin
    ours, theirs = backward_evaluations(2, device)
    assert ours <= 1.3 * theirs


# --- memory ---------------------------------------------------------------------------------------


def kept(gradient, device, steps=10, outputs=2, method="rk4") -> int:
    """Return the bytes a solve keeps for its backward pass, besides inputs and parameters."""
    field, y0 = Tanh(device), randn(20, 3, device=device).requires_grad_()
    t = torch.linspace(0, 1, outputs, dtype=torch.float64).tolist()
    with saved_bytes(exclude=[y0, *field.parameters()]) as saved:
        odeint(field, y0, t, method=method, gradient=gradient, **knobs(method, steps=steps))
    return saved.total


STATE = 20 * 3 * 8


def test_backprop_memory_is_linear_in_the_steps(device):
    """C18-A7, and at least the four tanh values of 20 x 4 numbers that every step stores."""
    b = [kept("backprop", device, n) for n in (10, 100, 1000)]
    assert (b[2] - b[1]) / (b[1] - b[0]) == pytest.approx(10, rel=1e-3)
    assert b[2] > 1000 * 4 * 20 * 4 * 8


def test_adjoint_memory_is_the_output_whatever_the_steps(device):
    b = [kept("adjoint", device, n) for n in (10, 100, 1000)]
    assert b[0] == b[1] == b[2] < 8 * STATE
    assert kept("adjoint", device, outputs=100) - b[0] == 98 * STATE
    assert kept("adjoint", device, method="dopri5") == b[0]


@pytest.mark.parametrize("every", [1, 5, 20])
def test_checkpoint_memory_is_one_state_every_few_steps(every, device):
    b = [kept(Checkpoint(every=every), device, n) for n in (100, 200, 1000)]
    assert b[1] - b[0] == 100 // every * STATE
    assert b[2] - b[1] == 800 // every * STATE


@EVERY
def test_gradients_are_the_same_while_bytes_are_counted(gradient, device):
    """The counter's hooks must not cut the graph."""
    keywords = {"method": method_for(gradient, "rk4"), "steps": 4, "gradient": gradient}
    expected = by_value(solver(**keywords), Tanh(device), device)
    with saved_bytes():
        found = by_value(solver(**keywords), Tanh(device), device)
    assert largest_difference(found, expected) == 0


# --- parameters -----------------------------------------------------------------------------------


class Twice(nn.Module):
    """One parameter under two names, used twice; one frozen; one never used."""

    def __init__(self, device, dtype):
        super().__init__()
        self.w = nn.Parameter(randn(3, 3, device=device, dtype=dtype, seed=4))
        self.same = self.w
        self.frozen = nn.Parameter(randn(3, device=device, dtype=dtype, seed=5), False)
        self.unused = nn.Parameter(torch.ones(2, device=device, dtype=dtype))

    def forward(self, t, y):
        return torch.tanh(y @ self.w + self.frozen) @ self.same.T


@EVERY
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_double_use_is_summed_unused_is_none_frozen_stays_frozen(gradient, method, device, dtype):
    method = method_for(gradient, method)
    found = {}
    for name in ("backprop", gradient):
        field = Twice(device, dtype)
        options = knobs(method, steps=80, rtol=1e-9, atol=1e-10)
        ys = odeint(
            field, randn(2, 3, device=device), [0.0, 1.0], method=method, gradient=name, **options
        )
        ys[-1].sum().backward()
        found[name] = field
    torch.testing.assert_close(found[gradient].w.grad, found["backprop"].w.grad, rtol=0, atol=1e-6)
    assert found[gradient].w.grad.abs().max() > 0.1
    assert found[gradient].frozen.grad is None
    assert found["backprop"].unused.grad is None
    unused = found[gradient].unused.grad
    assert unused is None or not unused.any()
    assert unused is None


@EVERY
def test_only_what_is_wanted_is_differentiated(gradient, device, dtype):
    """y0 alone, one parameter alone, the times alone: each as in the full gradient."""
    keywords = {"method": method_for(gradient, "rk4"), "steps": 5, "gradient": gradient}
    full = by_value(solver(**keywords), Tanh(device), device)
    for wanted in ("y0", "t", "w", "c"):
        field = Tanh(device)
        for name, p in field.named_parameters():
            p.requires_grad_(name == wanted)
        y0 = randn(2, 3, device=device).requires_grad_(wanted == "y0")
        t = torch.tensor(TIMES, device=device, dtype=dtype, requires_grad=wanted == "t")
        ys = odeint(field, y0, t, **keywords)
        weights = randn(*ys.shape, device=device, seed=9)
        (ys * weights + 0.3 * ys.square()).sum().backward()
        inputs = {"y0": y0, "t": t, **dict(field.named_parameters())}
        for (name, tensor), expected in zip(inputs.items(), full, strict=True):
            if name == wanted:
                torch.testing.assert_close(tensor.grad, expected, rtol=1e-12, atol=1e-13)
            else:
                assert tensor.grad is None


NAMED = pytest.mark.parametrize(
    "make", [Checkpoint, Adjoint, Reconstruct, Reversible], ids=lambda c: c.__name__
)


def method_of(make):
    return "async_leapfrog" if make is Reversible else "rk4"


@NAMED
def test_params_name_what_a_function_reads(make, device, dtype):
    """Leaves and results of other operations; given twice, counted once."""
    leaf = randn(3, 3, device=device, seed=4).requires_grad_()
    bias = randn(3, device=device, seed=5).requires_grad_()

    def solve(gradient, w, params=()):
        return odeint(
            lambda t, y: torch.tanh(y @ w + bias), randn(2, 3, device=device), [0.0, 1.0],
            method=method_of(make), steps=30, gradient=gradient, params=params,
        )[-1].sum()  # fmt: skip

    w = leaf.square()
    expected = gradients(solve("backprop", w), [leaf, bias])
    for params in ((w, bias), [bias, w], (w, bias, w)):
        w = leaf.square()
        named = type(params)(w if p.shape == w.shape else p for p in params)
        found = gradients(solve(make(), w, named), [leaf, bias])
        assert largest_difference(found, expected) < 1e-6


@NAMED
@pytest.mark.parametrize("start", [True, False], ids=["y0 needs one too", "y0 does not"])
def test_a_tensor_that_was_not_named_is_an_error(make, start, device, dtype):
    """Its gradient would be missing, or taken by plain backprop, without a word."""
    w = torch.ones(3, 3, device=device, dtype=dtype, requires_grad=True)
    y0, method = randn(2, 3, device=device).requires_grad_(start), method_of(make)
    for others in ((), (torch.ones(2, device=device, requires_grad=True),)):
        with pytest.raises(ValueError, match=r"gradient: func reads a tensor of shape \(3, 3\)"):
            odeint(
                lambda t, y: y @ w, y0, [0.0, 1.0], method=method, gradient=make(), params=others
            )
    with torch.no_grad():  # nothing is wanted, so nothing is missing
        odeint(lambda t, y: y @ w, y0, [0.0, 1.0], method=method, gradient=make())
    w.requires_grad_(False)
    odeint(lambda t, y: y @ w, y0, [0.0, 1.0], method=method, gradient=make())


@NAMED
def test_a_module_that_reads_a_foreign_tensor_is_found_out_too(make, device, dtype):
    outside = torch.ones(3, device=device, dtype=dtype, requires_grad=True)

    class Reads(Tanh):
        def forward(self, t, y):
            return super().forward(t, y) + outside.exp()

    with pytest.raises(ValueError, match=r"tensor of shape \(3,\)"):
        odeint(Reads(device), randn(2, 3, device=device), [0.0, 1.0], method=method_of(make),
               gradient=make())  # fmt: skip


# --- buffers, randomness, autocast ----------------------------------------------------------------


class Normed(nn.Module):
    """A field with batch norm."""

    def __init__(self, device, dtype=torch.float64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(3, 3)
            self.norm = nn.BatchNorm1d(3)
        self.to(device, dtype)

    def forward(self, t, y):
        return torch.tanh(self.linear(self.norm(y)) + t)


@EVERY
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_batch_norm_is_updated_by_the_forward_solve_only(gradient, train, device, dtype):
    found = {}
    for name in ("backprop", gradient):
        field = Normed(device).train(train)
        y0 = randn(8, 3, device=device).requires_grad_()
        method = method_for(gradient, "heun")
        ys = odeint(field, y0, [0.0, 0.5, 1.0], method=method, steps=20, gradient=name)
        after_forward = {k: v.clone() for k, v in field.named_buffers()}
        grads = gradients(ys.square().sum(), [y0, *field.parameters()])
        for key, buffer in field.named_buffers():
            assert torch.equal(buffer, after_forward[key])
        found[name] = (dict(field.named_buffers()), grads)
    for key, buffer in found["backprop"][0].items():
        assert torch.equal(found[gradient][0][key], buffer)
    calls = 42 if gradient == "reversible" else 80
    assert found[gradient][0]["norm.num_batches_tracked"].item() == (calls if train else 0)
    tolerance = {"adjoint": 2e-2, "reconstruct": 2e-3}.get(gradient, 1e-10)
    assert largest_difference(found[gradient][1], found["backprop"][1]) < tolerance


class Dropped(nn.Module):
    """A field with dropout."""

    def __init__(self, device, p=0.4):
        super().__init__()
        self.w = nn.Parameter(randn(3, 3, device=device, seed=4))
        self.dropout = nn.Dropout(p)

    def forward(self, t, y):
        return self.dropout(torch.tanh(y @ self.w))


@pytest.mark.parametrize("every", [1, 3, 100])
def test_checkpoint_repeats_the_numbers_dropout_drew(every, device):
    """The same seed gives backprop's values and gradients, and leaves the same state behind."""
    found = []
    for gradient in ("backprop", Checkpoint(every=every)):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            field, y0 = Dropped(device), randn(4, 3, device=device).requires_grad_()
            ys = odeint(field, y0, [0.0, 0.5, 1.0], method="heun", steps=5, gradient=gradient)
            between = torch.rand(2, device=device)  # other draws must not disturb the replay
            grads = gradients(ys.square().sum(), [y0, field.w])
            after = torch.rand(2, device=device)
        found.append((ys, between, after, *grads))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_checkpoint_refuses_randomness_that_starts_late(device):
    class Late(Dropped):
        def forward(self, t, y):
            return super().forward(t, y) if t > 0.5 else y @ self.w

    with pytest.raises(ValueError, match=r"'checkpoint'.*random numbers.*gradient='backprop'"):
        odeint(Late(device), randn(4, 3, device=device), [0.0, 1.0], method="rk4", steps=4,
               gradient="checkpoint")  # fmt: skip


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_the_adjoint_refuses_dropout_and_accepts_it_in_eval_mode(method, device):
    field, y0 = Dropped(device, p=0.01), randn(4, 3, device=device)
    options = knobs(method, steps=2, rtol=0.5, atol=0.5)
    with pytest.raises(ValueError, match=r"'adjoint'.*random numbers.*gradient='checkpoint'"):
        odeint(field, y0, [0.0, 1.0], method=method, gradient="adjoint", **options)
    ys = odeint(field.eval(), y0, [0.0, 1.0], method=method, gradient="adjoint")
    ys.sum().backward()
    assert field.w.grad.any()


@pytest.mark.parametrize("every", [1, 3])
def test_checkpoint_under_autocast_is_backprop(every, device):
    found = []
    for gradient in ("backprop", Checkpoint(every=every)):
        field = Tanh(device, torch.float32)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            y0 = randn(2, 3, device=device, dtype=torch.float32).requires_grad_()
            ys = odeint(field, y0, [0.0, 1.0], method="rk4", steps=4, gradient=gradient)
        assert ys.dtype == torch.float32
        found.append([ys, *gradients(ys.square().sum(), [y0, *field.parameters()])])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)
    # bfloat16 was used at all: the values differ from those of float32
    plain = odeint(Tanh(device, torch.float32), y0, [0.0, 1.0], method="rk4", steps=4)
    assert not torch.equal(found[0][0], plain)


@EVERY
def test_weights_used_again_under_the_same_autocast_get_their_gradients(gradient, device):
    """A cast copy cached without gradients in the solve would cut them off afterwards."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(randn(3, 3, device=device, dtype=torch.float32, seed=4))

        def forward(self, t, y):
            return torch.tanh(nn.functional.linear(y, self.w))

    found = {}
    for name in ("backprop", gradient):
        field, other = Linear(), Linear()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            y0 = randn(2, 3, device=device, dtype=torch.float32)
            method = method_for(gradient, "rk4")
            odeint(other, y0, [0.0, 1.0], method=method, gradient=name)
            ys = odeint(field, y0, [0.0, 1.0], method=method, steps=8, gradient=name)
            again = field(None, ys[-1]).float() + other(None, ys[-1]).float()
        found[name] = gradients(again.square().sum(), [field.w, other.w])
    for one, plain in zip(found[gradient], found["backprop"], strict=True):
        assert one.abs().max() > 0.1
        torch.testing.assert_close(one, plain, rtol=3e-2, atol=3e-2)


# --- derivatives of derivatives, names ------------------------------------------------------------


def test_backprop_can_be_differentiated_twice(device, dtype):
    """y(1) = y0 (1 + a/2)^2 by two Euler steps, so its second derivative for a is y0 / 2."""
    a = torch.tensor(0.4, device=device, dtype=dtype, requires_grad=True)
    y0 = torch.tensor([3.0], device=device, dtype=dtype)
    y = odeint(lambda t, y: a * y, y0, [0.0, 1.0], method="euler", steps=2)[-1]
    (first,) = torch.autograd.grad(y.sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first, a)
    assert first.item() == pytest.approx(3 * 1.2)
    assert second.item() == pytest.approx(1.5)


@NAMED
def test_the_others_say_that_they_cannot_be(make, device, dtype):
    field, y0 = Tanh(device), randn(3, device=device).requires_grad_()
    ys = odeint(field, y0, [0.0, 1.0], method=method_of(make), gradient=make())
    # At once, not when the result is differentiated: a sum with other terms would hide it.
    with pytest.raises(ValueError, match=r"second derivatives.*gradient='backprop'"):
        torch.autograd.grad(ys.square().sum(), y0, create_graph=True)


@EVERY
def test_a_solve_can_be_differentiated_again_if_asked_to(gradient, device, dtype):
    field, y0 = Tanh(device), randn(3, device=device).requires_grad_()
    method = method_for(gradient, "rk4")
    ys = odeint(field, y0, [0.0, 1.0], method=method, steps=3, gradient=gradient)
    first = torch.autograd.grad(ys[-1].sum(), y0, retain_graph=True)
    second = torch.autograd.grad(ys[-1].sum(), y0)
    assert torch.equal(first[0], second[0])


@NAMED
def test_parameters_changed_before_the_backward_pass_are_noticed(make, device, dtype):
    """The backward pass reads them again: after an optimiser's step it would read wrong ones."""
    field, y0 = Tanh(device), randn(3, device=device).requires_grad_()
    ys = odeint(field, y0, [0.0, 1.0], method=method_of(make), gradient=make())
    with torch.no_grad():
        field.w.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ys.sum().backward()


def test_names_and_configured_methods():
    assert get_gradient("backprop") == Backprop()
    assert get_gradient("adjoint") == Adjoint()
    assert get_gradient("checkpoint") == Checkpoint(every=1)
    assert get_gradient("reconstruct") == Reconstruct(rule="reverse")
    assert get_gradient("reversible") == Reversible()
    configured = Adjoint(method="rk4", steps=50)
    assert get_gradient(configured) is configured
