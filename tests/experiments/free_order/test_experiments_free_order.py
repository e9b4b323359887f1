"""FW7 and FW8 in small, their numbers against plain loops."""

import numpy as np
import pytest
import torch

from companion.analysis.reconstruction import gradient_error
from companion.experiments import run
from companion.experiments.free_order.fw7_more_sweeps import steepness
from companion.experiments.free_order.fw8_free_order import errors_with_dropout
from companion.experiments.free_order.networks import (
    KINDS,
    NETWORKS,
    RULES,
    draw_task,
    measure_cost,
)
from companion.gradients import Reconstruct

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def fw8():
    return run("FW8", depths=(4, 8), fine=(32, 64, 128), networks=1)


@pytest.fixture(scope="module")
def fw7():
    return run(
        "FW7", depths=(16, 32), shallow=(1, 8), sweeps=(0, 2, 32), stored=(4, 8, 16), networks=1
    )


# The networks


def matrices(task):
    return [p.detach() for p in task.block.weights.parameters()]


def test_smooth_weights_are_one_function_of_depth():
    """A + B s + C sin(2 pi s): depth 8 reads every second value of depth 16."""
    for coarse, fine in zip(
        matrices(draw_task("mlp", "smooth", 8, "euler", 3, CPU)),
        matrices(draw_task("mlp", "smooth", 16, "euler", 3, CPU)),
        strict=True,
    ):
        torch.testing.assert_close(coarse, fine[::2], rtol=0, atol=1e-15)
        half = fine[8] - fine[0]  # the sine vanishes at both: B / 2
        quarter = fine[4] - fine[0] - half / 2  # C
        torch.testing.assert_close(fine[12] - fine[0], 1.5 * half - quarter, rtol=0, atol=1e-14)


def test_rough_weights_jump():
    for stack in matrices(draw_task("mlp", "zigzag", 8, "euler", 3, CPU)):
        torch.testing.assert_close(stack[0], stack[2], rtol=0, atol=0)
        assert (stack[1] - stack[0]).norm() > 0.5 * stack[0].norm()
    for stack in matrices(draw_task("mlp", "iid", 400, "euler", 3, CPU)):
        flat = stack.flatten(1)
        assert (flat[1:] * flat[:-1]).mean().abs() < 0.02 * flat.square().mean()
        assert flat.var().item() == pytest.approx(1 / stack.shape[-1], rel=0.05)


def test_gains_of_norms_stay_near_one():
    for kind in KINDS:
        weights = draw_task("conv", kind, 64, "euler", 0, CPU).block.weights
        values = {name: value.detach() for name, value in weights.stacks.named_parameters()}
        gains = torch.cat([values["0.weight"], values["3.weight"]])
        assert abs(gains.mean().item() - 1) < 0.4
        assert gains.std().item() > 0.2
        assert abs(torch.cat([values["0.bias"], values["3.bias"]]).mean().item()) < 0.4
        assert values["2.weight"].std().item() == pytest.approx(1 / 6, rel=0.7)  # fan-in 36


@pytest.mark.parametrize("network", NETWORKS)
def test_a_seed_decides_all(network):
    stacks = []
    for state in (1, 2):
        torch.manual_seed(state)
        task = draw_task(network, "smooth", 4, "euler", 7, CPU)
        stacks.append([*matrices(task), task.x, task.target])
    for one, other in zip(*stacks, strict=True):
        assert one.equal(other)


def test_heun_has_a_set_of_weights_at_each_node():
    assert [len(p) for p in matrices(draw_task("mlp", "iid", 5, "heun", 0, CPU))] == [6, 6]


# FW8


