"""Bad input, one row each: the type of the error, the argument it names, the value it repeats."""

import math

import pytest
import torch
from torch import nn

from companion import Constant, OdeBlock, PiecewiseConstant, PiecewiseLinear, counting, odeint
from companion.gradients import Adjoint, Checkpoint, Reconstruct, get_gradient
from companion.observe import fit_slope, peak_memory


def decay(t, y):
    return -y


def solve(func=decay, y0=None, t=(0.0, 1.0), method="rk4", **keywords):
    return odeint(func, torch.ones(2) if y0 is None else y0, t, method=method, **keywords)


def adaptive(**keywords):
    return solve(method="dopri5", **keywords)


def block(residual=None, **keywords):
    return OdeBlock(nn.Linear(2, 2) if residual is None else residual, **keywords)


def run(x=None, **keywords):
    return block(**keywords)(torch.ones(3, 2) if x is None else x)


class Grows(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], dim=-1)


class Explodes(nn.Module):
    def forward(self, x):
        return x * math.inf


WEIGHT = torch.ones(2, requires_grad=True)

# (name, call, type, argument, what else the message must say)
ROWS = [
    # --- odeint: method, tolerances, steps
    ("unknown method", lambda: solve(method="rk5"), ValueError, "method", ["'rk5'", "rk4_38"]),
    ("method of a wrong type", lambda: solve(method=4), ValueError, "method", ["4", "euler"]),
    ("no step", lambda: solve(steps=0), ValueError, "steps", ["0", "at least 1"]),
    ("negative steps", lambda: solve(steps=-3), ValueError, "steps", ["-3", "at least 1"]),
    ("half a step", lambda: solve(steps=1.5), ValueError, "steps", ["1.5", "integer"]),
    ("steps as text", lambda: solve(steps="8"), ValueError, "steps", ["'8'", "integer"]),
    ("steps as bool", lambda: solve(steps=True), ValueError, "steps", ["True", "integer"]),
    ("negative rtol", lambda: adaptive(rtol=-1e-3), ValueError, "rtol", ["-0.001", "at least 0"]),
    ("rtol not a number", lambda: adaptive(rtol=math.nan), ValueError, "rtol", ["nan"]),
    ("infinite atol", lambda: adaptive(atol=math.inf), ValueError, "atol", ["inf"]),
    ("atol as text", lambda: adaptive(atol="small"), TypeError, "atol", ["'small'", "number"]),
    ("rtol as truth", lambda: adaptive(rtol=True), TypeError, "rtol",
     ["True", "number"]),
    ("rtol of fixed steps", lambda: solve(rtol=1e-3), ValueError, "rtol",
     ["0.001", "'rk4'", "steps="]),
    ("atol of fixed steps", lambda: block(atol=1e-3), ValueError, "atol", ["'euler'"]),
    ("steps of an adaptive method", lambda: solve(method=None, steps=50), ValueError, "steps",
     ["50", "'dopri5'", "rtol="]),
    ("steps of an adaptive adjoint", lambda: solve(gradient=Adjoint("dopri5", steps=5)), ValueError,
     "steps", ["5", "'dopri5'"]),
    # --- odeint: times
    ("no time", lambda: solve(t=[]), ValueError, "t", ["[]", "one time"]),
    ("no time from a generator", lambda: solve(t=(x for x in ())), ValueError, "t", ["[]"]),
    ("repeated time", lambda: solve(t=[0.0, 1.0, 1.0]), ValueError, "t", ["1.0, 1.0", "strictly"]),
    ("turning time", lambda: solve(t=[0.0, 1.0, 0.5]), ValueError, "t", ["0.5", "strictly"]),
    ("time nan", lambda: solve(t=[0.0, math.nan]), ValueError, "t", ["nan", "finite"]),
    ("time infinite", lambda: solve(t=[0.0, math.inf]), ValueError, "t", ["inf", "finite"]),
    ("times in a matrix", lambda: solve(t=torch.zeros(2, 2)), ValueError, "t", ["(2, 2)", "1-D"]),
    ("whole times", lambda: solve(t=torch.tensor([0, 1])), ValueError, "t", ["int64", "floating"]),
    ("a single number", lambda: solve(t=1.0), TypeError, "t", ["1.0", "1-D tensor"]),
    ("times as text", lambda: solve(t="01"), TypeError, "t", ["'01'", "1-D tensor"]),
    ("times of text", lambda: solve(t=["a", "b"]), TypeError, "t", ["'a'", "1-D tensor"]),
    ("a list of tensors with gradients", lambda: solve(t=[torch.zeros((), requires_grad=True), 1]),
     TypeError, "t", ["list of tensors", "stack"]),
    # --- odeint: states and fields
    ("whole state", lambda: solve(y0=torch.ones(2).long()), ValueError, "y0", ["int64"]),
    ("complex state", lambda: solve(y0=torch.ones(2) * 1j), ValueError, "y0", ["complex64"]),
    ("state as list", lambda: solve(y0=[1.0, 2.0]), TypeError, "y0", ["list", "tensor"]),
    ("empty tuple", lambda: solve(y0=()), TypeError, "y0", ["tuple"]),
    ("tuple of numbers", lambda: solve(y0=(1.0, 2.0)), TypeError, "y0", ["tuple", "tensor"]),
    ("tuple of two dtypes", lambda: solve(y0=(torch.ones(2), torch.ones(2).double())),
     ValueError, "y0", ["float32", "float64"]),
    ("tuple on two devices", lambda: solve(y0=(torch.ones(2), torch.ones(2, device="meta"))),
     ValueError, "y0", ["cpu", "meta"]),
    ("func not callable", lambda: solve(func=3), TypeError, "func", ["3", "func(t, y)"]),
    ("shape changed", lambda: solve(func=lambda t, y: y[:1]), ValueError, "func", ["(1,)", "(2,)"]),
    ("shape broadcasts", lambda: solve(func=lambda t, y: t), ValueError, "func", ["()", "(2,)"]),
    ("dtype changed", lambda: solve(func=lambda t, y: y.double()), ValueError, "func",
     ["float64", "float32"]),
    ("device changed", lambda: solve(func=lambda t, y: y.to("meta")), ValueError, "func",
     ["meta", "cpu"]),
    ("returns a number", lambda: solve(func=lambda t, y: 1.0), TypeError, "func", ["float"]),
    ("returns nothing", lambda: solve(func=lambda t, y: None), TypeError, "func", ["NoneType"]),
    ("shape changed, adjoint", lambda: solve(func=lambda t, y: y[:1], gradient="adjoint"),
     ValueError, "func", ["(1,)", "(2,)"]),
    ("tensor for a tuple", lambda: solve(func=lambda t, y: torch.ones(2, 2),
                                         y0=(torch.ones(2), torch.ones(2))),
     TypeError, "func", ["Tensor", "tuple"]),
    ("parts in another order", lambda: solve(func=lambda t, y: (y[1], y[0]),
                                             y0=(torch.ones(2, 3), torch.ones(3, 2))),
     ValueError, "func", ["(3, 2)", "(2, 3)"]),
    ("one part missing", lambda: solve(func=lambda t, y: (y[0],),
                                       y0=(torch.ones(2), torch.ones(1))),
     ValueError, "func", ["[(2,)]", "[(2,), (1,)]"]),
    ("state nan", lambda: solve(y0=torch.tensor([1.0, math.nan])), ValueError, "y0",
     ["1 of 2 values", "before the first step"]),
    ("state leaves the numbers", lambda: solve(func=lambda t, y: y**3 * 100, t=[1.0, 3.0], steps=4),
     ValueError, "y0", ["finite at t = 1.5"]),
    ("adaptive solve gets stuck", lambda: solve(func=lambda t, y: y * y, t=[0.0, 2.0],
                                                method="dopri5", rtol=1e-3, atol=1e-3),
     ValueError, "y0", ["dopri5", "t = "]),
    ("stats of a wrong type", lambda: counting({}).__enter__(), TypeError, "stats",
     ["{}", "Stats"]),
    # --- gradients
    ("unknown gradient", lambda: solve(gradient="reverse"), ValueError, "gradient",
     ["'reverse'", "backprop, adjoint, checkpoint, reconstruct, reversible"]),
    ("gradient as a class", lambda: solve(gradient=Adjoint), TypeError, "gradient",
     ["Adjoint(...)"]),
    ("gradient None", lambda: get_gradient(None), TypeError, "gradient", ["None", "backprop"]),
    ("checkpoint every 0", lambda: Checkpoint(every=0), ValueError, "every", ["0", "at least 1"]),
    ("checkpoint every 2.0", lambda: Checkpoint(every=2.0), ValueError, "every", ["2.0"]),
    ("params not in a tuple", lambda: solve(params=WEIGHT), TypeError, "params", ["tuple"]),
    ("params in a generator", lambda: solve(params=nn.Linear(2, 2).parameters()), TypeError,
     "params", ["generator", "tuple"]),
    ("params of numbers", lambda: block(params=(1.0,)), TypeError, "params", ["(1.0,)"]),
    ("hidden parameter, adjoint", lambda: solve(func=lambda t, y: WEIGHT * y, gradient="adjoint"),
     ValueError, "gradient", ["(2,)", "params=", "'backprop'"]),
    ("hidden parameter, checkpoint", lambda: solve(func=lambda t, y: WEIGHT * y,
                                                   gradient="checkpoint"),
     ValueError, "gradient", ["(2,)", "params=", "'backprop'"]),
    ("checkpoint of Adams", lambda: solve(method="implicit_adams", gradient="checkpoint"),
     ValueError, "gradient", ["'checkpoint'", "'adjoint'"]),
    ("backprop through scipy", lambda: solve(y0=torch.ones(2, requires_grad=True),
                                             method="scipy_solver"),
     ValueError, "gradient", ["scipy_solver", "'adjoint'"]),
    ("adjoint with an unknown method", lambda: solve(gradient=Adjoint(method="rk5")), ValueError,
     "method", ["'rk5'", "rk4"]),
    ("adjoint without a step", lambda: solve(gradient=Adjoint(steps=0)), ValueError, "steps",
     ["0", "at least 1"]),
    ("adjoint of a negative tolerance", lambda: adaptive(gradient=Adjoint(rtol=-1.0)), ValueError,
     "rtol", ["-1.0"]),
    ("unknown rule", lambda: Reconstruct(rule="forward"), ValueError, "rule",
     ["'forward'", "reverse, corrected, predicted"]),
    ("rule of a wrong type", lambda: Reconstruct(rule=2), ValueError, "rule", ["2"]),
    ("order 5", lambda: Reconstruct("predicted", order=5), ValueError, "order", ["5", "3 or 4"]),
    ("order True", lambda: Reconstruct("predicted", order=True), ValueError, "order", ["True"]),
    ("order without a prediction", lambda: Reconstruct("corrected", order=2), ValueError, "order",
     ["2", "'corrected'", "'predicted'"]),
    ("negative sweeps", lambda: Reconstruct(sweeps=-1), ValueError, "sweeps", ["-1", "at least 0"]),
    ("half a sweep", lambda: Reconstruct(sweeps=0.5), ValueError, "sweeps", ["0.5"]),
    ("reconstruct every 0", lambda: Reconstruct(every=0), ValueError, "every", ["0", "at least 1"]),
    ("reconstruct without a grid", lambda: solve(method="dopri5", gradient="reconstruct"),
     ValueError, "gradient", ["'reconstruct'", "'reversible'", "'adjoint'"]),
    ("reconstruct the leapfrog", lambda: solve(method="async_leapfrog", gradient="reconstruct"),
     ValueError, "gradient", ["'reversible'"]),
    ("reversible with another method", lambda: solve(method="rk4", gradient="reversible"),
     ValueError, "gradient", ["'async_leapfrog'", "'reconstruct'"]),
    ("checkpoint of the leapfrog", lambda: solve(method="async_leapfrog", gradient="checkpoint"),
     ValueError, "gradient", ["'checkpoint'", "'backprop'"]),
    ("adjoint by the leapfrog", lambda: solve(method="async_leapfrog", gradient="adjoint"),
     ValueError, "gradient", ["Adjoint(method='midpoint')", "'reversible'"]),
    ("prediction with synchronised batch norm",
     lambda: run(residual=nn.SyncBatchNorm(2), gradient=Reconstruct("predicted")),
     ValueError, "gradient", ["synchronised", "rule='corrected'"]),
    ("problem of an adaptive block", lambda: block(method="dopri5").problem(torch.ones(3, 2)),
     ValueError, "method", ["'dopri5'", "fixed grid"]),
    ("adjoint of dropout", lambda: run(residual=nn.Dropout(), x=torch.ones(2, requires_grad=True),
                                       gradient="adjoint"),
     ValueError, "gradient", ["random", "'checkpoint'"]),
    # --- bases and blocks
    ("no cell", lambda: PiecewiseConstant(0), ValueError, "cells", ["0", "at least 1"]),
    ("negative cells", lambda: PiecewiseLinear(-2), ValueError, "cells", ["-2", "at least 1"]),
    ("cells as float", lambda: PiecewiseConstant(4.0), ValueError, "cells", ["4.0", "integer"]),
    ("basis as a class", lambda: block(basis=PiecewiseConstant), TypeError, "basis",
     ["PiecewiseConstant"]),
    ("basis as a number", lambda: block(basis=8), TypeError, "basis", ["8", "basis"]),
    ("residual not a module", lambda: block(residual=3), TypeError, "residual", ["3", "module"]),
    ("factory of something else", lambda: block(residual=lambda: 3), TypeError, "residual",
     ["int", "nn.Module"]),
    ("factory of unlike modules", lambda: block(
        residual=iter([nn.Linear(2, 2), nn.Linear(2, 3)]).__next__, basis=PiecewiseConstant(2)),
     ValueError, "modules", ["number 1", "(3, 2)", "(2, 2)"]),
    ("no modules", lambda: OdeBlock.from_modules([]), ValueError, "modules", ["at least one"]),
    ("modules of two dtypes", lambda: OdeBlock.from_modules(
        [nn.Linear(2, 2), nn.Linear(2, 2).double()]),
     ValueError, "modules", ["number 1", "float64"]),
    ("too few modules", lambda: OdeBlock.from_modules([nn.Linear(2, 2)], PiecewiseLinear(1)),
     ValueError, "modules", ["1 modules", "2 coefficients"]),
    ("block method", lambda: block(method="ruk4"), ValueError, "method", ["'ruk4'", "rk4"]),
    ("block steps", lambda: block(steps=0), ValueError, "steps", ["0", "at least 1"]),
    ("block gradient", lambda: block(gradient="magic"), ValueError, "gradient", ["'magic'"]),
    ("block tolerance", lambda: block(method="dopri5", atol=-1), ValueError, "atol", ["-1"]),
    ("scale as text", lambda: block(scale="1"), TypeError, "scale", ["'1'", "number"]),
    ("scale not finite", lambda: block(scale=math.nan), ValueError, "scale", ["nan", "finite"]),
    ("view method", lambda: block().with_graph(method="x"), ValueError, "method", ["'x'"]),
    ("view steps", lambda: block().with_graph(steps=-1), ValueError, "steps", ["-1"]),
    ("refine a constant", lambda: block(basis=Constant()).refine(), TypeError, "basis",
     ["Constant", "PiecewiseConstant(cells=1)"]),
    ("input not a tensor", lambda: run(x=[1.0, 2.0]), TypeError, "x", ["list", "tensor"]),
    ("whole input", lambda: run(x=torch.ones(3, 2).long()), TypeError, "x", ["int64"]),
    ("input of another dtype", lambda: run(x=torch.ones(3, 2).double()), ValueError, "x",
     ["float64", "float32"]),
    ("input on another device", lambda: run(x=torch.ones(3, 2, device="meta")), ValueError, "x",
     ["meta", "cpu"]),
    ("residual changes the shape", lambda: run(residual=Grows()), ValueError, "residual",
     ["(3, 4)", "(3, 2)"]),
    ("residual explodes", lambda: run(residual=Explodes(), steps=4), ValueError, "x",
     ["finite at t = 0.25;"]),
    # --- states without arithmetic or values
    ("state of 8 bits", lambda: solve(y0=torch.ones(2).to(torch.float8_e4m3fn)), ValueError, "y0",
     ["float8_e4m3fn", "16 bits"]),
    ("part of 8 bits", lambda: solve(y0=(torch.ones(2).to(torch.float8_e5m2),)), ValueError, "y0",
     ["float8_e5m2", "16 bits"]),
    ("sparse part", lambda: solve(y0=(torch.ones(2).to_sparse(),)), ValueError, "y0", ["dense"]),
    ("state without values", lambda: adaptive(y0=torch.ones(2, device="meta")), ValueError, "y0",
     ["meta", "'dopri5'", "'rk4'"]),
    ("rows without values", lambda: adaptive(y0=torch.ones(2, device="meta"), per_sample=True),
     ValueError, "y0", ["meta"]),
    # --- counters
    ("a slope of one point", lambda: fit_slope([1.0], [1.0]), ValueError, "x, y", ["1 and 1"]),
    ("a slope of zeros", lambda: fit_slope([1, 2], [0, 1]), ValueError, "x, y", ["positive"]),
    ("memory of the cpu", lambda: peak_memory("cpu").__enter__(), ValueError, "device", ["cpu"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "kind", "argument", "words"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_bad_input_names_the_argument_and_the_value(call, kind, argument, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    message = str(caught.value)
    assert isinstance(caught.value, kind)
    assert message.startswith(f"{argument}: ")
    for word in words:
        assert word in message


def test_the_table_is_long_and_its_names_differ():
    assert len(ROWS) >= 30
    assert len({row[0] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
def test_a_bad_solve_leaves_the_statistics_it_found(gradient):
    """The search for the time of a failure runs on copies of a module's buffers."""

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2, affine=False)

        def forward(self, t, y):
            return self.norm(y) / (0.0 if t > 0.6 else 1.0)

    field = Field()
    with pytest.raises(ValueError, match="finite at t = 1"):
        odeint(field, torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), [0.0, 1.0],
               method="euler", steps=4, gradient=gradient)  # fmt: skip
    assert field.norm.num_batches_tracked.item() == 4
