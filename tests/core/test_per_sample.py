"""Steps for each row of a batch by itself: a batch is its single solves."""

import math

import pytest
import torch
from fields import largest_difference
from loops import loop
from torch import nn

from companion import counting, odeint
from companion.gradients import Adjoint, Checkpoint
from companion.methods import ADAPTIVE
from companion.observe import saved_bytes
from companion.solve import NonFiniteError, StepLimitError

F64 = torch.float64
RATES = torch.tensor([0.1, 1.0, 10.0, 60.0], dtype=F64)
BATCH = [0.0, 0.3, 0.35, 2.0]
OPTIONS = {"rtol": 1e-5, "atol": 1e-7}


def one(*values):
    return torch.tensor(values or (1.0,), dtype=F64)


class Field(nn.Module):
    """Rows of very different rates, whose number is the first entry of the state."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(one(0.9, 0.4))

    def forward(self, t, y):
        rate = y[..., :1]
        slope = -self.w[0] * rate * (y - torch.cos(t)) + self.w[1] * torch.sin(t * y.flip(-1))
        return torch.cat([torch.zeros_like(rate), slope[..., 1:]], -1)


def starts():
    y0 = torch.linspace(-1, 1, 12, dtype=F64).view(4, 3).clone()
    y0[:, 0] = RATES
    return y0.requires_grad_()


@pytest.mark.parametrize("method", ADAPTIVE)
@loop("gradient", ["backprop", "checkpoint"])
@loop("times", ["shared", "own"])
def test_a_batch_is_its_single_solves(method, gradient, times):
    """States, gradients, evaluations: to rounding, also with times of its own for each row."""
    if times == "shared":
        t = torch.tensor(BATCH, dtype=F64)
        columns = [t] * 4
    else:  # other starts, lengths and directions
        t = torch.stack([torch.tensor(BATCH, dtype=F64) * s + k
                         for k, s in enumerate((1.0, -0.1, 0.5, 0.2))], 1)  # fmt: skip
        columns = t.unbind(1)
    field, y0 = Field(), starts()
    weights = torch.linspace(-1, 2, 48, dtype=F64).view(4, 4, 3)
    with counting() as stats:
        ys = odeint(field, y0, t, method=method, per_sample=True, gradient=gradient, **OPTIONS)
    found = torch.autograd.grad((ys * weights).sum(), [y0, *field.parameters()])
    singles, counts = [], []
    for i in range(4):
        with counting() as alone:
            singles.append(odeint(field, y0[i], columns[i], method=method, **OPTIONS))
        counts.append(alone.nfe)
    expected = torch.stack(singles, 1)
    torch.testing.assert_close(ys, expected, rtol=1e-11, atol=1e-11)
    grads = torch.autograd.grad((expected * weights).sum(), [y0, *field.parameters()])
    assert largest_difference(found, grads) < 1e-9
    assert stats.nfe_per_sample.tolist() == counts
    assert stats.nfe == max(counts)
    assert min(counts) < max(counts) / 3


def test_the_field_gets_a_time_for_each_row_and_none_outside():
    """Rows at their end wait there; the time broadcasts against states of any rank."""
    t = torch.tensor([[0.0, 1.0, 5.0], [0.5, 3.0, 4.0]], dtype=F64)
    low, high = t.min(0).values, t.max(0).values
    for shape in ((3,), (3, 2), (3, 2, 1, 2)):
        wide = (3, *(1,) * (len(shape) - 1))

        def field(t, y, shape=shape, wide=wide):
            assert t.shape == wide
            assert y.shape == shape
            assert (t >= low.view(wide)).all()
            assert (t <= high.view(wide)).all()
            return torch.cos(t).expand_as(y) * torch.ones_like(y)

        ys = odeint(field, torch.zeros(shape, dtype=F64), t, per_sample=True, rtol=1e-9, atol=1e-9)
        exact = (torch.sin(t[1]) - torch.sin(t[0])).view(wide).expand(shape)
        torch.testing.assert_close(ys[-1], exact, rtol=0, atol=1e-8)


def test_a_trial_that_is_not_finite_spoils_no_other_row():
    """-sqrt(y) from 1 is nan in a long step; its neighbours and the gradients do not notice."""
    speed = one(0.9, 1.0, 1.1).view(3, 1)
    for gradient in ("backprop", "checkpoint"):
        y0, w = torch.ones(3, 1, dtype=F64, requires_grad=True), one(1.0).requires_grad_()
        with counting() as stats:
            ys = odeint(lambda t, y: -w * speed * y.sqrt(), y0, [0.0, 1.75], per_sample=True,  # noqa: B023
                        rtol=1e-3, atol=1e-3, gradient=gradient, params=(w,))  # fmt: skip
        root = 1 - speed * 1.75 / 2
        torch.testing.assert_close(ys[-1], root**2, rtol=0, atol=3e-3)
        grad_y, grad_w = torch.autograd.grad(ys[-1].sum(), [y0, w])
        torch.testing.assert_close(grad_y, root, rtol=0, atol=0.05)
        assert grad_w.item() == pytest.approx((-root * speed * 1.75).sum().item(), abs=0.05)
        assert stats.nfe < 500


@loop("gradient", ["backprop", "checkpoint"])
@loop("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_and_empty_batches(gradient, dtype):
    y0 = torch.ones(5, 2, dtype=dtype, requires_grad=True)
    ys = odeint(lambda t, y: -y, y0, [1e4, 1e4 + 1], per_sample=True, gradient=gradient)
    assert ys.dtype == dtype
    near = 0.02 if dtype == torch.bfloat16 else 1e-4
    assert ys[-1].float().mean().item() == pytest.approx(1 / math.e, rel=near)
    ys[-1].sum().backward()
    assert y0.grad.float().mean().item() == pytest.approx(1 / math.e, rel=near)
    w = torch.ones((), dtype=dtype, requires_grad=True)
    for t in ([0.0, 1.0, 2.0], torch.zeros(3, 0)):
        ys = odeint(lambda t, y: -w * y, torch.zeros(0, 2, dtype=dtype), t, per_sample=True,
                    gradient=gradient, params=(w,))  # fmt: skip
        assert ys.shape == (3, 0, 2)
        assert torch.autograd.grad(ys.sum(), w)[0].item() == 0


def test_checkpoint_keeps_a_state_a_step():
    y0 = torch.ones(50, 4, dtype=F64, requires_grad=True)
    with counting() as stats, saved_bytes(exclude=[y0]) as saved:
        odeint(
            lambda t, y: -y * torch.cos(t), y0, [0.0, 3.0], per_sample=True, gradient="checkpoint"
        )
    assert (stats.steps - 1) * 1600 <= saved.total <= stats.steps * 1600


def test_limits_and_refusals():
    def decay(t, y):
        return -y

    y0, t = torch.ones(3, 2, dtype=F64), [0.0, 1.0]
    with pytest.raises(
        StepLimitError, match=r"max_steps: dopri5 took 9 steps, and row 1 stands at"
    ):
        odeint(lambda t, y: -one(1.0, 500.0, 1.0).view(3, 1) * y, y0, t, per_sample=True,
               rtol=1e-3, max_steps=9)  # fmt: skip
    with pytest.raises(
        NonFiniteError, match=r"y0: dopri5 cannot go on, and row 2 stands at t = 1\.0"
    ):
        odeint(lambda t, y: one(0.1, 0.2, 1.0).view(3, 1) * y * y, y0, [0.0, 2.0], per_sample=True,
               rtol=1e-4, atol=1e-4)  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"the slope of row 1 is not finite"):
        odeint(lambda t, y: y / one(1.0, 0.0, 1.0).view(3, 1), y0, t, per_sample=True)
    for bad, words in [
        ({"method": "rk4"}, "per_sample: True .*'rk4' has no steps of its own"),
        ({"gradient": "adjoint"}, "gradient: 'adjoint' knows no steps for each row"),
        ({"gradient": Adjoint()}, "gradient: 'adjoint' knows no steps for each row"),
        ({"gradient": Checkpoint(every=2)}, "every: 2 is not allowed with per_sample=True"),
        ({"dense": True}, "dense: True is not allowed; it does not go with per_sample"),
        ({"knots": [0.5]}, "knots: .* it does not go with per_sample=True"),
        ({"event_fn": decay}, "event_fn: .* it does not go with per_sample=True"),
        ({"per_sample": 1.5}, "per_sample: 1.5 is not allowed"),
    ]:
        with pytest.raises(ValueError, match=words):
            odeint(decay, y0, t, **{"per_sample": True, **bad})
    for start in ((y0, y0), torch.ones(())):
        with pytest.raises(
            ValueError, match="y0: with per_sample=True it must be a tensor with a row"
        ):
            odeint(decay, start, t, per_sample=True)
    for times, words in [
        (torch.zeros(2, 2), r"t: shape \(2, 2\) is not allowed; .* \(times,\) or \(times, 3\)"),
        (one(0.0, 1.0).requires_grad_(), "t: times that need a gradient"),
        ([[0.0] * 3, [1.0, 2.0, 0.0]], "t: .* it must strictly increase or decrease"),
        ([0.0, math.nan], "t: .* all times must be finite"),
    ]:
        with pytest.raises(ValueError, match=words):
            odeint(decay, y0, times, per_sample=True)
    with pytest.raises(TypeError, match=r"t: .* pass a tensor or numbers"):
        odeint(decay, y0, ["a", "b"], per_sample=True)