def plain_errors(depth, rule):
    """Relative and absolute gradient error of the smooth perceptron, by hand."""
    task = draw_task("mlp", "smooth", depth, "euler", 0, CPU)
    inner, outer = (p.clone().requires_grad_() for p in matrices(task))

    def layer(x, n):
        return torch.tanh(x @ inner[n].T) @ outer[n].T

    x = task.x
    for n in range(depth):
        x = x + layer(x, n) / depth
    loss = (x - task.target).square().sum() / 2
    true = torch.autograd.grad(loss, (inner, outer))
    x, a = x.detach(), (x - task.target).detach()
    found = [torch.zeros_like(p) for p in true]
    for n in reversed(range(depth)):
        guess = (x - layer(x, n) / depth).detach().requires_grad_()
        value = layer(guess, n) / depth
        by_state, *by_weights = torch.autograd.grad(value, (guess, inner, outer), a)
        found = [p + q for p, q in zip(found, by_weights, strict=True)]
        a = a + by_state
        x = guess.detach() if rule == "reverse" else (x - value).detach()
    gaps = sum((p - q).square().sum((1, 2)) for p, q in zip(found, true, strict=True))
    size = sum(q.square().sum() for q in true)
    return (gaps.sum() / size).sqrt().item(), gaps.max().sqrt().item()


@pytest.mark.parametrize("rule", ["reverse", "corrected"])
def test_errors_are_those_of_a_plain_loop(fw8, rule):
    relative, absolute = plain_errors(64, rule)
    assert fw8[f"relative_{rule}"][1, 0] == pytest.approx(relative, rel=1e-6)
    assert fw8[f"absolute_{rule}"][1, 0] == pytest.approx(absolute, rel=1e-6)


def test_every_rule_has_its_order_on_smooth_weights(fw8):
    orders = {
        "reverse": 1, "sweeps": 3, "corrected": 2, "predicted": 2, "predicted_2": 3,
        "predicted_2_swept": 4,
        "heun_reverse": 3, "heun_corrected": 4, "heun_predicted": 4,
    }  # fmt: skip
    for rule, order in orders.items():
        near = 0.4 if rule in ("heun_predicted", "predicted_2_swept") else 0.2  # they come late
        assert fw8[f"relative_slope_{rule}"] == pytest.approx(-order, abs=near)
        assert fw8[f"absolute_slope_{rule}"] == pytest.approx(-order - 1, abs=near)
        states = fw8[f"state_{rule}"][:, 0]
        assert np.log2(states[1] / states[2]) == pytest.approx(order, abs=near + 0.05)


def test_claims_hold_in_small(fw8):
    """But for the slope on rough weights, which is fitted between deeper networks than these."""
    assert not [claim for claim in fw8.misses if "flattest" not in claim.text]
    assert fw8.claim("FW8").observed == pytest.approx(
        fw8["relative_corrected"][1, 0] / fw8["relative_reverse"][1, 0]
    )


def test_units_are_evaluations_and_two_for_a_product(fw8):
    layers = fw8["fine"]
    per_layer = {
        "backprop": 3, "checkpoint": 4, "reverse": 5, "corrected": 5, "sweeps": 7,
        "heun_reverse": 10, "heun_corrected": 10,
    }  # fmt: skip
    for rule, units in per_layer.items():
        np.testing.assert_array_equal(fw8[f"units_{rule}"], units * layers)
    # Order p starts with p + (p - 1) + ... + 1 sweeps; a guess swept again adds an evaluation.
    for rule, units, start in (
        ("predicted", 4, 1),
        ("predicted_2", 4, 3),
        ("heun_predicted", 8, 12),
    ):
        extra = fw8[f"units_{rule}"] - units * layers - start
        assert np.all(extra >= 0)
        assert np.all(extra <= 0.1 * layers)
    np.testing.assert_array_equal(fw8["units_reversible"], 4 * (layers + 1))


@pytest.mark.parametrize("kind", ["zigzag", "iid"])
@pytest.mark.parametrize("network", ["mlp", "conv", "tokens"])
def test_the_switch_keeps_predictions_near_the_corrected_rule(network, kind):
    """Against the same rule without its switch, which loses a factor that grows with depth."""
    task = draw_task(network, kind, 64, "euler", 0, CPU)
    reverse, corrected, predicted = (
        gradient_error(task.block, task.x, task.loss, RULES[rule].gradient).relative
        for rule in ("reverse", "corrected", "predicted")
    )
    assert predicted < 4 * corrected
    assert corrected < reverse
    rough = measure_cost(task, RULES["predicted"].gradient)
    smooth = draw_task(network, "smooth", 64, "euler", 0, CPU)
    assert rough.evaluations > measure_cost(smooth, RULES["predicted"].gradient).evaluations + 16


