"""The same problems through this package and torchdiffeq, with the same arguments."""

import pytest
import torch
import torchdiffeq
from fields import Tanh, gradients, randn

from companion import odeint

SAME_SCHEME = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2", "rk4_38": "rk4"}
CONTROLLED = ["dopri5", "bosh3", "tsit5", "scipy_solver"]
SPANS = {
    "two times": [0.0, 1.0],
    "uneven": [0.0, 0.25, 1.5, 2.0],
    "backward": [1.0, 0.5, -0.5],
}


CASES = ["linear", "oscillator", "tanh", "batched"]


@pytest.fixture(params=CASES)
def case(request, device):
    """A field, and the shape of its state."""
    a = randn(3, 3, device=device, seed=5) / 2
    problems = {
        "linear": (lambda t, y: y @ a.to(y.dtype).T, (3,)),
        "oscillator": (lambda t, y: torch.stack([y[1], torch.sin(3 * t) - torch.sin(y[0])]), (2,)),
        "tanh": (lambda t, y: torch.tanh(y * t + 1) / (1 + y * y), (4,)),
        "batched": (lambda t, y: torch.cos(t + y @ a.to(y.dtype)), (5, 2, 3)),
    }
    return problems[request.param]


@pytest.mark.parametrize(
    ("ours", "span", "case"),
    [  # every scheme meets every case and every span
        (scheme, list(SPANS)[(i + j) % 3], case)
        for i, scheme in enumerate(SAME_SCHEME)
        for j, case in enumerate(CASES)
    ],
    indirect=["case"],
)
def test_fixed_steps_are_torchdiffeqs(ours, span, case, device, dtype):
    """Equal to a few last bits; torchdiffeq's ``rk4`` is the 3/8 rule."""
    func, shape = case
    y0 = randn(*shape, device=device)
    t = torch.tensor(SPANS[span], device=device, dtype=dtype)
    expected = torchdiffeq.odeint(func, y0, t, method=SAME_SCHEME[ours])
    ys = odeint(func, y0, t, method=ours)
    assert ys.shape == expected.shape
    torch.testing.assert_close(ys, expected, rtol=1e-13, atol=1e-13)


def test_classic_rk4_is_another_scheme(device, dtype):
    y0 = randn(3, device=device)
    t = torch.tensor([0.0, 1.0], device=device, dtype=dtype)
    theirs = torchdiffeq.odeint(lambda t, y: torch.cos(t * y), y0, t, method="rk4")
    ours = odeint(lambda t, y: torch.cos(t * y), y0, t, method="rk4")
    assert (ours - theirs).abs().max().item() > 1e-5


@pytest.mark.parametrize("ours", list(SAME_SCHEME))
def test_steps_are_torchdiffeqs_grid(ours, device, dtype):
    """``steps=4`` is their ``step_size`` of a quarter."""
    y0 = randn(3, device=device)
    field = Tanh(device)
    t = torch.tensor([0.0, 1.0, 2.0], device=device, dtype=dtype)
    expected = torchdiffeq.odeint(
        field, y0, t, method=SAME_SCHEME[ours], options={"step_size": 0.25}
    )
    torch.testing.assert_close(
        odeint(field, y0, t, method=ours, steps=4), expected, rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize(
    ("method", "span", "case"),
    [
        *((method, "uneven", CASES[i % 4]) for i, method in enumerate(CONTROLLED)),
        *(("dopri5", span, CASES[3 - i]) for i, span in enumerate(SPANS)),
    ],
    indirect=["case"],
)
def test_controlled_methods_meet_a_tight_solve_of_torchdiffeqs(method, span, case, device, dtype):
    """The steps are others; what they approximate is the same."""
    func, shape = case
    y0 = randn(*shape, device=device)
    t = torch.tensor(SPANS[span], device=device, dtype=dtype)
    expected = torchdiffeq.odeint(func, y0, t, method="dopri5", rtol=1e-11, atol=1e-12)
    ys = odeint(func, y0, t, method=method, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(ys, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(ys[0], y0)


@pytest.mark.parametrize("method", [None, "dopri5", "rk4_38"])
@pytest.mark.parametrize("low", [torch.float32, torch.float64], ids=str)
def test_tuples_and_dtypes(method, low, device):
    def func(t, y):
        position, speed = y
        assert position.shape == (2, 3)
        assert speed.shape == ()
        assert t.dtype == position.dtype == low
        return position * torch.sin(t) + speed, position.sum()

    y0 = (randn(2, 3, device=device).to(low), randn(device=device).to(low))
    t = torch.tensor([0.0, 0.5, 2.0], device=device, dtype=low)
    theirs = {None: None, "dopri5": "dopri5", "rk4_38": "rk4"}[method]
    limits = {"rtol": 1e-5, "atol": 1e-5} if low == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    expected = torchdiffeq.odeint(func, y0, t, method=theirs, **limits)
    options = {"steps": 1} if method == "rk4_38" else limits
    ys = odeint(func, y0, t, method=method, **options)
    assert isinstance(ys, tuple)
    for part, reference in zip(ys, expected, strict=True):
        assert part.shape == reference.shape
        assert part.dtype == low
        # The norm over a tuple is another one in torchdiffeq: equal to the tolerance only.
        tolerance = 1e-3 if low == torch.float32 else 1e-7
        tolerance = 1e-6 if method == "rk4_38" else tolerance
        torch.testing.assert_close(part, reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("ours", "theirs"), [("rk4_38", "rk4"), ("euler", "euler")])
@pytest.mark.parametrize("span", list(SPANS))
def test_gradients_of_fixed_steps_are_torchdiffeqs(ours, theirs, span, device, dtype):
    """For y0, every parameter and every time, with a loss on all outputs."""
    field = Tanh(device)
    found = []
    for solve, method in ((odeint, ours), (torchdiffeq.odeint, theirs)):
        y0 = randn(2, 3, device=device).requires_grad_()
        t = torch.tensor(SPANS[span], device=device, dtype=dtype, requires_grad=True)
        ys = solve(field, y0, t, method=method)
        weights = randn(*ys.shape, device=device, seed=9)
        found.append(gradients((ys * weights).sum(), [y0, t, *field.parameters()]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_gradients_of_dopri5_meet_torchdiffeqs(device, dtype):
    """Theirs goes through step sizes too, which adds nothing in the limit."""
    field = Tanh(device)
    found = []
    for solve, tolerance in ((odeint, 1e-9), (torchdiffeq.odeint, 1e-11)):
        y0 = randn(2, 3, device=device).requires_grad_()
        ys = solve(
            field, y0, torch.tensor([0.0, 0.7, 1.0], device=device, dtype=dtype), rtol=tolerance,
            atol=tolerance,
        )  # fmt: skip
        found.append(gradients(ys.square().sum(), [y0, *field.parameters()]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_the_adjoint_agrees_with_torchdiffeqs(device, dtype):
    field = Tanh(device)
    found = []
    for solve, keywords in (
        (odeint, {"gradient": "adjoint"}),
        (torchdiffeq.odeint_adjoint, {}),
    ):
        y0 = randn(2, 3, device=device).requires_grad_()
        t = torch.tensor([0.0, 0.7, 1.0], device=device, dtype=dtype, requires_grad=True)
        ys = solve(field, y0, t, rtol=1e-9, atol=1e-10, **keywords)
        weights = randn(*ys.shape, device=device, seed=9)
        found.append(gradients((ys * weights).sum(), [y0, t, *field.parameters()]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
