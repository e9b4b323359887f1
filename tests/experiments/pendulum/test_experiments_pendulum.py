"""The experiments on the pendulum, small: training, tables and claims by value."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from companion.analysis.convergence import fitted_order
from companion.data import pendulum
from companion.experiments import Grid, find, run
from companion.experiments.pendulum import fw2b_implicit_schemes as fw2b
from companion.experiments.pendulum import q20_f3_other_steps as q20_f3
from companion.experiments.pendulum import q20_pend1_closed_form as q20_pend1
from companion.experiments.pendulum import q20_x2_perfect_nets as q20_x2
from companion.experiments.pendulum.rollouts import OWN
from companion.experiments.pendulum.training import fit_closely, one_step_errors, train_nets
from companion.models import OneStepNet


def flow(x, t):
    """The pendulum's exact motion from any state, by a solver that is not ours."""
    solved = solve_ivp(
        lambda t, x: [x[1], -9.81 * math.sin(x[0])], (0, t), x, "DOP853", rtol=1e-12, atol=1e-12
    )
    return solved.y[:, -1]


# Q20-PEND1


def test_closed_form_agrees_and_a_misprint_would_not(monkeypatch):
    result = run("Q20-PEND1", angles=(2.0,), points=101, time=5.0)
    assert result.misses == ()
    assert result["period"] == pytest.approx(pendulum.period(2.0))
    assert result["modulus_error"][0] > 0.1
    right = pendulum.exact
    for wrong in (
        lambda t, a: right(t, a) * torch.tensor([1.0, -1.0]),  # the velocity's sign
        lambda t, a: right(np.asarray(t) * math.sqrt(9.8 / 9.81), a),  # another gravity
    ):
        monkeypatch.setattr(q20_pend1.pendulum, "exact", wrong)
        assert len(run("Q20-PEND1", angles=(2.0,), points=101, time=5.0).misses) >= 2


# Training


