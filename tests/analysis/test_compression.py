"""Compression: levels, cells, bytes and reports against values worked out another way."""

import numpy as np
import pytest
import torch
from torch import nn

from companion import Constant, OdeBlock, PiecewiseConstant, PiecewiseLinear
from companion.analysis.compression import (
    compress,
    merge_cells,
    processor_seconds,
    quantise,
    quantise_blocks,
    report,
    size,
)
from companion.models import ContinuousMLP, ContinuousNet
from companion.train import seeded


def net(**options):
    with seeded(0):
        return ContinuousMLP(5, 3, width=4, hidden=6, **options).double()


def x():
    return torch.randn(9, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def labels():
    return torch.arange(9) % 3


# Rounding


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_entry_goes_to_the_nearest_level(bits):
    values = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(bits)).double()
    top = values.abs().max().item()
    count = 2 ** (bits - 1) - 1
    levels = np.arange(-count, count + 1) * (top / count)
    nearest = levels[np.abs(values.numpy()[..., None] - levels).argmin(-1)]
    found = quantise(values, bits)
    np.testing.assert_allclose(found, nearest, rtol=0, atol=1e-15 * top)
    assert len(found.unique()) <= 2**bits - 1
    assert (found - values).abs().max() <= top / count / 2 * (1 + 1e-12)
    assert torch.equal(quantise(found, bits), found)


def test_levels_are_symmetric_and_halves_go_to_the_even_one():
    values = torch.tensor([-7.0, -2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 7.0])
    assert quantise(values, 4).tolist() == [-7, -2, -2, 0, 0, 0, 2, 2, 7]
    assert torch.equal(quantise(-values, 4), -quantise(values, 4))
    assert quantise(torch.tensor([-0.1, -3.0]), 2).tolist() == [0, -3]


def test_the_largest_entry_and_zero_keep_every_bit():
    for seed in range(20):
        values = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        top = values.abs().argmax()
        assert quantise(values, 5)[top] == values[top]
    assert torch.equal(quantise(torch.zeros(3), 4), torch.zeros(3))
    assert quantise(torch.zeros(0), 4).shape == (0,)
    assert quantise(torch.ones(2, dtype=torch.bfloat16), 4).dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [1, 17, 4.0, True])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="it must be an integer from 2 to 16"):
        quantise(torch.ones(2), bits)


def test_what_cannot_be_quantised():
    with pytest.raises(ValueError, match="not finite"):
        quantise(torch.tensor([1.0, float("nan")]), 4)
    with pytest.raises(TypeError, match=r"torch.int64 is not allowed"):
        quantise(torch.ones(2, dtype=torch.int64), 4)


def test_blocks_are_quantised_with_one_scale_for_all_depths():
    model = net(skip_init=True)
    model.block.weights.stacks.skip.data.uniform_(0.1, 1.0)
    small = quantise_blocks(model, 4)
    changed = set()
    for (name, before), after in zip(model.named_parameters(), small.parameters(), strict=True):
        if not torch.equal(before, after):
            changed.add(name)
            top = before.abs().max()
            whole = after * 7 / top
            torch.testing.assert_close(whole, whole.round(), rtol=0, atol=1e-12)
            assert after.abs().max() == top
    assert changed == {f"block.weights.stacks.residual.{layer}.weight" for layer in (0, 2)}


# Cells


def test_merged_cells_take_the_mean():
    model = net(basis=PiecewiseConstant(8))
    small = merge_cells(model, 2)
    assert small.block.weights.basis == PiecewiseConstant(2)
    assert (small.block.steps, model.block.weights.basis.cells) == (8, 8)
    for before, after in zip(
        model.block.weights.parameters(), small.block.weights.parameters(), strict=True
    ):
        means = before.reshape(2, 4, *before.shape[1:]).mean(1)
        torch.testing.assert_close(after, means, rtol=0, atol=1e-14)


def test_cells_that_do_not_divide_are_weighted_by_their_overlap():
    model = net(basis=PiecewiseConstant(4))
    before = model.block.weights.stacks.get_parameter("0.weight").detach()
    after = merge_cells(model, 3).block.weights.stacks.get_parameter("0.weight")
    expected = torch.stack([
        (before[0] * 3 + before[1] * 1) / 4,
        (before[1] * 2 + before[2] * 2) / 4,
        (before[2] * 1 + before[3] * 3) / 4,
    ])  # fmt: skip
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-14)


