"""Exercises of the chapter "Train without storing activations"."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from companion.exercises.checking import Exercise, WrongAnswer, close, listed, tensor
from companion.observe import fit_slope
from companion.schemes import get_scheme
from companion.train import seeded

__all__ = ["CONTRIBUTIONS", "EXERCISES", "JUMPS", "QUIET", "ROUND_TRIP"]


# Warm-up: a round trip by hand


def _check_round_trip(answer: Mapping[str, Any]) -> str:
    """Compare each scheme's lowest term of R(z) R(-z) - 1 with the product itself."""
    names = ("euler", "heun", "kutta3")
    if not isinstance(answer, Mapping) or set(answer) != set(names):
        raise WrongAnswer(f"Return a dict with the keys {', '.join(names)}.")
    for name in names:
        power, coefficient = listed(answer[name], 2, f"{name}: give a pair, (power, coefficient).")
        # The next term is at least two powers up, so a small z leaves only the lowest.
        z = 1e-2
        left = _grown(name, z) * _grown(name, -z) - 1
        exact, factor = _LOWEST[name]
        assert math.isclose(left, factor * z**exact, rel_tol=1e-3)
        if power != exact:
            raise WrongAnswer(
                f"{name}: the lowest power is not {power:g}. Multiply the polynomial of z by that "
                "of -z; odd powers cancel."
            )
        if math.isclose(coefficient, -factor, rel_tol=1e-3):
            raise WrongAnswer(f"{name}: the power is right. Does the state come back too large?")
        if not math.isclose(coefficient, factor, rel_tol=1e-3):
            raise WrongAnswer(
                f"{name}: the power is right, its coefficient is not {coefficient:g}. Collect all "
                "products of two terms whose powers add up to it."
            )
    return "Right: an even order gains one power in the round trip, an odd order none."


_LOWEST = {"euler": (2, -1.0), "heun": (4, 1 / 4), "kutta3": (4, -1 / 12)}


def _grown(name: str, z: float) -> float:
    """Return what one step of a scheme multiplies the state of x' = x by."""
    one = torch.ones(1, dtype=torch.float64)
    return get_scheme(name).step(lambda i, y: y, one, z).item()


ROUND_TRIP = Exercise(
    id="memory-free-ex-round-trip",
    check=_check_round_trip,
    solution={"euler": (2, -1), "heun": (4, 1 / 4), "kutta3": (4, -1 / 12)},
    wrong={
        "orders of the schemes": {"euler": (1, -1), "heun": (2, 1 / 4), "kutta3": (3, -1 / 12)},
        "local errors": {"euler": (2, -1), "heun": (3, 1 / 6), "kutta3": (4, -1 / 24)},
        "Euler comes back too large": {"euler": (2, 1), "heun": (4, 1 / 4), "kutta3": (4, -1 / 12)},
        "a product is forgotten": {"euler": (2, -1), "heun": (4, 1 / 4), "kutta3": (4, 1 / 4)},
        "a scheme is missing": {"euler": (2, -1), "heun": (4, 1 / 4)},
        "powers alone": {"euler": 2, "heun": 4, "kutta3": 4},
    },
)


# Core: both gradients of a HeunNet's shared weights

Pulled = tuple[Tensor, Tensor, Tensor]


def _check_contributions(answer: Callable[..., Pulled]) -> str:
    """Run ``answer(J0, J1, P0, P1, a, h)`` at two step sizes and compare with autograd."""
    for h in (0.1, 1.0):
        generator = torch.Generator().manual_seed(3)
        W0, W1 = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
        x, a = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        for leaf in (x, W0, W1):
            leaf.requires_grad_()
        first = torch.tanh(W0 @ x)
        y = x + h * first
        wanted = torch.autograd.grad(x + h / 2 * (first + torch.tanh(W1 @ y)), (x, W0, W1), a)
        J0, P0 = torch.func.jacrev(lambda x, W: torch.tanh(W @ x), argnums=(0, 1))(x, W0)
        J1, P1 = torch.func.jacrev(lambda x, W: torch.tanh(W @ x), argnums=(0, 1))(y, W1)
        pieces = [t.detach() for t in (J0, J1, P0.flatten(1), P1.flatten(1))]
        _compare(answer(*pieces, a, h), [g.reshape(-1) for g in wanted], a, h)
    return "Right: all three agree with autograd."


