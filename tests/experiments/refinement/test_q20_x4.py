"""Q20-X4 in small: five ways to go on, against plain loops."""

import numpy as np
import pytest
import torch
from deciding import decided
from torch.nn.functional import cross_entropy

from companion.data import load_digits
from companion.experiments import Grid, run
from companion.experiments.continuous_digits import Variant, digits_net
from companion.experiments.refinement import q20_x4_block_rate as q20_x4


def plain_loop(seed, refined, block, ends):
    """An epoch as before and one in a way, with an optimiser made anew; the loss at the end."""
    data = load_digits()
    net = digits_net(Variant("rk4", refined=True), seed)
    order = torch.randperm(1297, generator=torch.Generator().manual_seed(seed))
    x, y = data.x_train[order], data.y_train[order]
    for stage, rates in enumerate(((1.0, 1.0), (block, ends))):
        if stage == 1 and refined:
            net.refine()
        inner = {id(p) for p in net.block.parameters()}
        velocity = {id(p): torch.zeros_like(p) for p in net.parameters()}
        generator = torch.Generator().manual_seed(seed)
        for rows in torch.randperm(1297, generator=generator).split(64):
            net.zero_grad()
            cross_entropy(net(x[rows]), y[rows]).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
            for p in net.parameters():
                velocity[id(p)] = 0.9 * velocity[id(p)] + p.grad + 5e-4 * p.detach()
                p.data -= 0.05 * rates[id(p) not in inner] * velocity[id(p)]
    return cross_entropy(net(data.x_train), data.y_train).item()


def test_every_way_is_a_plain_loop():
    result = run("Q20-X4", seed=5, seeds=1, before=1, after=1)
    wanted = {
        "before": (False, 1.0, 1.0), "refined": (True, 1.0, 1.0), "half": (False, 0.5, 0.5),
        "half_block": (False, 0.5, 1.0), "refined_twice": (True, 2.0, 1.0),
    }  # fmt: skip
    assert list(wanted) == list(q20_x4.WAYS)
    losses = {way: plain_loop(5, *how) for way, how in wanted.items()}
    for way, loss in losses.items():
        assert result[f"loss_{way}"].tolist() == pytest.approx([loss], rel=1e-3)
    assert len({round(loss, 4) for loss in losses.values()}) == 5


def test_claims_are_ratios_of_geometric_means():
    """Refined 0.002 and 0.008, mean 0.004; half the block's rate twice that at one seed."""
    values = {"refined": [2e-3, 8e-3], "half_block": [4e-3, 8e-3], "before": [1e-2, 1e-2]}
    values |= {"half": [5e-3, 5e-3], "refined_twice": [1e-2, 1.1e-2]}
    loss = Grid({"way": tuple(q20_x4.WAYS)}, np.array([values[way] for way in q20_x4.WAYS]))
    scalars = q20_x4.ratios(loss)
    assert scalars["mean_loss_refined"] == pytest.approx(4e-3)
    claims = decided("Q20-X4", scalars, seeds=2)
    assert [c.observed for c in claims] == pytest.approx([0.4, 0.5**0.5, 1.1**0.5])
    assert [c.holds for c in claims] == [True, False, True]