def test_weights_shared_by_views_are_merged_once():
    block = OdeBlock(lambda: nn.Linear(2, 2), PiecewiseConstant(4), steps=4)
    model = nn.Sequential(block, block.with_graph(method="rk4"))
    small = merge_cells(model, 2)
    assert small[0].weights is small[1].weights
    assert small[0].weights.basis == PiecewiseConstant(2)
    assert block.weights.basis == PiecewiseConstant(4)


def test_bases_keep_their_kind_and_constants_are_refused():
    block = OdeBlock(lambda: nn.Linear(2, 2), PiecewiseLinear(4))
    assert merge_cells(block, 1).weights.basis == PiecewiseLinear(1)
    with pytest.raises(TypeError, match=r"Constant\(\) has no cells"):
        merge_cells(OdeBlock(nn.Linear(2, 2), Constant()), 1)
    with pytest.raises(ValueError, match="cells: 0 is not allowed"):
        merge_cells(block, 0)


# Bytes


def test_bytes_counted_by_hand():
    model = net(basis=PiecewiseConstant(8))
    stem, head = 5 * 4 + 4, 4 * 3 + 3
    kernels, biases = 8 * 6 * 4, 8 * (6 + 4)  # of each of the two kernels; of both biases
    assert size(model) == 8 * (stem + head + 2 * kernels + biases)
    packed = 2 * (kernels * 3 // 8 + 8)
    assert size(model, bits=3) == 8 * (stem + head + biases) + packed
    assert size(OdeBlock(nn.Linear(3, 3, bias=False), Constant()), bits=3) == 4 + 4  # 27 bits


def test_buffers_count_and_norms_are_not_rounded():
    model = ContinuousNet(channels=(4,), basis=PiecewiseConstant(2), steps=2)
    entries = [*model.parameters(), *model.buffers()]
    assert size(model) == sum(t.numel() * (8 if t.dtype == torch.int64 else 4) for t in entries)
    before, after = model.state_dict(), quantise_blocks(model, 3).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("blocks.0.weights" in name and "conv" in name for name in changed)


# All together


def test_the_report_by_value():
    model = net(basis=PiecewiseConstant(8), method="rk4")
    kept = {name: p.clone() for name, p in model.state_dict().items()}
    found = report(model, x(), labels(), cells=2, bits=3, method="midpoint", steps=3, repeats=1)
    small = quantise_blocks(merge_cells(model, 2), 3).with_graph(method="midpoint", steps=3)
    own, scores = model(x()).detach(), small(x()).detach()
    assert found.bytes == size(small, bits=3)
    assert found.nfe == 6
    assert found.seconds > 0
    assert found.error == (scores.argmax(1) != labels()).sum().item() / 9
    expected = np.linalg.norm(scores - own) / np.linalg.norm(own)
    assert found.deviation == pytest.approx(expected, rel=1e-12)
    assert found.deviation > 1e-3
    assert all(torch.equal(p, kept[name]) for name, p in model.state_dict().items())


def test_cells_merge_before_bits_are_rounded():
    """Means of rounded weights would need more levels."""
    model = compress(net(basis=PiecewiseConstant(8)), cells=4, bits=3)
    for layer in (0, 2):
        assert len(model.block.weights.stacks.get_parameter(f"{layer}.weight").unique()) <= 7


def test_nothing_asked_is_nothing_done():
    model = net()
    found = report(model, x(), labels())
    assert (found.deviation, found.bytes, found.nfe) == (0.0, size(model), 8)
    with pytest.raises(ValueError, match="without an OdeBlock"):
        compress(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="repeats: 0"):
        report(model, x(), labels(), repeats=0)


def test_timing_does_not_train_or_update():
    model = ContinuousNet(channels=(2,), basis=PiecewiseConstant(1), steps=1).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert processor_seconds(model, torch.randn(2, 3, 4, 4)) > 0
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_network_without_any_scores_deviates_by_nothing():
    model = net()
    for parameter in model.head.parameters():
        parameter.data.zero_()
    assert report(model, x(), labels(), bits=3, repeats=1).deviation == 0.0
