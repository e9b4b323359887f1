"""Memory-free gradients by value: against loops written by hand, backprop, and theory."""

import copy
from itertools import pairwise

import pytest
import torch
from fields import Tanh, gradients, largest_difference, randn
from loops import loop
from torch import nn

from companion import Constant, OdeBlock, PiecewiseConstant, PiecewiseLinear, counting, odeint
from companion.analysis.reconstruction import gradient_error, reconstruction, trajectory
from companion.gradients import Adjoint, Checkpoint, Reconstruct, reverse_sweep
from companion.observe import count_nfe, fit_slope, saved_bytes
from companion.schemes import SCHEMES
from companion.solve import NonFiniteError

RULES = [
    Reconstruct(),
    Reconstruct("corrected"),
    Reconstruct("predicted"),
    Reconstruct("predicted", order=2),
    Reconstruct("predicted", order=4),
    Reconstruct(sweeps=2),
    Reconstruct("corrected", sweeps=1),
    Reconstruct("predicted", order=2, sweeps=1),
]
EVERY_RULE = loop("rule", RULES)
FIXED = pytest.mark.parametrize("method", list(SCHEMES))


class Layer(nn.Module):
    """V tanh(W x + b)."""

    def __init__(self, w, b, v):
        super().__init__()
        self.w, self.b, self.v = nn.Parameter(w), nn.Parameter(b), nn.Parameter(v)

    def forward(self, x):
        return torch.tanh(x @ self.w.T + self.b) @ self.v.T


def layers(count, kind, device, d=3, h=5):
    """Return layers whose weights are smooth, alternating or independent along depth."""
    draw = torch.Generator().manual_seed(4)

    def values():
        return [torch.randn(*s, generator=draw, dtype=torch.float64) / 2
                for s in ((h, d), (h,), (d, h))]  # fmt: skip

    first, second = values(), values()
    rows = []
    for n in range(count):
        s = torch.tensor(n / count, dtype=torch.float64)
        if kind == "smooth":
            row = [a + b * torch.sin(3 * s) for a, b in zip(first, second, strict=True)]
        elif kind == "zigzag":
            row = [a + (-1) ** n * b for a, b in zip(first, second, strict=True)]
        else:
            row = values()
        rows.append(Layer(*row).to(device))
    return rows


def net(count, kind, device, method="euler", gradient="backprop", **keywords):
    """Return a residual net of ``count`` layers; Heun's has one set of weights more."""
    nodal = method == "heun"
    basis = PiecewiseLinear(count) if nodal else PiecewiseConstant(count)
    return OdeBlock.from_modules(
        layers(count + nodal, kind, device), basis, method=method, steps=count, gradient=gradient,
        **keywords,
    )  # fmt: skip


def block_gradients(block, x, gradient):
    x = x.clone().requires_grad_()
    y = block.with_graph(gradient=gradient)(x)
    return gradients((y - 1).square().sum(), [x, *block.parameters()])


# --- the paper's rules, written out ---------------------------------------------------------------


def pull(f, x, unit, a):
    """Return f(x), the gradient to x and those to the unit's parameters."""
    x = x.detach().requires_grad_()
    value = f(unit, x)
    grads = torch.autograd.grad(value, [x, *unit.parameters()], a)
    return value.detach(), grads[0], grads[1:]


def by_hand(units, x, rule, order=1, sweeps=0):
    """Go back through x + f(x) / N by the formulas of the chapter; gradients to x, and by layer."""
    n = len(units)
    with torch.no_grad():
        for unit in units:
            x = x + unit(x) / n
    a, end, values, found = 2 * (x - 1), x, [], []
    for unit in reversed(units):
        with torch.no_grad():
            if rule != "predicted":
                guess = end - unit(end) / n
                extra = sweeps
            else:
                ahead = {0: 0.0, 1: lambda v: v[0], 2: lambda v: 2 * v[0] - v[1]}
                known = min(len(values), order)
                guess = end - (ahead[known](values) if known else 0 * end) / n
                extra = sweeps + order - known
            for _ in range(extra):
                guess = end - unit(guess) / n
        value, grad_x, grads = pull(lambda u, z: u(z), guess, unit, a / n)
        end = guess if rule == "reverse" else end - value / n
        values = [value, *values]
        a = a + grad_x
        found.append(grads)
    stacks = [torch.stack(rows) for rows in zip(*reversed(found), strict=True)]
    return [a, *stacks]


