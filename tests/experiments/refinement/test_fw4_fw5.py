"""FW4 and FW5 in small: what is trained, and what is compared."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from companion.basis import PiecewiseConstant
from companion.experiments import run
from companion.experiments.refinement import fw4_split_transfer as fw4
from companion.experiments.refinement import fw5_coarse_search as fw5
from companion.models import ContinuousMLP

# FW4


def test_only_the_last_quarter_of_depth_is_trained():
    torch.manual_seed(0)
    net = ContinuousMLP(3, 5, width=4, hidden=4, basis=PiecewiseConstant(8), steps=8)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    fw4.freeze_early_cells(net)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
    for _ in range(3):
        optimiser.zero_grad()
        cross_entropy(net(torch.randn(6, 3)), torch.randint(0, 5, (6,))).backward()
        optimiser.step()
    for name, param in net.named_parameters():
        if name.startswith("stem"):
            assert torch.equal(param, before[name])
        elif name.startswith("block"):
            assert torch.equal(param[:6], before[name][:6])
            moved = (param[6:] != before[name][6:]).flatten(1).any(1)
            assert moved.all()
        else:
            assert not torch.equal(param, before[name])


def test_fw4_small():
    result = run("FW4", seeds=1, epochs=2, tuning=2)
    assert result["split_change"].tolist() == [0.0]
    sizes = 2 * (16 * 32 + 32 + 32 * 16 + 16) + 5 * 16 + 5
    assert [result[f"trained_{kind}"] for kind in fw4.KINDS] == [sizes] * 3
    for kind in fw4.KINDS:
        assert result[f"error_{kind}"] == pytest.approx(result[f"after_{kind}"].mean())
        assert result[f"before_{kind}"][0] < 0.4
    gap = result["error_continuous"] - result["error_resnet"]
    assert result.claims[0].observed == pytest.approx(gap)


# FW5


def test_rank_correlations_by_hand():
    deep = np.array([0.1, 0.2, 0.3, 0.4])
    same, turned, swapped = 5 * deep**3, -deep, np.array([0.2, 0.1, 0.3, 0.4])
    losses = np.stack([same, turned, swapped, deep]).reshape(4, 2, 2, 1)
    found = fw5.rank_correlations(losses)
    np.testing.assert_allclose(found[:, 0], [1.0, -1.0, 0.8, 1.0])


def test_fw5_small(monkeypatch):
    monkeypatch.setattr(fw5, "RATES", (0.003, 0.3))
    result = run("FW5", depths=(1, 2), decays=(0.0,), seeds=2, epochs=1)
    assert result["loss_resnet"].shape == (2, 2, 1, 2)
    assert result["rank_continuous_2"] == pytest.approx(1.0)
    assert (result["loss_continuous"][:, 1] < result["loss_continuous"][:, 0]).all()
    # With one layer the classic factor is 1 too: Euler against RK4 is all that differs.
    assert fw5.variant("resnet", 8).scale == 8.0
    assert fw5.variant("resnet", 8).steps == 8
    assert fw5.variant("continuous", 8).scale == 1.0
    assert fw5.variant("continuous", 8).method == "rk4"
