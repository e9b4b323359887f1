"""Evaluations sample by sample, against solves of every sample alone."""

import pytest
import torch

from companion import OdeBlock, PiecewiseConstant, counting
from companion.analysis.evaluations import count_evaluations, solve_per_sample
from companion.models import ConvField, TanhMLP

F64 = torch.float64


def block_of(field, **options):
    knobs = {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5, "time": True, "scale": 3.0}
    return OdeBlock(field, **(knobs | options)).double()


@pytest.mark.parametrize("shape", [(4, 2), (4, 4, 3, 3)], ids=["vectors", "images"])
def test_counts_are_those_of_every_sample_alone(shape):
    """The samples differ in size, so that their steps differ too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = TanhMLP(2, (6, 6)) if len(shape) == 2 else ConvField(4)
        for p in field.parameters():
            p.data *= 3  # else hardly anything moves
        block = block_of(field)
        factors = torch.tensor([0.1, 1.0, 10.0, 100.0], dtype=F64)
        x = torch.randn(shape, dtype=F64) * factors.view(4, *(1,) * (len(shape) - 1))
    alone, states = [], []
    for row in x:
        with counting() as stats, torch.no_grad():
            states.append(block(row.unsqueeze(0)))
        alone.append(stats.nfe)
    found = count_evaluations(block, x)
    assert found.own.tolist() == alone
    assert len(set(alone)) > 1
    with counting() as stats, torch.no_grad():
        block(x)
    assert found.shared == stats.nfe
    torch.testing.assert_close(solve_per_sample(block, x), torch.cat(states))


def test_what_takes_the_same_steps_is_refused():
    x = torch.zeros(2, 2, dtype=F64)
    for solve in (count_evaluations, solve_per_sample):
        for wrong in (x[:0], x[0]):
            with pytest.raises(ValueError, match=r"x: shape \(\S* ?2?\) is not allowed"):
                solve(block_of(TanhMLP(2, (3, 3))), wrong)
        with pytest.raises(
            TypeError, match="block: Sequential is not allowed; it must be an OdeBlock"
        ):
            solve(torch.nn.Sequential(block_of(TanhMLP(2, (3, 3)))), x)
    with pytest.raises(ValueError, match="'rk4' takes the same steps for every sample"):
        solve_per_sample(OdeBlock(TanhMLP(2, (3, 3)), method="rk4", steps=2, time=True).double(), x)
    with pytest.raises(ValueError, match="weights vary with depth"):
        solve_per_sample(block_of(TanhMLP(2, (3, 3)), basis=PiecewiseConstant(2)), x)
