"""S22-X5 and the gradient of copied states: against plain loops and the companion."""

import math

import pytest
import torch
from torch import nn

from companion import OdeBlock, PiecewiseConstant
from companion.analysis.reconstruction import trajectory
from companion.experiments import run
from companion.experiments.copied_states import CopiedStates
from companion.experiments.memory_free import s22_x5_released_code as x5
from companion.gradients import Reconstruct
from companion.models import ResidualConvNet
from companion.train import seeded


def scaled(rates):
    """Layers x -> rate x on the line."""
    layers = [nn.Linear(1, 1, bias=False).double() for _ in rates]
    for layer, rate in zip(layers, rates, strict=True):
        nn.init.constant_(layer.weight, rate)
    return layers


def test_copied_states_are_one_step_back_from_the_truth():
    """On the line the gradient of a rate is h x~_n a, with x~_n = (1 - h r) x_{n+1}."""
    rates, h = (0.5, -0.8, 1.2), 1 / 3
    block = OdeBlock.from_modules(scaled(rates), PiecewiseConstant(3), gradient=CopiedStates())
    block(torch.ones(1, 1, dtype=torch.float64)).sum().backward()
    (param,) = block.parameters()
    whole, after = math.prod(1 + h * rate for rate in rates), 1.0
    for rate, found in zip(rates, param.grad.flatten().tolist(), strict=True):
        after *= 1 + h * rate
        assert found == pytest.approx(h * (1 - h * rate) * after * whole / after, rel=1e-12)


@pytest.fixture
def trained_net():
    """A convolutional net whose layers do something, with statistics of its own."""

    def make(method, layers=5):
        with seeded(3, dtype=torch.float64):
            net = ResidualConvNet(layers, images="digits", channels=3, method=method)
            for name, p in net.block.named_parameters():
                if name.endswith("norm2.weight"):
                    nn.init.normal_(p)
        return net

    return make


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize(("chained", "gradient"), [(True, Reconstruct()), (False, CopiedStates())])
def test_the_sweep_with_batch_statistics_is_the_companion_s(trained_net, method, chained, gradient):
    net = trained_net(method)
    x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = net.block.with_graph(gradient=gradient)(x)
    wanted = torch.autograd.grad(y, tuple(net.block.parameters()), a)
    states = list(trajectory(net.block, x).unbind())
    units = x5.units_of(net.block)
    found = x5.sweep(units, states, a, heun=method == "heun", chained=chained, frozen=False)
    torch.testing.assert_close(found, torch.cat([g.flatten(1) for g in wanted], 1))
    frozen = x5.sweep(units, states, a, heun=method == "heun", chained=chained, frozen=True)
    assert (frozen - found).norm() > 0.05 * found.norm()


def test_frozen_statistics_that_are_the_batch_s_do_no_harm(trained_net):
    """One layer from its true input: with the batch's own mean and variance nothing changes."""
    net = trained_net("euler", layers=1)
    x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (unit,) = x5.units_of(net.block)
    for norm in (unit.norm1, unit.norm2):
        norm.momentum = 1.0
    batch = unit.train()(x)
    numbers = x.numel() / 3  # a channel
    for norm in (unit.norm1, unit.norm2):
        norm.running_var *= 1 - 1 / numbers  # batch norm divides by n, its statistics by n - 1
    torch.testing.assert_close(unit.eval()(x), batch)


def test_s22_x5_in_small():
    result = run("S22-X5", depths=(3, 6), seeds=1, channels=3, epochs=1)
    for method in ("euler", "heun"):
        for way in ("chained", "copied"):
            batch, frozen = (
                result[f"error_{method}_{way}_{norms}"] for norms in ("batch", "frozen")
            )
            assert batch.shape == (2, 1)
            assert (frozen > batch).all()
        assert result[f"mean_{method}_chained_batch"] == result[f"error_{method}_chained_batch"][-1]
    chained, copied = (result[f"error_euler_{way}_batch"][-1, 0] for way in ("chained", "copied"))
    claims = [claim.observed for claim in result.claims]
    assert claims[0] == pytest.approx(copied / chained)
    assert claims[2] == pytest.approx(result["error_euler_chained_frozen"][-1, 0] / chained)