@pytest.mark.parametrize(
    ("rule", "order", "sweeps"),
    [("reverse", 1, 0), ("reverse", 1, 3), ("corrected", 1, 0), ("corrected", 1, 2),
     ("predicted", 1, 0), ("predicted", 2, 0), ("predicted", 2, 1)],
)  # fmt: skip
def test_each_rule_is_its_formula(rule, order, sweeps, device, monkeypatch):
    for limit in ("TRUST", "LIMIT"):
        monkeypatch.setattr(reverse_sweep, limit, float("inf"))
    units = layers(40, "smooth", device)
    x = randn(4, 3, device=device)
    block = OdeBlock.from_modules(units)
    found = block_gradients(block, x, Reconstruct(rule, order=order, sweeps=sweeps))
    assert largest_difference(found, by_hand(units, x, rule, order, sweeps)) < 1e-13


def test_reverse_heun_is_the_papers(device):
    """Sander et al. 2022, equations 8 and 9; every set of weights gets its two contributions."""
    n = 12
    units = layers(n + 1, "iid", device)
    x = randn(4, 3, device=device)
    block = OdeBlock.from_modules(units, PiecewiseLinear(n), method="heun", steps=n)
    found = block_gradients(block, x, "reconstruct")

    def step(one, two, z):
        k = one(z)
        return (k + two(z + k / n)) / (2 * n)

    with torch.no_grad():
        for one, two in pairwise(units):
            x = x + step(one, two, x)
    a = 2 * (x - 1)
    sums = [[torch.zeros_like(p) for p in unit.parameters()] for unit in units]
    for k in reversed(range(n)):
        one, two = units[k], units[k + 1]
        with torch.no_grad():
            slope = two(x)
            x = x - (slope + one(x - slope / n)) / (2 * n)
        z = x.clone().requires_grad_()
        both = [*one.parameters(), *two.parameters()]
        grad_x, *grads = torch.autograd.grad(step(one, two, z), [z, *both], a)
        a = a + grad_x
        for total, grad in zip([*sums[k], *sums[k + 1]], grads, strict=True):
            total += grad
    expected = [a, *(torch.stack(rows) for rows in zip(*sums, strict=True))]
    assert largest_difference(found, expected) < 1e-13


# --- against backprop -----------------------------------------------------------------------------

ORDERS = {  # (method, weights): the relative gradient error's order for each of the RULES
    ("euler", "smooth"): [1, 2, 2, 3, 5, 3, 3, 4],
    ("euler", "zigzag"): [1, 2, 2, 2, 2, 3, 3, 3],
    ("euler", "iid"): [1, 2, 2, 2, 2, 3, 3, 3],
    ("heun", "smooth"): [3, 4, 2, 3, 5, 5, 5, 4],
    ("heun", "zigzag"): [1, 2, 2, 2, 2, 3, 3, 3],
}


@pytest.mark.parametrize(("method", "kind"), list(ORDERS), ids=str)
@loop("which", range(len(RULES)))
def test_orders_of_the_gradient_error(which, method, kind, device):
    """Random signs can help independent weights: there the order is a lower bound.

    An extrapolation by four values shows its order late, and so do random signs.
    """
    deep = {"smooth": (192, 384), "iid": (24, 48, 96, 192), "zigzag": (24, 48, 96)}[kind]
    counts = (96, 192) if kind == "smooth" and RULES[which].order < 4 else deep
    x = randn(8, 3, device=device)
    errors = [
        gradient_error(
            net(n, kind, device, method), x, lambda y: (y - 1).square().sum(), RULES[which]
        ).relative
        for n in counts
    ]
    order = ORDERS[method, kind][which]
    slope = fit_slope(counts, errors).value
    assert slope < -order + 0.2
    if kind == "smooth":
        assert slope > -order - 0.2