def _compare(returned: Any, wanted: list[Tensor], a: Tensor, h: float) -> None:
    """Name the mistakes that touch all of an answer first, then the first value that is wrong."""
    parts = "Return three tensors, for x, theta_n and theta_{n+1}."
    if not isinstance(returned, tuple | list):
        raise WrongAnswer(parts)
    got = [tensor(g, None, parts).reshape(-1) for g in returned]
    if [g.numel() for g in got] != [3, 9, 9]:
        raise WrongAnswer(
            "Return three tensors, for x, theta_n and theta_{n+1}. A gradient is a transposed "
            "Jacobian times a vector."
        )
    state, early, late = wanted
    if _close(got[1], late) and _close(got[2], early):
        raise WrongAnswer(
            f"At h = {h:g}: the gradients for theta_n and theta_{{n+1}} are exchanged. theta_n "
            "belongs to the first slope."
        )
    if any(map(_close, got, (2 * state - a, 2 * early, 2 * late))):
        raise WrongAnswer(
            f"At h = {h:g}: what comes through a slope is twice too large. The step takes the mean "
            "of two slopes, so each counts with h/2."
        )
    for value, right, hint in zip(got, wanted, _CONTRIBUTION_HINTS, strict=True):
        if not _close(value, right):
            raise WrongAnswer(f"At h = {h:g}: {hint}")


def _close(value: Tensor, right: Tensor) -> bool:
    return close(value, right)


_CONTRIBUTION_HINTS = (
    "the gradient for x_n is wrong. The state enters three times: as it is, in the first slope, "
    "and through y in the second. The first slope moves y too.",
    "the gradient for theta_n is wrong. The first slope counts in the mean, and it moves y. What "
    "reaches it is a + h J1^T a.",
    "the gradient for theta_{n+1} is wrong. In this step nothing comes after the second slope.",
)


def _contributions(J0: Tensor, J1: Tensor, P0: Tensor, P1: Tensor, a: Tensor, h: float) -> Pulled:
    c = a + h * J1.T @ a
    return a + h / 2 * (J1.T @ a + J0.T @ c), h / 2 * P0.T @ c, h / 2 * P1.T @ a


CONTRIBUTIONS = Exercise(
    id="memory-free-ex-contributions",
    check=_check_contributions,
    solution=_contributions,
    wrong={
        "the first slope does not move y": lambda J0, J1, P0, P1, a, h: (
            a + h / 2 * (J1.T @ a + J0.T @ a), h / 2 * P0.T @ a, h / 2 * P1.T @ a),
        "only the weights forget that y moves": lambda J0, J1, P0, P1, a, h: (
            _contributions(J0, J1, P0, P1, a, h)[0], h / 2 * P0.T @ a, h / 2 * P1.T @ a),
        "an extra factor for the later weights": lambda J0, J1, P0, P1, a, h: (
            *_contributions(J0, J1, P0, P1, a, h)[:2], h / 2 * P1.T @ (a + h * J0.T @ a)),
        "exchanged": lambda J0, J1, P0, P1, a, h: tuple(
            _contributions(J0, J1, P0, P1, a, h)[k] for k in (0, 2, 1)),
        "h in place of h/2": lambda J0, J1, P0, P1, a, h: (
            a + h * (J1.T @ a + J0.T @ (a + h * J1.T @ a)),
            h * P0.T @ (a + h * J1.T @ a), h * P1.T @ a),
        "no half": lambda J0, J1, P0, P1, a, h: tuple(
            2 * g for g in _contributions(J0, J1, P0, P1, a, h)),
        "not transposed": lambda J0, J1, P0, P1, a, h: (
            a + h / 2 * (J1 @ a + J0 @ (a + h * J1 @ a)), h / 2 * P0.T @ (a + h * J1 @ a),
            h / 2 * P1.T @ a),
        "the state alone": lambda J0, J1, P0, P1, a, h: (
            _contributions(J0, J1, P0, P1, a, h)[0],),
        "nothing": lambda J0, J1, P0, P1, a, h: None,
    },
)  # fmt: skip


# Core: a quiet step back through batch norm

_QUIET_PARTS = "Return the start, the pulled gradient, and a list."

Back = Callable[[nn.Module, Tensor, Tensor, float], tuple[Tensor, Tensor, list[Tensor]]]


