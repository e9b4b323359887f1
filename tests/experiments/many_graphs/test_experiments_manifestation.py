"""Q20-F9, X3, F10, F11, FW2a, FW3: training side by side, tables by value, claims both ways."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from deciding import decided
from torch import nn

from companion import PiecewiseConstant
from companion.analysis.compression import Report
from companion.data import load_digits
from companion.experiments.continuous_digits import (
    SCHEMES,
    Swaps,
    Variant,
    digits_net,
    digits_options,
    logits,
    net_error,
    swap_table,
    train_digits,
)
from companion.experiments.many_graphs import fw2a_adaptive_inference as fw2a
from companion.experiments.many_graphs import fw3_compressed_nets as fw3
from companion.experiments.many_graphs import q20_f9_graph_changes as q20_f9
from companion.experiments.many_graphs import q20_f10_midpoint_nets as q20_f10
from companion.experiments.many_graphs import q20_f11_zero_start as q20_f11
from companion.experiments.many_graphs import q20_x3_main_effects as q20_x3
from companion.experiments.recipes import classification_loss, deviation, error_of
from companion.experiments.running import Part
from companion.experiments.side_by_side import SideBySide, permutation
from companion.results import Result
from companion.train import fit, seeded

QUIET = Part(None, lambda fraction: None)
GRID = q20_x3.GRID
STAGES = {"euler": 1, "midpoint": 2, "rk4": 4, "rk4_38": 4}


@pytest.fixture(scope="module")
def few():
    """A few digits in double precision."""
    data = load_digits(dtype=torch.float64)
    return replace(
        data,
        x_train=data.x_train[:70], y_train=data.y_train[:70],
        x_test=data.x_test[:30], y_test=data.y_test[:30],
    )  # fmt: skip


@pytest.fixture
def small(monkeypatch, few):
    """Experiments that find these few digits only."""
    for module in (q20_f9, q20_x3, q20_f10, q20_f11, fw2a, fw3):
        monkeypatch.setattr(module, "load_digits", lambda device, dtype: few)


def scrambled(variant, seed=0):
    net = digits_net(variant, seed).double()
    with seeded(seed + 100):
        for param in net.parameters():
            param.data += 0.2 * torch.randn(param.shape, dtype=torch.float64)
    return net


# Training side by side


@pytest.mark.parametrize(
    "variant",
    [
        Variant("euler", scale=8.0, skip_init=True),
        Variant("rk4", refined=True),
        Variant("midpoint", weights=PiecewiseConstant(2), steps=3, width=4),
    ],
    ids=lambda variant: variant.name,
)
def test_every_member_ends_where_it_would_alone(few, variant):
    seeds, epochs = (3, 8), 5
    together = train_digits(QUIET, variant, seeds, few, epochs=epochs)
    for seed, net in zip(seeds, together, strict=True):
        alone = digits_net(variant, seed, torch.float64)
        order = permutation(70, seed)
        fit(
            alone, classification_loss, (few.x_train[order], few.y_train[order]),
            generator=torch.Generator().manual_seed(seeds[0]),
            **digits_options(variant, epochs=epochs),
        )  # fmt: skip
        assert net.block.weights.basis == alone.block.weights.basis
        assert net.block.steps == alone.block.steps
        for (name, a), b in zip(net.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10, msg=name)
    moved = together[0].stem.weight - digits_net(variant, seeds[0], torch.float64).stem.weight
    assert moved.abs().max() > 1e-3


def test_gradients_are_clipped_one_member_at_a_time():
    nets = [scrambled(Variant("euler"), seed) for seed in (0, 1)]
    stack = SideBySide(nets).double()
    with seeded(5):
        gradients = [[torch.randn_like(p) for p in net.parameters()] for net in nets]
    gradients[1] = [g * 1e-3 for g in gradients[1]]
    axes = [int(name.startswith("block.")) for name, _ in nets[0].named_parameters()]
    for param, axis, *pair in zip(stack.parameters(), axes, *gradients, strict=True):
        param.grad = torch.stack(pair, dim=axis)
    stack.clip_gradients(2.0)
    for member, net in enumerate(nets):
        for param, gradient in zip(net.parameters(), gradients[member], strict=True):
            param.grad = gradient
        nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        for param, axis, stacked in zip(net.parameters(), axes, stack.parameters(), strict=True):
            own = stacked.grad.select(axis, member)
            torch.testing.assert_close(own, param.grad, rtol=1e-12, atol=0)


def test_the_schedule_of_the_study():
    options = digits_options(Variant("rk4", refined=True))
    assert options["refinement"].at == (6, 12, 18)
    schedule = options["schedule"]
    assert [schedule(e / 30) for e in (19.9, 20, 25.9, 26)] == pytest.approx([1, 0.1, 0.1, 0.01])
    sgd = options["optimiser"]([nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"]) == (0.05, 0.9, 5e-4)
    assert (options["clip"], options["batch_size"], options["epochs"]) == (2.0, 64, 30)
    assert digits_options(Variant("rk4"))["refinement"] is None
    net = digits_net(Variant("rk4", refined=True), 0)
    assert (net.block.weights.basis, net.block.steps) == (PiecewiseConstant(1), 1)
    assert net.block.weights.stacks.get_parameter("0.weight").shape == (1, 32, 16)


# Errors, deviations, tables


def test_deviation_and_error_by_hand():
    scores = torch.tensor([[1.0, 2.0], [5.0, 4.0]])
    own = torch.tensor([[1.0, 0.0], [2.0, 4.0]])
    assert deviation(scores, own) == pytest.approx(math.sqrt(4 + 9) / math.sqrt(1 + 4 + 16))
    classes = torch.tensor([1, 1])
    assert error_of(scores, classes) == 0.5
    assert error_of(own, classes) == 0.5


def test_the_table_of_a_net(few):
    net = scrambled(Variant("rk4", scale=3.0))
    table = swap_table(net, few, (2, 8))
    own = net(few.x_test).detach().numpy()
    for row, method in enumerate(SCHEMES):
        for column, steps in enumerate((2, 8)):
            scores = net.with_graph(method=method, steps=steps)(few.x_test).detach().numpy()
            wrong = (scores.argmax(1) != few.y_test.numpy()).mean()
            assert table["error"][row][column] == pytest.approx(wrong)
            expected = np.linalg.norm(scores - own) / np.linalg.norm(own)
            assert table["deviation"][row][column] == pytest.approx(expected, abs=1e-12)
    assert table["deviation"][SCHEMES.index("rk4")][1] == 0
    assert min(table["deviation"][0]) > 1e-3
    fine = net.with_graph(method="rk4", steps=32)(few.x_test).detach().numpy()
    expected = np.linalg.norm(fine - own) / np.linalg.norm(own)
    assert table["limit"] == pytest.approx(expected, rel=1e-9)
    assert table["trained"] == table["error"][SCHEMES.index("rk4")][1]


def swaps(steps=(2, 4, 8, 9), **variants):
    """Two seeds: the error 0.03 everywhere, the limit as given."""
    shape = (2, 4, len(steps))
    tables = {
        name: {
            "trained": np.array([0.03, 0.03]), "limit": np.array([limit, limit]),
            "error": np.full(shape, 0.03), "deviation": np.zeros(shape),
        }
        for name, limit in variants.items()
    }  # fmt: skip
    return Swaps(steps, tables)


def test_changes_of_the_error():
    table = swaps(net=0.1)
    table.tables["net"]["error"][1, SCHEMES.index("midpoint"), 1] = 0.01  # 4 steps
    table.tables["net"]["error"][0, 0, 0] = 0.5  # euler, 2 steps
    np.testing.assert_array_equal(table.change("net", "midpoint", 4), [0, -0.02])  # not -0.0199...
    assert table.largest_change("net", least=3) == pytest.approx(0.02)
    assert table.largest_change("net", least=2) == pytest.approx(0.47)
    assert q20_x3.largest_rise(table, "net") == pytest.approx(0.0)
    table.tables["net"]["error"][:, 2, 3] = (0.03, 0.05)  # the mean over seeds rises by 0.01
    assert q20_x3.largest_rise(table, "net") == pytest.approx(0.01)


# Claims, with the networks as the paper has them and the other way round


NINE = {"euler_eps8": 0.4, "euler_eps1": 0.02, "rk4_eps8": 0.03, "rk4_eps1_refined": 1e-4}


def test_claims_of_f9_both_ways():
    table = swaps(**NINE)
    table.tables["euler_eps8"]["error"][:, 0, 3] += (0.02, 0.09)
    scalars = {"r2": 0.99, **q20_f9.changes(table)}
    assert all(claim.holds for claim in decided("Q20-F9", scalars))
    renamed = {"euler_eps8": "rk4_eps1_refined", "rk4_eps1_refined": "euler_eps8"}
    other = Swaps(table.steps, {name: table.tables[renamed.get(name, name)] for name in NINE})
    other.limit("rk4_eps8")[1] = 0.09
    error = other.tables["rk4_eps1_refined"]["error"]
    error[:, 0, 2] -= 0.01  # Euler, 8 steps: better is no invariance
    error[1, 2, 0] += 0.011  # rk4, 2 steps
    scalars = {"r2": 0.9, **q20_f9.changes(other)}
    assert not any(claim.holds for claim in decided("Q20-F9", scalars))


def grid(large, small):
    """Rises of 0.4 for the levels in ``large``, limits to match."""
    names = {levels: variant.name for levels, variant in q20_x3.GRID.items()}
    table = swaps(**dict.fromkeys(names.values(), small))
    for levels, name in names.items():
        if large(levels):
            table.tables[name]["error"][:, 0, 1:] += 0.4
            table.limit(name)[:] = 0.5
    return table


def test_both_measures_are_compared_on_their_own_scale():
    """Epsilon moves the scores by 1.3 factors of ten, the scheme by one, and the rise by none."""
    table = grid(lambda levels: False, 0.01)
    for (method, scale, _), variant in q20_x3.GRID.items():
        table.limit(variant.name)[:] = 1e-4 * 10 ** (1.3 * (scale == 8) + (method == "euler"))
    scalars, claims = x3_claims(table)
    assert scalars["limit_eps_over_scheme"] == pytest.approx(0.3)
    assert [claim.holds for claim in claims[:2]] == [True, False]


def x3_claims(table):
    scalars = q20_x3.effects(table)
    return scalars, decided("Q20-X3", scalars)


def test_claims_of_x3_where_epsilon_decides_and_where_the_scheme_does():
    assert len({variant.name for variant in q20_x3.GRID.values()}) == 8
    scalars, claims = x3_claims(grid(lambda levels: levels[1] == 8.0, 0.01))
    assert [claim.holds for claim in claims] == [True, False, True, True]
    assert scalars["rise_effect_eps"] == pytest.approx(0.4)
    assert scalars["rise_effect_scheme"] == pytest.approx(0.0)
    scalars, claims = x3_claims(grid(lambda levels: levels[0] == "euler", 0.01))
    assert not any(claim.holds for claim in claims)
    assert scalars["rise_effect_scheme"] == pytest.approx(0.4)


def test_main_effects_are_those_of_a_linear_model():
    generator = np.random.default_rng(0)
    values = dict(zip(GRID, generator.normal(size=8), strict=True))
    high = ("euler", 8.0, False)
    design = [[1.0, *(float(x == h) for x, h in zip(k, high, strict=True))] for k in values]
    fitted = np.linalg.lstsq(np.array(design), np.array(list(values.values())), rcond=None)[0]
    found = [q20_x3.main_effect(values, position) for position in range(3)]
    np.testing.assert_allclose(found, fitted[1:], atol=1e-12)


def test_claims_of_f11_both_ways():
    names = ("least_limit_euler", "least_limit_deep", "coarse_difference")
    assert all(c.holds for c in decided("Q20-F11", dict(zip(names, (0.3, 0.3, -0.1), strict=True))))
    bad = dict(zip(names, (0.2, 0.2, 0.1), strict=True))
    assert not any(c.holds for c in decided("Q20-F11", bad))


# Tiny runs


def test_f9_runs(small):
    result = q20_f9.q20_f9(seeds=2, epochs=5, steps=(2, 8, 9), timed_steps=(1, 3), repeats=1)
    assert {claim.id for claim in result.claims} == {"CL38", "CL39", "CL40", "CL41"}
    assert result["error_euler_eps8"].shape == (2, 4, 3)
    for k, (method, own) in enumerate((("euler", "euler_eps8"), ("rk4", "rk4_eps8"))):
        place = (slice(None), SCHEMES.index(method), 1)
        np.testing.assert_array_equal(result[f"deviation_{own}"][place], [0, 0], err_msg=str(k))
        np.testing.assert_array_equal(result[f"error_{own}"][place], result[f"trained_{own}"])
    np.testing.assert_array_equal(result["nfe"], [[STAGES[m] * n for n in (1, 3)] for m in SCHEMES])
    assert Result.from_json(result.to_json()) == result
    with pytest.raises(ValueError, match=r"it must include \[9\]"):
        q20_f9.q20_f9(steps=(2, 8))


def test_x3_f10_and_f11_run(small):
    tiny = {"seeds": 1, "epochs": 5}
    result = q20_x3.q20_x3(**tiny, steps=(4, 8))
    ratios = [
        np.log10(result[f"limit_{a}"] / result[f"limit_{b}"]).mean()
        for a, b in (
            ("euler_eps8", "euler_eps1"), ("euler_eps8_refined", "euler_eps1_refined"),
            ("rk4_eps8", "rk4_eps1"), ("rk4_eps8_refined", "rk4_eps1_refined"),
        )
    ]  # fmt: skip
    assert result["limit_effect_eps"] == pytest.approx(np.mean(ratios))
    result = q20_f10.q20_f10(**tiny, steps=(1, 2, 8))
    changes = (
        result["error_midpoint_eps1_refined"][..., 1:] - result["trained_midpoint_eps1_refined"]
    )
    assert result["change_midpoint_eps1_refined"] == pytest.approx(np.abs(changes).max())
    result = q20_f11.q20_f11(**tiny, steps=(4, 9, 16))
    assert result["deviation_euler_eps16_deep16"][0, 0, 2] == 0  # trained with 16 steps
    coarse = result["error_euler_eps8_skip"][:, 0, 0] - result["trained_euler_eps8_skip"]
    assert result["coarse_euler_eps8_skip"] == pytest.approx(coarse.mean())
    difference = result["coarse_euler_eps8"] - result["coarse_euler_eps8_skip"]
    assert result.claim("Q20-F11").observed == difference
    limits = [result[f"limit_{name}"].min() for name in ("euler_eps8", "euler_eps16_deep16")]
    assert [claim.observed for claim in result.claims[:2]] == limits


# Adaptive inference


def test_both_ways_reach_the_exact_solution(few, monkeypatch):
    monkeypatch.setattr(fw2a, "_EXACT", 64)
    net = scrambled(Variant("euler", scale=2.0))
    table = fw2a.adaptive_table(net, few, (1e-2, 1e-5))
    assert table["fixed"] == net_error(net, few)
    exact, own = logits(net, few, "rk4", 96), logits(net, few)
    for how, tolerance in (("restart", 1e-3), ("across", 5e-3)):
        (coarse, *_), (fine, error, deviation_) = table[how]
        assert fine > coarse
        assert deviation_ < tolerance < deviation(own, exact) / 10
        assert error == error_of(exact, few.y_test)
    assert table["across"][1][0] > table["restart"][1][0]  # jumps cost rejected steps


def test_a_restart_costs_evaluations_where_nothing_jumps(few):
    """Equal weights in all cells: one solve takes large steps, restarts cannot."""
    net = scrambled(Variant("rk4"))
    for param in net.block.weights.parameters():
        param.data.copy_(param.data[:1].expand_as(param).clone() * 0.1)
    table = fw2a.adaptive_table(net, few, (1e-2,))
    assert table["restart"][0][0] == 8 * 8  # two to choose a step, six for it, in every cell
    assert table["across"][0][0] < 32


def adaptive(nfe, error, deviations):
    refined = fw2a.REFINED
    return {
        f"fixed_{refined}": [0.03, 0.03],
        f"nfe_{refined}_across": np.array([nfe, nfe]),
        f"error_{refined}_across": np.array([error, error]),
        f"deviation_{refined}_across": np.array([deviations, deviations]),
    }


def test_evaluations_that_an_accuracy_needs():
    curves = adaptive([10.0, 20.0, 40.0], [0.5, 0.034, 0.03], [0.1, 1e-3, 1e-5])
    assert fw2a.cheapest(curves, "across") == 20
    assert fw2a.needed(curves, fw2a.REFINED, "across") == 20
    assert fw2a.needed(curves, fw2a.REFINED, "across", accuracy=1e-4) == 40
    curves = adaptive([10.0, 20.0], [0.5, 0.04], [0.1, 0.1])
    assert (
        fw2a.cheapest(curves, "across") == fw2a.needed(curves, fw2a.REFINED, "across") == math.inf
    )


def test_claims_of_fw2a_both_ways():
    """Cheapest at 20 or 32 evaluations; the rough net needs 20 across, and less or more else."""
    for cheap, restart, holds in ((20.0, 10.0, True), (32.0, 40.0, False)):
        curves = {f"fixed_{fw2a.REFINED}": [0.03, 0.03]}
        for variant in fw2a.VARIANTS:
            for how, needed in (("across", 20.0), ("restart", restart)):
                name, refined = f"{variant.name}_{how}", variant.name == fw2a.REFINED
                curves[f"nfe_{name}"] = np.array([[cheap if refined else needed]])
                curves[f"error_{name}"] = np.array([[0.03]])
                curves[f"deviation_{name}"] = np.array([[1e-4]])
        claims = decided("FW2a", fw2a.costs(curves))
        assert [claim.holds for claim in claims] == [holds, holds]


# Compression


def test_claims_of_fw3_both_ways():
    good = dict.fromkeys((fw3.EULER, fw3.RK4), (0.22, 0.4)) | {fw3.REFINED: (0.1, -0.004)}
    bad = dict.fromkeys((fw3.EULER, fw3.RK4), good[fw3.REFINED]) | {fw3.REFINED: good[fw3.EULER]}
    for numbers, holds in ((good, True), (bad, False)):
        curves = {}
        for name, (rounding, merging) in numbers.items():
            curves[f"deviation_{name}"] = np.full((2, len(fw3.WAYS)), rounding)
            curves[f"error_{name}"] = np.full((2, len(fw3.WAYS)), merging)
            curves[f"error_{name}"][:, 0] = 0.0
        claims = decided("FW3", fw3.losses(curves))
        assert [claim.holds for claim in claims] == [holds] * 4


def test_fw2a_and_fw3_run(small, monkeypatch):
    monkeypatch.setattr(fw2a, "_EXACT", 16)
    result = fw2a.fw2a(seeds=1, epochs=5, tolerances=(1e-1, 1e-2))
    assert result["nfe_rk4_eps8_across"].shape == (1, 2)
    assert result["cheapest_restart"] in {*result[f"nfe_{fw2a.REFINED}_restart"][0], math.inf}
    result = fw3.fw3(seeds=2, epochs=5)
    assert len(Report._fields) == 5
    bytes_, nfe = (result[f"{key}_{fw3.RK4}"][0] for key in ("bytes", "nfe"))
    assert nfe.tolist() == [32, 32, 32, 32, 32, 32, 32, 12, 4, 8]
    cell = 8 * (16 * 32 * 2 + 16 + 32)
    assert bytes_[0] - bytes_[5] == 6 * cell
    table = result[f"deviation_{fw3.REFINED}"]
    assert table[:, 0].tolist() == [0, 0]
    assert result[f"rounding_{fw3.REFINED}"] == pytest.approx(table[:, 2].mean())
    errors = result[f"error_{fw3.EULER}"]
    assert result[f"merging_{fw3.EULER}"] == pytest.approx((errors[:, 5] - errors[:, 0]).mean())
