"""The experiments of chapter 4: counts by hand, solves of single samples, and their claims."""

import math

import numpy as np
import pytest
import torch
from deciding import decided
from torch import nn

from companion import OdeBlock, counting
from companion.experiments import run
from companion.experiments.annulus import annulus, annulus_samples
from companion.experiments.ode_nets.c18_e2b_tolerance_panels import measured, panel_scalars
from companion.experiments.ode_nets.fw9_sample_costs import between, measures, rank_correlation
from companion.experiments.ode_nets.networks import NETS, ODES, middle, step_costs
from companion.models import TanhMLP
from companion.train import seeded

F64 = torch.float64


# The networks


def make(name, steps=3, tolerance=1e-4):
    with seeded(0, dtype=F64):
        block = middle(
            name,
            lambda: TanhMLP(2, (5, 5)),
            lambda: nn.Linear(2, 2),
            steps=steps,
            tolerance=tolerance,
        )
        return nn.Sequential(block, nn.Linear(2, 2))


def test_all_equations_have_the_same_weights_and_differ_in_their_solve():
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    values = {name: make(name, steps=20, tolerance=1e-9)(x) for name in ODES}
    for name in ODES:
        torch.testing.assert_close(values[name], values["rk4_backprop"], rtol=1e-6, atol=1e-6)
        block = make(name)[0]
        assert f"{block.method}_{type(block.gradient).__name__.lower()}" == name
        assert block.time
    assert not torch.equal(values["rk4_backprop"], values["dopri5_backprop"])
    assert isinstance(make("control")[0], nn.Identity)
    assert isinstance(make("resnet")[0], nn.Linear)
    with pytest.raises(ValueError, match="nets: 'rk4' is not allowed"):
        middle("rk4", nn.Identity, nn.Identity, steps=1, tolerance=1.0)


def test_costs_of_a_step_are_counted_by_hand():
    """rk4 evaluates four times a step, and again on the way back if it has not stored."""
    x = torch.ones(4, 2, dtype=F64)
    found = {
        name: step_costs(make(name), lambda net: net(x).square().sum())
        for name in NETS
        if not name.startswith("dopri5")
    }
    assert {name: row["forward"] for name, row in found.items()} == {
        "control": 0, "resnet": 0, "rk4_backprop": 12, "rk4_checkpoint": 12, "rk4_adjoint": 12,
    }  # fmt: skip
    assert [found[f"rk4_{g}"]["backward"] for g in ("backprop", "checkpoint", "adjoint")] == [
        0, 12, 12,
    ]  # fmt: skip
    kept = {name: row["kept"] for name, row in found.items()}
    assert kept["control"] < kept["rk4_adjoint"] < kept["rk4_checkpoint"] < kept["rk4_backprop"]
    # The control keeps the input of its head and the scores that are squared: 4 by 2 doubles each.
    assert kept["control"] == 2 * 64 / 1e6


# C18-E1 and C18-E1b: one equation for six layers


def test_checkpoints_train_the_net_that_backprop_trains():
    nets = ("control", "resnet", "rk4_backprop", "rk4_checkpoint", "dopri5_adjoint")
    result = run("C18-E1", tier="tiny", nets=nets, epochs=(2,))
    assert result["error_rk4_backprop"].tolist() == result["error_rk4_checkpoint"].tolist()
    assert result["mean_error_resnet"] == result["error_resnet"][0]
    assert result["gap"] == result["mean_error_dopri5_adjoint"] - result["mean_error_resnet"]
    assert result["mean_forward_resnet"] == 6
    assert result["mean_forward_rk4_checkpoint"] == result["mean_backward_rk4_checkpoint"] == 8
    c = 4
    norm, conv = 2 * c, 9 * c * c
    shell = (9 * c + c) + norm + (16 * c * c + c) + norm + 10 * c + 10
    assert result["parameters_control"] == shell
    assert result["parameters_resnet"] == shell + 6 * 2 * (norm + conv)
    field = 3 * norm + 2 * (conv + 9 * c + c)
    assert result["parameters_dopri5_adjoint"] == shell + field
    assert result["parameter_ratio"] == (shell + field) / (shell + 12 * (norm + conv))
    assert result["kept_adjoint"] < result["kept_checkpoint"] < 0.1