@FIXED
def test_every_scheme_tends_to_backprop(method, device):
    """Times need gradients too: the field depends on them, and so does the step."""
    rough = {Reconstruct(): 2e-2, Reconstruct("corrected"): 2e-4, Reconstruct("predicted"): 2e-4}
    found = {}
    for gradient in ("backprop", *RULES):
        field = Tanh(device)
        y0 = randn(2, 3, device=device).requires_grad_()
        t = torch.tensor([0.1, 0.6, 0.9], device=device, dtype=torch.float64, requires_grad=True)
        ys = odeint(field, y0, t, method=method, steps=150, gradient=gradient)
        weights = randn(*ys.shape, device=device, seed=9)
        found[gradient] = gradients((ys * weights).sum(), [y0, t, *field.parameters()])
    off = {rule: largest_difference(found[rule], found["backprop"]) for rule in RULES}
    assert not {rule: gap for rule, gap in off.items() if not gap < rough.get(rule, 1e-5)}


@EVERY_RULE
@pytest.mark.parametrize("method", ["euler", "heun", "rk4"])
def test_with_every_state_stored_the_gradient_is_exact(rule, method, device):
    stored = Reconstruct(rule.rule, order=rule.order, sweeps=rule.sweeps, every=1)
    x = randn(4, 3, device=device)
    block = net(5, "iid", device, method)
    pair = [block_gradients(block, x, gradient) for gradient in ("backprop", stored)]
    assert largest_difference(*pair) < 1e-13
    with count_nfe(block) as nfe:
        y = block.with_graph(gradient=stored)(x).sum()
        forward = nfe.lap()
        y.backward()
        assert nfe.lap() == forward  # nothing has to be guessed


def test_stored_states_cut_the_error(device):
    """Eight segments of N / 8 layers: the error of the last layers of each, not of all."""
    x, block = randn(8, 3, device=device), net(128, "smooth", device)
    errors = [
        gradient_error(block, x, torch.sum, Reconstruct(every=every)).relative
        for every in (None, 16, 4)
    ]
    assert errors[1] < errors[0] / 4
    assert errors[2] < errors[1] / 3


def test_tied_weights_and_other_bases(device):
    """Two and a half steps a cell, one cell for all, and slopes between nodes."""
    unit = layers(1, "iid", device)[0]
    x = randn(8, 3, device=device)
    for basis in (Constant(), PiecewiseConstant(2), PiecewiseLinear(3)):
        block = OdeBlock(unit, basis, method="rk4", steps=5)
        with torch.no_grad():
            for k, p in enumerate(block.parameters()):
                p += 0.3 * randn(*p.shape, device=device, seed=k)
        pair = [block_gradients(block, x, g) for g in ("backprop", Reconstruct(sweeps=9))]
        assert largest_difference(*pair) < 1e-8


# --- states ---------------------------------------------------------------------------------------


@FIXED
def test_sweeps_invert_a_step_to_rounding(method, device):
    """The contraction is about L / N: forty sweeps leave nothing but rounding."""
    block = net(8, "zigzag", device, method)
    states = trajectory(block, randn(4, 3, device=device))
    assert torch.equal(states[-1], block(states[0]))
    back = reconstruction(block, states[-1], Reconstruct(sweeps=40))
    torch.testing.assert_close(back, states, rtol=0, atol=1e-14)