def _check_quiet(answer: Back) -> str:
    """Step back over a layer with batch norm; compare values, statistics and mode."""
    h = 0.25
    with seeded(0):
        norm = nn.BatchNorm1d(5)
        layer = nn.Sequential(nn.Linear(3, 5), norm, nn.Tanh(), nn.Linear(5, 3)).double()
        nn.init.constant_(norm.get_buffer("running_mean"), 2.0)  # so that eval mode differs
        end, a = torch.randn(2, 16, 3, dtype=torch.float64)
    before = {name: b.clone() for name, b in layer.named_buffers()}
    start, *wanted = _exact_back(layer, end, a, h)
    for name, b in layer.named_buffers():
        b.copy_(before[name])
    try:
        got_start, pulled, grads = answer(layer, end.clone(), a.clone(), h)
        parts = [got_start, pulled, *grads]
    except (TypeError, ValueError):
        raise WrongAnswer(_QUIET_PARTS) from None
    got_start, *values = (tensor(part, None, _QUIET_PARTS) for part in parts)
    if not layer.training:
        raise WrongAnswer("The layer is left in eval mode; the next forward pass would use it so.")
    if got_start.shape != start.shape or not close(got_start, start):
        raise WrongAnswer(
            "The start is wrong: end - h layer(end), with the statistics of the batch, as in the "
            "forward pass. In eval mode batch norm is another function."
        )
    if len(values) != len(wanted) or not all(
        v.shape == w.shape and close(v, w) for v, w in zip(values, wanted, strict=True)
    ):
        raise WrongAnswer(
            "The start is right, the gradients are not: differentiate start + h layer(start), in "
            "training mode, with respect to the start and then to layer.parameters()."
        )
    for name, b in layer.named_buffers():
        if not torch.equal(b, before[name]):
            raise WrongAnswer(f"Right gradients, but the buffer {name} has changed.")
    layer.eval()
    answer(layer, end.clone(), a.clone(), h)
    if any(module.training for module in layer.modules()):
        raise WrongAnswer("Handed over in eval mode, the layer comes back in training mode.")
    return "Right: the gradients are there, and the statistics are unchanged."


def _exact_back(layer: nn.Module, end: Tensor, a: Tensor, h: float) -> list[Tensor]:
    with torch.no_grad():
        start = end - h * layer(end)
    start.requires_grad_()
    out = start + h * layer(start)
    return [start.detach(), *torch.autograd.grad(out, (start, *layer.parameters()), a)]


def _noisy(layer: nn.Module, end: Tensor, a: Tensor, h: float) -> Any:
    start, pulled, *grads = _exact_back(layer, end, a, h)
    return start, pulled, grads


def _quiet(layer: nn.Module, end: Tensor, a: Tensor, h: float) -> Any:
    kept = [b.clone() for b in layer.buffers()]
    result = _noisy(layer, end, a, h)
    for buffer, value in zip(layer.buffers(), kept, strict=True):
        buffer.copy_(value)
    return result


def _in_eval(layer: nn.Module, end: Tensor, a: Tensor, h: float) -> Any:
    layer.eval()
    result = _noisy(layer, end, a, h)
    layer.train()
    return result


def _eval_for_the_gradient(layer: nn.Module, end: Tensor, a: Tensor, h: float) -> Any:
    start = _quiet(layer, end, a, h)[0].requires_grad_()
    layer.eval()
    pulled, *grads = torch.autograd.grad(start + h * layer(start), (start, *layer.parameters()), a)
    layer.train()
    return start.detach(), pulled, grads