def test_dropout_is_rough_and_compared_with_the_same_masks():
    errors = errors_with_dropout(64, 0, CPU)
    assert errors["relative_corrected"] < errors["relative_reverse"] / 5
    assert errors["relative_predicted"] < 8 * errors["relative_corrected"]
    assert min(errors.values()) > 1e-7  # other masks would be an error of order 1, none of 0
    assert max(errors.values()) < 0.05


def test_kinks_cost_half_an_order():
    """ReLU: mean slopes over networks, between a half and less than the whole of the order."""
    for rule, order in (("reverse", 1), ("corrected", 2)):
        logs = []
        for seed in range(3):
            tasks = [draw_task("relu", "smooth", n, "euler", seed, CPU) for n in (8, 64)]
            errors = [gradient_error(t.block, t.x, t.loss, Reconstruct(rule)) for t in tasks]
            logs.append([np.log2(error.relative) for error in errors])
        slope = np.diff(logs).mean() / 3
        assert -0.85 * order < slope < -0.35 * order


# FW7


def test_k_sweeps_have_order_k_plus_one(fw7):
    """A plain iteration gives the same errors, to the digits that rounding leaves."""
    task = draw_task("mlp", "zigzag", 16, "euler", 0, CPU)
    inner, outer = matrices(task)

    def layer(x, n):
        return torch.tanh(x @ inner[n].T) @ outer[n].T / 16

    states = [task.x]
    for n in range(16):
        states.append(states[-1] + layer(states[-1], n))
    for k in range(4):
        x, worst = states[-1], 0.0
        for n in reversed(range(16)):
            after = x
            for _ in range(k + 1):
                x = after - layer(x, n)
            worst = max(worst, (x - states[n]).norm().item())
        assert fw7[f"state_zigzag_{k}"][0, 0] == pytest.approx(worst, rel=1e-6)
        assert fw7[f"slope_smooth_{k}"] == pytest.approx(-k - 1, abs=0.2)


def test_steepness_is_the_largest_slope_of_a_layer():
    task = draw_task("mlp", "iid", 3, "euler", 1, CPU)
    inner, outer = matrices(task)
    x, largest = task.x, 0.0
    for w, v in zip(inner, outer, strict=True):
        for sample in x:
            jacobian = torch.func.jacrev(lambda y, w=w, v=v: torch.tanh(w @ y) @ v.T)(sample)
            largest = max(largest, torch.linalg.matrix_norm(jacobian, 2).item() / 3)
        x = x + torch.tanh(x @ w.T) @ v.T / 3
    assert steepness(task) == pytest.approx(largest, rel=1e-10)


def test_sweeps_help_where_layers_are_flat(fw7):
    assert fw7["steepness"][0, 0] > 1.5
    assert fw7["steepness"][1, 0] < 1
    left = fw7["shallow_state"][:, 0, -1] / fw7["shallow_state"][:, 0, 0]
    assert left[0] > 0.1
    assert left[1] < 1e-6
    assert not [c for c in fw7.misses if "Lip" in c.text]


def test_stored_states_help_the_paper_s_rule_only(fw7):
    reverse, corrected = fw7["stored_reverse"][:, 0], fw7["stored_corrected"][:, 0]
    assert np.all(np.diff(reverse) > 0.3 * reverse[:-1])
    assert corrected[-1] < 2 * corrected[0]
    task = draw_task("mlp", "smooth", 16, "euler", 0, CPU)
    gradient = task.gradients(Reconstruct(every=4))
    true = task.gradients("backprop")
    gap = sum((p - q).square().sum() for p, q in zip(gradient, true, strict=True))
    size = sum(q.square().sum() for q in true)
    assert reverse[0] == pytest.approx((gap / size).sqrt().item(), rel=1e-9)
