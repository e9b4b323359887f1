"""Q20-F7, F8, CM: growing by a plain loop, merged cells, costs, claims both ways."""

import numpy as np
import pytest
import torch
from deciding import decided

from companion import PiecewiseConstant
from companion.analysis.smoothness import total_variation
from companion.data import load_digits
from companion.experiments import run
from companion.experiments.continuous_digits import Variant, digits_net
from companion.experiments.refinement.q20_cm_evaluation_costs import INFERENCE, SCHEDULE
from companion.experiments.refinement.q20_f7_growing_networks import cost, split_errors
from companion.experiments.refinement.q20_f8_smooth_weights import (
    VARIANTS,
    _merged,
    smoothness,
    some_weights,
)
from companion.models import ContinuousMLP
from companion.observe import count_nfe
from companion.train import seeded

TINY_F7 = {"seeds": 1, "epochs": 5, "repeats": 1}


@pytest.fixture(scope="module")
def f7():
    return run("Q20-F7", seed=4, **TINY_F7, variants=("rk4", "euler", "rk4_drop"))


def test_the_networks_grow_at_every_fifth_of_the_epochs(f7):
    """With five epochs: one, two, four, eight and eight steps."""
    assert f7["steps"].tolist() == [1, 2, 4, 8, 8]
    assert f7["evaluations_ratio"] == (1 + 2 + 4 + 8 + 8) / (5 * 8) == 0.575
    for name in ("rk4", "euler"):
        assert f7[f"error_{name}"].shape == (1, 5)
        assert f7[f"before_{name}"].tolist() == f7[f"error_{name}"][:, [0, 1, 2]].tolist()
        assert f7[f"after_{name}"].shape == (1, 3)
        assert f7[f"mean_error_{name}"] == f7[f"error_{name}"][:, -1].mean()


def test_training_is_a_plain_loop_that_grows(f7):
    """RK4, written out: order of the samples, momentum split by hand, rate, clipping."""
    data = load_digits()
    net = digits_net(Variant("rk4", refined=True), 4)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(4)
    before, after, errors = [], [], []

    def error():
        with torch.no_grad():
            return (net(data.x_test).argmax(1) != data.y_test).double().mean().item()

    for epoch in range(5):
        if epoch in (1, 2, 3):
            before.append(error())
            net.refine()
            after.append(error())
            for p in net.block.parameters():
                momentum = optimiser.state[p]["momentum_buffer"]
                optimiser.state[p]["momentum_buffer"] = momentum.repeat_interleave(2, 0)
        for k, rows in enumerate(torch.randperm(1297, generator=generator).split(64)):
            done = (21 * epoch + k) / (21 * 5)
            optimiser.param_groups[0]["lr"] = 0.05 * 0.1 ** ((done >= 2 / 3) + (done >= 13 / 15))
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(
                net(data.x_train[rows]), data.y_train[rows]
            ).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
            optimiser.step()
        errors.append(error())
    assert f7["error_rk4"][0].tolist() == errors
    assert f7["before_rk4"][0].tolist() == before
    assert f7["after_rk4"][0].tolist() == after


def test_momentum_is_dropped_in_the_variant_of_that_name(f7):
    """Equal until the first split and right after it, not in the next epoch."""
    assert f7["error_rk4_drop"][0, 0] == f7["error_rk4"][0, 0]
    assert f7["after_rk4_drop"][0, 0] == f7["after_rk4"][0, 0]
    assert f7["error_rk4_drop"][0].tolist() != f7["error_rk4"][0].tolist()


def test_an_evaluation_ratio_counts_evaluations_of_the_residual():
    """A batch of RK4 costs four evaluations a step: what the ratio of steps stands for."""
    for steps in (1, 8):
        net = ContinuousMLP(64, 10, basis=PiecewiseConstant(steps), method="rk4", steps=steps)
        with count_nfe(net) as nfe:
            net(torch.zeros(2, 64)).sum().backward()
        assert nfe.total == 4 * steps


def test_the_cost_of_epochs_with_known_times():
    """Times 3 + 2 N: 5, 7, 11, 19 seconds."""
    steps = np.repeat([1.0, 2.0, 4.0, 8.0], [6, 6, 6, 12])
    found = cost(steps, [1, 2, 4, 8], [5.0, 7.0, 11.0, 19.0])
    assert found["evaluations_ratio"] == 0.575
    assert found["time_ratio"] == pytest.approx((6 * (5 + 7 + 11) + 12 * 19) / (30 * 19))
    assert found["r_squared"] == pytest.approx(1.0)
    assert (found["fixed"], found["per_step"]) == (pytest.approx(3.0), pytest.approx(2.0))


def test_claims_take_the_largest_change_of_either_sign():
    tables = {
        "rk4": ([[0.03, 0.03]], [[0.03, 0.022]]),
        "euler": ([[0.03]], [[0.04]]),
        "rk4_drop": ([[0.0]], [[1.0]]),
    }
    found = {
        name: {"before": np.array(before), "after": np.array(after), "error": np.ones((1, 5))}
        for name, (before, after) in tables.items()
    }
    found["euler"]["error"][0, -1] = 0.996
    deep = [0.99, 0.994]
    scalars = {**split_errors(found, deep), "time_ratio": 0.9, "r_squared": 0.99}
    claims = decided("Q20-F7", {**scalars, "evaluations_ratio": 0.575}, seeds=1)
    assert [round(claim.observed, 6) for claim in claims[:4]] == [0.008, 0.01, 0.008, 0.004]
    scalars["over_deep_rk4"] = -0.009  # better by more than the margin is no equality
    claims = decided("Q20-F7", {**scalars, "evaluations_ratio": 0.575}, seeds=1)
    assert [claim.holds for claim in claims] == [False, True, False, True, True, False, True]
    assert not decided("Q20-F7", {**scalars, "evaluations_ratio": 0.574}, seeds=1)[4].holds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"variants": ("rk4",)},
            "it must hold some of rk4, rk4_drop, euler, with rk4 and euler",
        ),
        ({"variants": ("rk4", "euler", "heun")}, "variants: .* is not allowed"),
        ({"epochs": 4}, "epochs: 4 is not allowed; from 5 on"),
    ],
)
def test_bad_arguments_of_f7(arguments, message):
    with pytest.raises(ValueError, match=message):
        run("Q20-F7", **{**TINY_F7, **arguments})