def test_nets_trained_together_are_nets_trained_alone():
    data = pendulum.pairs(0.2, 1.6)
    together = train_nets("midpoint", 0.2, data, [3, 8], adam=10, lbfgs=3)
    alone = train_nets("midpoint", 0.2, data, [8], adam=10, lbfgs=3)
    for one, other in zip(together[1].parameters(), alone[0].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_adam_and_its_rate_by_hand():
    data = pendulum.pairs(0.2, 1.6)
    found = train_nets("euler", 0.2, data, [4], adam=12, lbfgs=0)[0]
    net = OneStepNet("euler", step=0.2, generator=torch.Generator().manual_seed(4))
    adam = torch.optim.Adam(net.parameters())
    for n in range(12):
        adam.param_groups[0]["lr"] = 1e-5 + 0.5 * (1e-2 - 1e-5) * (1 + math.cos(math.pi * n / 12))
        adam.zero_grad()
        difference = data[0] + 0.2 * net.field(data[0]) - data[1]
        (difference**2).sum(1).mean().backward()
        adam.step()
    for one, other in zip(found.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_lbfgs_fits_more_closely_than_adam_alone():
    data = pendulum.pairs(0.2, 3.2)
    first, second = (
        one_step_errors(train_nets("euler", 0.2, data, [0], adam=200, lbfgs=n)[0], data).mean()
        for n in (0, 40)
    )
    assert second < 0.3 * first


@pytest.mark.parametrize("method", ["euler", "midpoint"])
def test_close_fits(method):
    draw = torch.Generator().manual_seed(0)
    data = pendulum.region(60, 0.1, amplitude=1.5, generator=draw)
    net = OneStepNet(method, step=0.1, hidden=12, generator=draw)

    def residual():
        return one_step_errors(net, data).mean().sqrt().item() / 0.1

    rough = fit_closely(net, data, 0)
    assert rough == pytest.approx(residual(), rel=1e-9)
    close = fit_closely(net, data, 60)
    assert close == pytest.approx(residual(), rel=1e-6)
    assert close < 2e-2 * rough


# Q20-F3, Q20-F4b

TINY = {"seeds": 2, "adam": 20, "lbfgs": 3}


def test_f3_tables_are_those_of_its_nets():
    result = run("Q20-F3", steps=(0.4,), **TINY)
    assert result["ratios"].tolist() == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4]
    net = train_nets("rk4", 0.4, pendulum.pairs(0.4, 6.4), [0, 1], adam=20, lbfgs=3)[1]
    for ratio, error in zip(result["ratios"], result["errors_rk4"][0, 1], strict=True):
        end = net.rollout(pendulum.exact(0.0), round(8 / ratio), step=0.4 * ratio)[-1]
        assert error == pytest.approx((end - pendulum.exact(3.2)).norm().item(), rel=1e-6)
    table = result["errors_euler"][0]
    np.testing.assert_allclose(result["dip_euler"][0], table[:, :4].max(1) / table[:, 4])
    assert result["dip_rk4_0.4"] == pytest.approx(np.sqrt(result["dip_rk4"][0].prod()))
    assert result["one_step_rk4"].shape == (1, 2)


def test_f3_numerical_errors_and_paths():
    result = run("Q20-F3", steps=(0.4,), **TINY)
    truth = flow([pendulum.START, 0.0], 3.2)
    x = np.array([pendulum.START, 0.0])
    for _ in range(8):
        x = x + 0.4 * np.array([x[1], -9.81 * math.sin(x[0])])
    assert result["numerical_euler"][0, 4] == pytest.approx(np.linalg.norm(x - truth), rel=1e-9)
    np.testing.assert_allclose(result["numerical_path_own"][8], x, rtol=1e-9)
    np.testing.assert_allclose(result["truth_half"][16], truth, atol=1e-9)
    assert result["times_half"].tolist() == pytest.approx(np.linspace(0, 6.4, 33).tolist())
    assert result["path_euler_own"].shape == (17, 2)
    assert result["path_rk4_half"].shape == (33, 2)
    gains = result["numerical_euler"][0, 4] / result["errors_euler"][0, :, 4]
    assert result.claim("CL25").observed == pytest.approx(gains.min())
    halves = result["errors_euler"][0, :, 3] / result["errors_euler"][0, :, 4]
    assert result.claim("CL26").observed == pytest.approx(halves.min())


def test_f3_claims_on_made_up_tables():
    def tables(euler, midpoint):
        axes = {"method": ("euler", "midpoint"), "step": (0.1, 0.01), "seed": (0,)}
        dips = np.array([[[1e4], [1e4]], midpoint])
        return Grid(axes, np.stack([euler, euler])), Grid(axes, dips)

    flat, dipping = np.full((2, 1, 7), 5e-4), np.full((2, 1, 7), 1.0)
    dipping[..., OWN] = 1e-4
    claims = q20_f3._claims(*tables(dipping, [[300.0], [1.1]]))
    assert [claim.id for claim in claims] == ["CL26", "CL27", "CL27"]
    assert [claim.observed for claim in claims] == pytest.approx([1e4, 300.0, 1.1])
    assert all(claim.holds for claim in claims)
    claims = q20_f3._claims(*tables(flat, [[2.0], [20.0]]))
    assert [claim.holds for claim in claims] == [False] * 3


def test_f3_rows_decide_by_ranges():
    rows = {row.scalar: row for row in find("Q20-F3").rows}
    for scalar, right, wrong in (
        ("gain", 1e4, 99), ("deepest_rk4", 1.0, 11.0), ("floor", 5e-4, 5e-3),
    ):  # fmt: skip
        assert rows[scalar].decide({scalar: right}, {}).holds
        assert not rows[scalar].decide({scalar: wrong}, {}).holds


def test_f4b_swaps_are_those_of_its_nets():
    result = run("Q20-F4b", step=0.4, **TINY)
    net = train_nets("midpoint", 0.4, pendulum.pairs(0.4, 6.4), [0, 1], adam=20, lbfgs=3)[0]
    end = net.rollout(pendulum.exact(0.0), 16, method="rk4", step=0.2)[-1]
    wanted = float((end - pendulum.exact(3.2)).norm())
    assert result["errors_midpoint_in_rk4"][0, 3] == pytest.approx(wanted, rel=1e-6)
    own = result["errors_euler_in_euler"][:, 4]
    growth = min((result[f"errors_euler_in_{m}"][:, 4] / own).min() for m in ("midpoint", "rk4"))
    assert result.claims[0].observed == pytest.approx(growth)
    assert result.claims[1].observed == pytest.approx(result["errors_rk4_in_midpoint"][:, 2].max())
    swapped = result["swapped_rk4_in_euler"]
    assert swapped == pytest.approx(np.sqrt(result["errors_rk4_in_euler"][:, 4].prod()))


# Q20-X2


def test_x2_orders_at_a_small_size():
    result = run("Q20-X2", steps=(0.2, 0.1), seeds=1, points=80, hidden=16, fits=(2, 80), fine=8)
    assert result["slope_plain_euler"] == pytest.approx(1, abs=0.25)
    assert result["slope_corrected_euler"] == pytest.approx(2, abs=0.4)
    assert result["slope_plain_midpoint"] == pytest.approx(2, abs=0.4)
    assert result["own_midpoint"].shape == (2, 1, 2)
    assert (result["corrected_euler"] < 0.5 * result["plain_euler"]).all()


def test_predicted_plateaus():
    """A perfect Euler net by its definition; a midpoint one ends where the scheme itself does."""
    step, x = 0.1, [1.5, 0.0]
    truth = flow(x, 3.2)

    def learnt(t, x):
        return (flow(x, step) - x) / step

    end = solve_ivp(learnt, (0, 3.2), x, rtol=1e-5, atol=1e-6).y[:, -1]
    wanted = np.linalg.norm(end - truth)
    assert q20_x2.predicted_plateau("euler", step) == pytest.approx(wanted, rel=1e-2)
    x = np.array(x)
    for _ in range(64):
        half = x + 0.025 * np.array([x[1], -9.81 * math.sin(x[0])])
        x = x + 0.05 * np.array([half[1], -9.81 * math.sin(half[0])])
    plateau = q20_x2.predicted_plateau("midpoint", 0.05)
    assert plateau == pytest.approx(np.linalg.norm(x - truth), rel=0.2)


def test_share_of_right_predictions():
    own = np.array([[[0.5, 0.001]], [[0.5, 0.001]]])
    dip = np.array([[[1.0, 50.0]], [[30.0, 50.0]]])
    assert q20_x2._predicted_right([0.1, 0.2], own, dip) == 0.75


# FW2b


def test_stiff_growth_by_the_schemes_own_factors():
    def factor(method, z):
        if method == "rk4":
            return 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
        return 1 / (1 - z) if method == "backward_euler" else (1 + z / 2) / (1 - z / 2)

    for method in ("rk4", "backward_euler", "implicit_midpoint"):
        path = np.array(
            [[factor(method, -0.1 * rate) ** n for rate in (1, 1e3)] for n in range(21)]
        )
        wanted = np.linalg.norm(path, axis=1).max() / math.sqrt(2)
        assert fw2b.stiff_growth(method) == pytest.approx(wanted, rel=1e-9)


def test_fw2b_orders_and_round_trips():
    result = run("FW2b", seeds=1, adam=5, lbfgs=2, step=0.4, order_steps=(20, 40, 80))
    assert result["order_implicit_midpoint"] == pytest.approx(2, abs=0.1)
    assert result["order_backward_euler"] == pytest.approx(1, abs=0.15)
    assert result["order"][0] == pytest.approx(2, abs=0.25)
    assert result["round_trip"][0] < 1e-12
    net = train_nets("implicit_midpoint", 0.4, pendulum.pairs(0.4, 6.4), [0], adam=5, lbfgs=2)[0]
    end = net.rollout(pendulum.exact(0.0), 16, step=0.2)[-1]
    wanted = float((end - pendulum.exact(3.2)).norm())
    assert result["errors"][0, 1] == pytest.approx(wanted, rel=1e-6)
    assert fitted_order((1, 2), (4.0, 1.0)) == pytest.approx(2)