def test_a_linear_layer_comes_back_as_its_closed_form(device):
    """x' = lambda x, Euler: reverse gives x (1 - (lambda / N)^2)^N (S22-P3)."""
    n, rate = 10, 0.7
    unit = nn.Linear(1, 1, bias=False, dtype=torch.float64, device=device)
    nn.init.constant_(unit.weight, rate)
    block = OdeBlock(unit, steps=n)
    x = torch.ones(1, 1, device=device, dtype=torch.float64)
    back = reconstruction(block, block(x), Reconstruct())[0]
    assert back.item() == pytest.approx((1 - (rate / n) ** 2) ** n, abs=1e-15)


# --- the prediction's switch ----------------------------------------------------------------------


def evaluations(block, x, gradient):
    """Return evaluations a layer in the backward pass."""
    with count_nfe(block) as nfe:
        loss = block.with_graph(gradient=gradient)(x).sum()
        nfe.lap()
        loss.backward()
        return nfe.lap() / block.steps


def test_one_evaluation_a_layer_where_weights_are_smooth_two_where_they_are_not(device):
    x = randn(8, 3, device=device)
    tied = OdeBlock(layers(1, "iid", device)[0], steps=64)
    for order, start in ((1, 1), (2, 3), (3, 6)):
        rule = Reconstruct("predicted", order=order)
        assert evaluations(tied, x, rule) == 1 + start / 64
        rough = evaluations(net(64, "zigzag", device), x, rule)
        assert 2 <= rough <= 2 + start / 64
    assert evaluations(net(64, "smooth", device), x, Reconstruct("corrected")) == 2
    assert evaluations(net(64, "smooth", device), x, Reconstruct(sweeps=3)) == 5


def test_a_jump_costs_one_evaluation(device):
    """Four cells of 16 equal layers: three knots, each found out and paid for once."""
    units = layers(4, "iid", device)
    block = OdeBlock.from_modules([copy.deepcopy(u) for u in units for _ in range(16)])
    x = randn(8, 3, device=device)
    assert evaluations(block, x, Reconstruct("predicted")) == (64 + 1 + 3) / 64
    rough = gradient_error(block, x, torch.sum, Reconstruct("predicted")).relative
    assert rough < 4 * gradient_error(block, x, torch.sum, Reconstruct("corrected")).relative


# --- memory ---------------------------------------------------------------------------------------


@EVERY_RULE
def test_bytes_do_not_depend_on_depth(rule, device):
    x = randn(16, 3, device=device)
    kept = []
    for n in (4, 256):
        block = net(n, "smooth", device, gradient=rule)
        with saved_bytes(exclude=(x, *block.parameters())) as saved:
            block(x)
        kept.append(saved.total)
    assert kept[0] == kept[1] == x.numel() * 8


def test_bytes_with_stored_states(device):
    x, rule = randn(16, 3, device=device), Reconstruct(every=8)
    block = net(64, "smooth", device, gradient=rule)
    with saved_bytes(exclude=(x, *block.parameters())) as saved:
        block(x)
    assert saved.total == 8 * x.numel() * 8


# --- batch norm, dropout, autocast ----------------------------------------------------------------


def normed(d=3):
    return nn.Sequential(nn.BatchNorm1d(d), nn.Linear(d, d), nn.Tanh()).double()


@EVERY_RULE
def test_batch_norm_keeps_its_mode_and_its_statistics(rule, device):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = OdeBlock(lambda: normed().to(device), PiecewiseConstant(6), steps=6)
    x = randn(16, 3, device=device)
    seen = []
    hook = block.weights.template[0].register_forward_pre_hook(
        lambda module, args: seen.append(module.training)
    )
    y = block.with_graph(gradient=rule)(x)
    after = {k: v.clone() for k, v in block.named_buffers()}
    y.square().sum().backward()
    hook.remove()
    assert all(seen)
    assert len(seen) >= 12
    for name, buffer in block.named_buffers():
        assert torch.equal(buffer, after[name])
    assert after["weights.stacks.0.num_batches_tracked"].tolist() == [1] * 6