def test_what_decides_the_claims_about_images():
    numbers = {
        "gap": 0.021, "parameter_ratio": 0.5, "public_ode_net": 208_266, "public_resnet": 576_778,
        "kept_adjoint": 0.11, "kept_checkpoint": 0.09,
    }  # fmt: skip
    claims = decided("C18-E1", numbers, dataset="digits", seeds=5)
    assert [claim.id for claim in claims if not claim.holds] == ["CL07", "CL06"]
    claims = decided("C18-E1", numbers, dataset="mnist", seeds=5)  # of unequal lengths
    assert "CL07" not in [claim.id for claim in claims]
    assert [claim.id for claim in claims if not claim.holds] == ["CL06"]
    claims = decided("C18-E1", numbers | {"gap": -0.03}, dataset="digits", seeds=5)
    assert not claims[0].holds  # better by much is no match either


def test_points_lie_evenly_in_a_disc_and_an_annulus():
    """Uniform on an area: the square of the radius is uniform, and directions cancel."""
    x, y = annulus(20_000, torch.Generator().manual_seed(0), F64)
    squares = x.square().sum(1)
    for label, low, high in ((0, 0.0, 1.0), (1, 2.25, 4.0)):
        own = squares[y == label]
        assert len(own) == 10_000
        assert low <= own.min() < own.max() <= high
        assert own.mean().item() == pytest.approx((low + high) / 2, abs=0.02)
        assert own.var().item() == pytest.approx((high - low) ** 2 / 12, rel=0.05)
        assert x[y == label].mean(0).norm().item() < 0.05
    data = annulus_samples(3, 10, 6, torch.float32)
    assert not torch.equal(data.x_train[:6], data.x_test)
    assert torch.equal(data.x_train, annulus_samples(3, 10, 8, torch.float32).x_train)


def test_six_layers_and_one_equation_on_the_annulus_in_small():
    result = run("C18-E1b", tier="tiny", epochs=2)
    h = 4
    assert result["parameters_control"] == 6
    assert result["parameters_resnet"] == 6 + 6 * (2 * h + h + 2 * h + 2)
    assert result["parameters_rk4_backprop"] == 6 + (3 * h + h) + (h * h + h) + (2 * h + 2)
    assert result["mean_error_control"] == result["error_control"][0] > 0.3
    assert result["mean_forward_resnet"] == 6
    assert result["mean_forward_rk4_backprop"] == 16
    assert result["gap"] == result["error_dopri5_adjoint"][0] - result["error_resnet"][0]


# C18-E2b: tolerances