def _zero_momentum(layer: nn.Module, end: Tensor, a: Tensor, h: float) -> Any:
    norms = [m for m in layer.modules() if isinstance(m, nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = 0.0
    result = _noisy(layer, end, a, h)
    for norm in norms:
        norm.momentum = 0.1
    return result


def _left_in_eval(layer: nn.Module, end: Tensor, a: Tensor, h: float) -> Any:
    result = _quiet(layer, end, a, h)
    layer.eval()
    return result


def _always_in_training(layer: nn.Module, end: Tensor, a: Tensor, h: float) -> Any:
    return _quiet(layer.train(), end, a, h)


def _at_the_end(layer: nn.Module, end: Tensor, a: Tensor, h: float) -> Any:
    start = _quiet(layer, end, a, h)[0]
    kept = [b.clone() for b in layer.buffers()]
    leaf = end.clone().requires_grad_()
    pulled, *grads = torch.autograd.grad(leaf + h * layer(leaf), (leaf, *layer.parameters()), a)
    for buffer, value in zip(layer.buffers(), kept, strict=True):
        buffer.copy_(value)
    return start, pulled, grads


QUIET = Exercise(
    id="memory-free-ex-quiet",
    check=_check_quiet,
    solution=_quiet,
    wrong={
        "statistics move": _noisy,
        "eval mode": _in_eval,
        "eval mode for the gradient": _eval_for_the_gradient,
        "momentum zero": _zero_momentum,
        "left in eval mode": _left_in_eval,
        "always in training mode": _always_in_training,
        "differentiated at the end": _at_the_end,
        "no gradients": lambda layer, end, a, h: _quiet(layer, end, a, h)[:2],
        "forwards": lambda layer, end, a, h: _quiet(layer, end, a, -h),
    },
)


# Open: large jumps, small errors

Pair = tuple[Tensor, Tensor]
_MATRICES = "Return a list of pairs (A, W) of matrices."


def _check_jumps(answer: Callable[[int], list[Pair]]) -> str:
    """Sweep HeunNets with residuals A tanh(W x) back and fit the rate of the worst state."""
    counts, errors = (16, 32, 64), []
    for steps in counts:
        pairs = _pairs(answer(steps), steps)
        flat = [torch.cat([A.flatten(), W.flatten()]) for A, W in pairs]
        least = min(float((q - p).norm()) for p, q in pairwise(flat))
        if least < 1:
            raise WrongAnswer(f"{steps} steps: some jump of the weights is only {least:.2g}.")
        dim = pairs[0][0].shape[0]
        x0 = torch.randn(dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        moved, error = _swept(pairs, x0)
        if moved < 0.1:
            raise WrongAnswer(f"{steps} steps: the state moves by {moved:.2g}; 0.1 is asked for.")
        errors.append(error)
    if max(errors) < 1e-13:
        return "Right: jumps of at least 1, and the states come back exactly."
    rate = fit_slope(counts, errors).value if min(errors) > 0 else 0.0
    if rate > -2.7:
        raise WrongAnswer(
            f"The jumps are large enough, and the error falls like N^{rate:.2f}. The defect of a "
            "step multiplies the jump of the field by that of its Jacobian. Can the weights jump "
            "and the field stay?"
        )
    return f"Right: jumps of at least 1, and the error falls like N^{rate:.2f}."


def _pairs(pairs: Any, steps: int) -> list[Pair]:
    try:
        parts = [(A, W) for A, W in pairs]
    except (TypeError, ValueError):
        raise WrongAnswer(_MATRICES) from None
    found = [(tensor(A, None, _MATRICES), tensor(W, None, _MATRICES)) for A, W in parts]
    if len(found) != steps + 1:
        raise WrongAnswer(f"{steps} steps have {steps + 1} nodes; you return {len(found)} pairs.")
    A, W = found[0]
    if A.ndim != 2 or A.shape != W.T.shape or any(B.shape != A.shape for B, _ in found):
        raise WrongAnswer("All A must have one shape (dim, hidden), and all W that of A.T.")
    return found


def _swept(pairs: list[Pair], x0: Tensor) -> tuple[float, float]:
    """Return how far the state moves, and the largest error of a reversed state."""
    steps = len(pairs) - 1

    def f(n: int, x: Tensor) -> Tensor:
        A, W = pairs[n]
        return A @ torch.tanh(W @ x)

    def step(n: int, m: int, x: Tensor, h: float) -> Tensor:
        slope = f(n, x)
        return x + h / 2 * (slope + f(m, x + h * slope))

    states = [x0]
    for n in range(steps):
        states.append(step(n, n + 1, states[-1], 1 / steps))
    x, worst = states[-1], 0.0
    for n in reversed(range(steps)):
        x = step(n + 1, n, x, -1 / steps)
        worst = max(worst, float((x - states[n]).norm()))
    return float((states[-1] - x0).norm()), worst


def _drawn(seed: int, dim: int = 4, hidden: int = 8) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    A, W = torch.randn(2, hidden, dim, generator=generator, dtype=torch.float64)
    return A.T / hidden**0.5, W / dim**0.5


def _signs(steps: int) -> list[Pair]:
    A, W = _drawn(0)
    return [((-1) ** n * A, (-1) ** n * W) for n in range(steps + 1)]


JUMPS = Exercise(
    id="memory-free-ex-jumps",
    check=_check_jumps,
    solution=_signs,
    wrong={
        "a zigzag of the field": lambda steps: [
            (A + (-1) ** n * 0.5, W) for n in range(steps + 1) for A, W in [_drawn(0)]],
        "unrelated layers": lambda steps: [_drawn(n) for n in range(steps + 1)],
        "tied": lambda steps: [_drawn(0)] * (steps + 1),
        "smooth": lambda steps: [
            (math.cos(n / steps) * A, W) for n in range(steps + 1) for A, W in [_drawn(0)]],
        "a field of zero": lambda steps: [
            (0 * A, (-1) ** n * W) for n in range(steps + 1) for A, W in [_drawn(0)]],
        "one set too few": lambda steps: _signs(steps)[:-1],
        "one sign only": lambda steps: [
            ((-1) ** n * A, W) for n in range(steps + 1) for A, W in [_drawn(0)]],
        "a number": lambda steps: 1.0,
    },
)  # fmt: skip


EXERCISES = (ROUND_TRIP, CONTRIBUTIONS, QUIET, JUMPS)