def test_batch_statistics_come_back_with_the_states(device):
    """In the reverse sweep the norm sees the forward's statistics, up to reconstruction."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = OdeBlock(lambda: normed().to(device), PiecewiseConstant(64), steps=64)
    seen = []
    hook = block.weights.template[0].register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach().mean(0))
    )
    x = randn(16, 3, device=device)
    y = block.with_graph(gradient=Reconstruct(sweeps=3))(x)
    forward, seen[:] = torch.stack(seen[-64:]), []
    y.sum().backward()
    hook.remove()
    last = torch.stack(seen[4::5][::-1])  # a guess, three sweeps, and the evaluation that counts
    assert 0 < (last - forward).abs().max() < 1e-6
    pair = [block_gradients(block, x, g) for g in ("backprop", Reconstruct(sweeps=12))]
    assert largest_difference(*pair) < 1e-11


@pytest.mark.parametrize("gradient", ["reconstruct", "checkpoint", "adjoint"])
def test_a_switched_mode_is_an_error(gradient, device):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = OdeBlock(lambda: normed().to(device), steps=4, gradient=gradient)
    y = block(randn(8, 3, device=device)).sum()
    block.eval()
    with pytest.raises(ValueError, match=r"switched between train\(\) and eval\(\)"):
        y.backward()


class Masked(nn.Module):
    """A linear layer with dropout that notes its masks."""

    def __init__(self, device, d=3):
        super().__init__()
        self.linear = nn.Linear(d, d, dtype=torch.float64, device=device)
        self.drop = nn.Dropout(0.5)
        self.log = []

    def forward(self, x):
        mask = self.drop(torch.ones_like(x))
        self.log.append(mask.detach())
        return mask * torch.tanh(self.linear(x))


def masked_block(device, steps, gradient):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        block = OdeBlock(
            lambda: Masked(device), PiecewiseConstant(steps), steps=steps, gradient=gradient
        )
    return block, block.weights.template.log


@EVERY_RULE
def test_dropout_draws_the_same_masks_again(rule, device):
    block, log = masked_block(device, 6, rule)
    x = randn(8, 3, device=device)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        y = block(x)
        forward, log[:] = log[:], []
        between = torch.get_rng_state()
        y.sum().backward()
        assert torch.equal(torch.get_rng_state(), between)
        backward, log[:] = log[:], []
        block(x)
    if device.type == "cpu":  # first_evaluation looks at the first layer once more
        assert len(forward) in (6, 7)
    masks = forward[-6:]
    assert len({tuple(m.flatten().tolist()) for m in masks}) == 6
    for mask in backward:
        assert any(torch.equal(mask, one) for one in masks)
    assert torch.equal(backward[0], masks[-1])
    assert torch.equal(backward[-1], masks[0])
    assert not torch.equal(log[-6], masks[0])  # the next solve has masks of its own


def test_dropout_gradients_are_those_of_the_masks(device):
    block, log = masked_block(device, 6, Reconstruct(sweeps=40))
    x = randn(8, 3, device=device).requires_grad_()
    found = gradients(block(x).square().sum(), [x, *block.parameters()])
    masks = log[-6 - 6 * 42 :][:6]
    weight, bias = block.weights.stacks.linear.weight, block.weights.stacks.linear.bias
    y = x
    for n in range(6):
        y = y + masks[n] * torch.tanh(y @ weight[n].T + bias[n]) / 6
    expected = gradients(y.square().sum(), [x, *block.parameters()])
    assert largest_difference(found, expected) < 1e-13


def test_dropout_is_repeatable_and_only_it_moves_the_generator(device):
    x = randn(8, 3, device=device)
    runs = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            block, _ = masked_block(device, 4, "reconstruct")
            runs.append(block_gradients(block, x, "reconstruct"))
    assert largest_difference(*runs) == 0
    before = torch.get_rng_state()
    net(4, "smooth", device, gradient="reconstruct")(x.requires_grad_()).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_predictions_fall_back_under_dropout(device):
    """Masks make depth rough: two evaluations a layer, and an error no worse than corrected's."""
    block, _ = masked_block(device, 64, "backprop")
    x = randn(64, 3, device=device)
    assert 1.9 < evaluations(block, x, Reconstruct("predicted")) <= 2 + 1 / 64
    exact = Reconstruct(sweeps=30)
    errors = []
    for rule in (Reconstruct("corrected"), Reconstruct("predicted")):
        pair = []
        for gradient in (exact, rule):
            with torch.random.fork_rng():
                torch.manual_seed(7)
                pair.append(block_gradients(block, x, gradient))
        errors.append(largest_difference(*pair))
    assert 0 < errors[1] < 4 * errors[0]