class Turning(nn.Module):
    """x' = A x with a turn of two radians: the end is known."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(2.0, dtype=F64))

    def forward(self, t, x):
        return self.rate * torch.stack([-x[:, 1], x[:, 0]], dim=1)


def test_deviations_are_distances_from_the_solution():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    cos, sin = math.cos(2), math.sin(2)
    exact = x @ torch.tensor([[cos, sin], [-sin, cos]], dtype=F64)
    net = nn.Sequential(OdeBlock(Turning(), method="dopri5", time=True))
    y = torch.zeros(6, dtype=torch.long)
    found = measured(net, (x, y), (1e-3, 1e-5))
    for k, tolerance in enumerate((1e-3, 1e-5)):
        block = OdeBlock(
            Turning(), method="dopri5", rtol=tolerance, atol=tolerance, time=True,
            gradient="adjoint",
        )  # fmt: skip
        with counting() as stats:
            end = block(x)
        assert found["forward"][k] == stats.nfe
        off = ((end - exact).norm() / exact.norm()).item()
        assert found["deviation"][k] == pytest.approx(off, rel=1e-3)
        assert found["error"][k] == (end[:, 1] > end[:, 0]).double().mean().item()
        loss = nn.functional.cross_entropy(end, y)
        with counting():
            loss.backward()
        assert found["backward"][k] == stats.nfe_backward > 0


def test_panels_are_summed_up_by_hand():
    """Two nets; evaluations grow by 2 and 4, like the fifth root, and time by the evaluations."""
    tolerances = (1e-1, 1e-3, 1e-4, 1e-5)
    growing = np.array([7.0, 100.0, 100 * 10**0.2, 100 * 10**0.4])
    panels = {
        "nfe_epoch": np.array([[10.0, 50.0, 20.0], [10.0, 10.0, 40.0]]),
        "forward": np.stack([growing, growing]),
        "backward": np.stack([0.5 * growing, 1.5 * growing]),
        "deviation": np.stack([3 * growing**-5, 1 * growing**-5]),
        "seconds": np.stack([2 * growing + 1, 4 * growing + 3]),
    }
    found = panel_scalars(panels, tolerances)
    assert found["growth"] == pytest.approx(3)
    assert found["slope"] == pytest.approx(-0.2)
    assert found["order"] == pytest.approx(5)
    assert (found["half"], found["half_least"], found["half_most"]) == (1, 0.5, 1.5)
    assert found["r_squared"] == pytest.approx(1)


def test_panels_of_small_nets():
    result = run("C18-E2b", tier="tiny", epochs=3)
    assert result["nfe_epoch"].shape == (1, 4)
    assert result["forward"].shape == (1, 3)
    assert result["error_1e-01"].shape == result["error_1e-03"].shape == (1, 3)
    assert (result["deviation"][:, -1] < 1e-5).all()
    assert result["own_1e-01"] == result["loose_1e-01"] == result["error_1e-01"][0, 0]
    assert result["own_1e-03"] == result["error_1e-03"][0, 1]
    assert result["tight_1e-03"] == result["error_1e-03"][0, 2]
    assert {claim.id for claim in result.claims} == {"CL09", "CL10", "C18-E2", "C18-E2b"}


# FW9: single samples


class Waves(nn.Module):
    """A clock in the first coordinate, and a second that swings as fast as the third says."""

    def forward(self, t, x):
        swing = x[:, 2] * torch.cos(x[:, 2] * t.flatten())
        return torch.stack([torch.ones_like(swing), swing, 0 * swing], dim=1)


def test_measures_of_samples_with_known_costs():
    """Fast samples cost more; the head gives them small margins, and a class of their own."""
    rates = torch.tensor([1.0, 40.0] * 6, dtype=F64)
    x = torch.stack([torch.zeros(12, dtype=F64), torch.zeros(12, dtype=F64), rates], dim=1)
    head = nn.Linear(3, 2).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0, 0.0, -0.01], [0.0, 0.0, 0.01]]))
        head.bias.copy_(torch.tensor([1.0, -1.0]))  # scores +-(1 - rate / 100)
    block = OdeBlock(Waves(), method="dopri5", rtol=1e-4, atol=1e-4, time=True)
    net = nn.Sequential(nn.Identity(), block, head)
    y = torch.tensor([0, 1] * 6)
    exact = torch.stack([torch.ones(12, dtype=F64), torch.sin(rates), rates], dim=1)
    found = measures(net, (x, y), exact, 1e-4, 4)
    alone = []
    for row in x[:2]:
        with counting() as stats:
            block(row.unsqueeze(0))
        alone.append(stats.nfe)
    with counting() as stats:
        block(x[:4])
    assert (found["least"], found["most"]) == tuple(alone)
    assert alone[1] > 2 * alone[0]
    assert found["own"] == np.mean(alone)
    assert found["spread"] == pytest.approx((alone[1] - alone[0]) / (alone[1] + alone[0]))
    assert found["margin"] == -1
    assert found["loss"] == 1
    assert found["class"] == pytest.approx(1)
    assert found["shared"] == pytest.approx(stats.nfe / np.mean(alone))
    assert found["error"] == 0.5  # all are given the first class
    with torch.no_grad():
        together = (block(x[:4]) - exact[:4]).norm(dim=1).max()
        apart = max((block(row.unsqueeze(0)) - exact[k]).norm() for k, row in enumerate(x[:2]))
    assert found["tail"] == pytest.approx((together / apart).item(), rel=1e-3)


def test_what_does_not_vary_goes_with_nothing():
    assert rank_correlation(np.ones(3), torch.arange(3.0)) == 0
    assert between(np.ones(4), torch.tensor([0, 0, 1, 1])) == 0
    assert between(np.array([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 0, 1, 1])) == pytest.approx(0.8)


def test_samples_of_small_nets():
    result = run("FW9", tier="tiny", epochs=(2, 1))
    assert result["counts_annulus"].shape == (64,)
    assert result["counts_annulus"].mean() == pytest.approx(result["mean_own_annulus"])
    assert result["mean_before_own_digits"] >= 8
    assert len(result.claims) == 4


def test_networks_may_train_for_numbers_of_epochs_of_their_own():
    knobs = {
        "channels": 4,
        "seeds": 1,
        "samples": 128,
        "nets": ("control", "resnet", "dopri5_adjoint"),
    }
    same, other = (run("C18-E1", epochs=e, **knobs) for e in ((1,), (1, 9, 1)))
    for net in ("control", "dopri5_adjoint"):
        assert same[f"error_{net}"] == other[f"error_{net}"]
    assert same["mean_error_resnet"] != other["mean_error_resnet"]