@pytest.fixture(scope="module")
def f8():
    return run("Q20-F8", seeds=1, epochs=5)


def test_refined_weights_vary_less_with_either_integrator(f8):
    """Also after five epochs; independent weights of eight cells have about sqrt(2) * 7."""
    names = [variant.name for variant in VARIANTS]
    assert names == [
        "euler_eps8", "euler_eps1", "rk4_eps8", "rk4_eps1_refined", "euler_eps1_refined"
    ]  # fmt: skip
    for name in names:
        assert f8[f"variation_{name}"].shape == (1,)
        assert f8[f"weights_{name}"].shape == (8, 8)
        if name.endswith("refined"):
            assert (f8[f"variation_{name}"] < 0.5).all()
        else:
            assert f8[f"mean_variation_{name}"] == pytest.approx(2**0.5 * 7, rel=0.1)
    free = min(f8[f"variation_{name}"].min() for name in names[:3])
    grown = max(f8[f"variation_{name}"].max() for name in names[3:])
    assert f8.claim("CL42").observed == free / grown


def test_merged_cells_hold_the_mean_of_two():
    data = load_digits()
    with seeded(2):
        net = ContinuousMLP(64, 10, basis=PiecewiseConstant(8), steps=8, scale=8.0)
        other = ContinuousMLP(64, 10, basis=PiecewiseConstant(8), steps=8, scale=8.0)
    other.load_state_dict(net.state_dict())
    for parameter in other.block.parameters():
        pairs = parameter.data.unflatten(0, (4, 2)).mean(1)
        parameter.data = pairs.repeat_interleave(2, 0)
    torch.testing.assert_close(_merged(net, data), other(data.x_test), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(_merged(net, data), net(data.x_test), rtol=0.1)
    assert net.block.weights.basis == PiecewiseConstant(8)


def test_some_weights_are_entries_of_one_matrix_by_depth():
    net = digits_net(Variant("rk4"), 0)
    shown = some_weights(net)
    matrices = [p for p in net.block.parameters() if p.ndim == 3]
    assert shown.shape == (8, 8)
    assert torch.equal(shown[:, 0], matrices[-1][:, 0, 0])


def test_variation_by_hand():
    """The weights 3, 4 | 3, 0 | 0, 0: steps of 4 and 3, largest norm 5."""
    net = ContinuousMLP(2, 2, width=1, hidden=1, basis=PiecewiseConstant(3), steps=3)
    for parameter in net.block.parameters():
        parameter.data.zero_()
    first, second = (p for p in net.block.parameters() if p.ndim == 3)
    first.data[:, 0, 0] = torch.tensor([3.0, 3.0, 0.0])
    second.data[:, 0, 0] = torch.tensor([4.0, 0.0, 0.0])
    assert total_variation(net.block) == pytest.approx((4 + 3) / 5)
    net.refine()
    assert total_variation(net.block) == pytest.approx((4 + 3) / 5)


def test_claims_of_f8():
    row = {"variation": np.array([8.0, 9.0]), "error": np.array([0.03])}
    row["merged"] = np.array([0.1, 0.5])
    found = {
        "euler_eps8": row,
        "rk4_eps8": {**row, "merged": np.array([0.9]), "variation": np.array([4.0, 9.0])},
        "euler_eps1_refined": {**row, "variation": np.array([0.01, 0.05])},
        "rk4_eps1_refined": {**row, "variation": np.array([0.04, 0.05])},
    }
    ratio, grown, free, merged = decided("Q20-F8", smoothness(found), seeds=2)
    assert (ratio.observed, ratio.low) == (4.0 / 0.05, 50.0)
    assert grown.observed == pytest.approx(0.5)
    assert free.observed == pytest.approx(2**0.5)
    assert [claim.holds for claim in (ratio, grown, free, merged)] == [True, True, False, True]
    assert merged.observed == pytest.approx(0.3)


def test_two_numbers_tell_the_paper_s_minutes():
    """The line through 16 s and 394 s, summed over the schedule, against 608 and 1053 minutes."""
    found = run("Q20-CM", steps=(1, 2, 4), repeats=1)
    slope = (394 - 16) / 31
    seconds = [16 + slope * (steps - 1) for steps in SCHEDULE for _ in range(SCHEDULE[steps])]
    assert len(seconds) == 160
    assert found["minutes_refined"] == pytest.approx(sum(seconds) / 60)
    assert found["minutes_refined"] == pytest.approx(607.6, abs=0.05)
    assert (
        found["minutes_full"] == pytest.approx(160 * 394 / 60) == pytest.approx(1050.67, abs=0.01)
    )
    assert found["evaluations"].tolist() == [1, 2, 4, 4, 8, 16, 4, 8, 16]
    assert (found["seconds"] > 0).all()
    refined, full, ratio, _ = found.claims
    assert refined.observed == pytest.approx(abs(607.6 / 608 - 1), abs=1e-4)
    assert full.observed == pytest.approx(1 - 160 * 394 / 60 / 1053)
    assert ratio.observed == pytest.approx(7.74 / 14.56 / 0.5 - 1)  # the largest of three
    assert len(INFERENCE) == 3