class Sometimes(nn.Module):
    """A field that draws random numbers from its third evaluation on."""

    def __init__(self, device):
        super().__init__()
        self.linear = nn.Linear(3, 3, dtype=torch.float64, device=device)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        noise = torch.rand(()).item() if self.calls > 3 else 0.0
        return self.linear(x) + noise


def test_chance_that_starts_late_is_an_error(device):
    block = OdeBlock(Sometimes(device), steps=6, gradient="reconstruct")
    with pytest.raises(ValueError, match="in some steps only"):
        block(randn(2, 3, device=device).requires_grad_())


@EVERY_RULE
def test_bfloat16_autocast(rule, device):
    block = net(8, "smooth", device).float()
    x = randn(16, 3, device=device, dtype=torch.float32)
    found = []
    for gradient in ("backprop", rule):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            y = block.with_graph(gradient=gradient)(x)
        assert y.dtype == torch.float32
        grads = gradients(y.square().sum(), list(block.parameters()))
        assert all(g.dtype == torch.float32 for g in grads)
        found.append(grads)
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 0.15 * other.norm()


# --- what is counted, what needs no gradient ------------------------------------------------------


def test_evaluations_are_counted_by_odeint(device):
    field = Tanh(device)
    with counting() as stats:
        ys = odeint(field, randn(3, device=device), [0.0, 0.5, 1.0], method="rk4", steps=5,
                    gradient=Reconstruct("corrected"))  # fmt: skip
    ys.sum().backward()
    assert (stats.nfe, stats.nfe_backward, stats.steps) == (40, 80, 10)


def test_frozen_parts_and_inputs_without_gradient(device):
    block = net(6, "smooth", device, gradient="reconstruct")
    block.weights.stacks.b.requires_grad_(False)
    x = randn(4, 3, device=device)
    block(x).sum().backward()
    assert block.weights.stacks.b.grad is None
    assert block.weights.stacks.w.grad.abs().max() > 0
    block.requires_grad_(False)
    assert not block(x).requires_grad
    x.requires_grad_()
    block(x).sum().backward()
    assert x.grad.abs().max() > 0
    assert block.weights.stacks.v.grad.abs().max() > 0


def test_backwards_in_time_and_equal_to_checkpoint_at_many_sweeps(device):
    field, y0 = Tanh(device), randn(3, device=device)
    pair = []
    for gradient in (Checkpoint(), Reconstruct(sweeps=30)):
        ys = odeint(field, y0, [1.0, 0.4, 0.0], method="kutta3", steps=6, gradient=gradient)
        pair.append(gradients(ys.square().sum(), list(field.parameters())))
    assert largest_difference(*pair) < 1e-12


# --- what an outsider broke -----------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["reconstruct", "reversible"])
@pytest.mark.parametrize("outer", ["checkpoint", Reconstruct(sweeps=30), "backprop"])
def test_dropout_in_a_block_in_a_block(inner, outer, device):
    """Solved without gradients first: the masks must be those of the solve with gradients.

    The map is linear, so its value is the input times its gradient.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = OdeBlock(
            lambda: OdeBlock(
                lambda: nn.Sequential(nn.Linear(4, 4, bias=False), nn.Dropout(0.5)).double(),
                PiecewiseConstant(3), steps=3, gradient=inner,
                method="async_leapfrog" if inner == "reversible" else "euler",
            ),
            PiecewiseConstant(2), steps=2, gradient=outer,
        ).to(device)  # fmt: skip
        x = torch.ones(2, 4, dtype=torch.float64, device=device, requires_grad=True)
        for block in net.weights.template.modules():
            if isinstance(block, OdeBlock) and inner == "reconstruct":
                block.gradient = Reconstruct(sweeps=30)
        value = net(x).sum()
        (grad,) = torch.autograd.grad(value, x)
    assert (x * grad).sum().item() == pytest.approx(value.item(), abs=1e-10)


@pytest.mark.parametrize("gradient", ["reconstruct", "reversible"])
def test_masks_do_not_depend_on_whether_gradients_are_wanted(gradient, device):
    method = "async_leapfrog" if gradient == "reversible" else "heun"
    block, _ = masked_block(device, 4, gradient)
    block = block.with_graph(method=method)
    x, values = randn(8, 3, device=device), []
    for enabled in (True, False):
        with torch.random.fork_rng(), torch.set_grad_enabled(enabled):
            torch.manual_seed(3)
            values.append([block(x).detach(), block(x).detach()])
    assert torch.equal(values[0][0], values[1][0])
    assert torch.equal(values[0][1], values[1][1])
    assert not torch.equal(values[0][0], values[0][1])


@pytest.mark.parametrize("make", [Checkpoint, Adjoint, Reconstruct])
def test_a_tensor_named_twice_counts_once(make, device):
    w = randn(2, 2, device=device).requires_grad_()

    class Reads(nn.Module):
        def forward(self, x):
            return x @ w

    grads = []
    for named in ((w,), (w, w)):
        block = OdeBlock(Reads(), steps=4, gradient=make(), params=named)
        grads += torch.autograd.grad(block(randn(1, 2, device=device)).sum(), w)
    assert torch.equal(*grads)


@pytest.mark.parametrize("gradient", [Checkpoint(), Reconstruct(sweeps=30), Reconstruct(every=1)])
def test_buffers_in_the_backward_pass_are_those_of_the_solve(gradient, device):
    """Overwritten in between; and updated by every evaluation (spectral norm in training)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = nn.utils.parametrizations.spectral_norm
        block = OdeBlock(
            lambda: nn.Sequential(norm(nn.Linear(3, 3)), nn.BatchNorm1d(3), nn.Tanh()).double(),
            PiecewiseConstant(5), steps=5,
        ).to(device)  # fmt: skip
    x, start = randn(8, 3, device=device), copy.deepcopy(block.state_dict())
    for train in (True, False):
        found = []
        for method in ("backprop", gradient):
            block.train(train).load_state_dict(start)
            y = block.with_graph(gradient=method)(x).square().sum()
            if method != "backprop":  # which would say that its own graph is void
                for buffer in block.buffers():
                    buffer.add_(1)
            found.append(gradients(y, list(block.parameters())))
        assert largest_difference(*found) < 1e-12


def test_a_reconstruction_that_blows_up_says_so(device):
    class Log(nn.Module):
        def forward(self, x):
            return torch.log(x)

    z = torch.tensor([0.5], dtype=torch.float64, device=device, requires_grad=True)
    for rule in RULES[:4]:
        with pytest.raises(NonFiniteError, match="reconstructed state is not finite"):
            OdeBlock(Log(), steps=2, gradient=rule)(z).backward()


def test_gradient_errors_leave_the_block_and_the_generator_alone(device):
    """And compare like with like: under dropout the exact gradient has the same masks."""
    block, _ = masked_block(device, 16, "backprop")
    x = randn(8, 3, device=device)
    before = torch.get_rng_state()
    assert gradient_error(block, x, torch.sum, Reconstruct(sweeps=30)).relative < 1e-12
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = OdeBlock(lambda: normed().to(device), PiecewiseConstant(4), steps=4)
    state = copy.deepcopy(norm.state_dict())
    gradient_error(norm, x, torch.sum, "reconstruct")
    for name, value in norm.state_dict().items():
        assert torch.equal(value, state[name])
