"""Embedded pairs: coefficients by exact order conditions, orders by fitted slopes."""

import math
from fractions import Fraction

import pytest
import torch
from loops import loop
from rooted_trees import density, dot, grown, residues, trees

from companion.adaptive import Adaptive, Span
from companion.observe import fit_slope
from companion.pairs import PAIRS

ROUNDING = {"tsit5": Fraction(1, 10**12)}
"""tsit5's coefficients are published decimals; the others are exact."""

# At tsit5's: order conditions of the scheme and of the embedded one to 1e-14, sums of several
# coefficients of up to 50 in the dense output to 1e-12.


def largest(values):
    return max(map(abs, values))


@loop("name", PAIRS)
def test_order_conditions_hold_up_to_the_order_and_not_beyond(name):
    pair = PAIRS[name]
    a, b, order = pair.tableau.a, pair.tableau.b, pair.tableau.order
    embedded = [x - e for x, e in zip(b, pair.errors, strict=True)]
    within = Fraction(2, 10**14) if name in ROUNDING else 0
    for weights, p in ((b, order), (embedded, pair.lower)):
        assert largest(r for n in range(1, p + 1) for r in residues(a, weights, n)) <= within
        assert largest(residues(a, weights, p + 1)) > Fraction(1, 10**5)
    assert pair.lower == order - 1


@loop("name", PAIRS)
def test_the_last_stage_is_the_first_of_the_next_step(name):
    tableau = PAIRS[name].tableau
    assert tableau.a[-1] == tableau.b[:-1]
    assert tableau.b[-1] == 0
    assert PAIRS[name].fractions[-1] == 1.0
    assert all(0 <= c <= 1 for c in PAIRS[name].fractions)
    assert PAIRS[name].fractions == pytest.approx(tableau.fractions, abs=1e-15)


@loop(("name", "order"), [("bosh3", 3), ("dopri5", 4), ("tsit5", 4)])
def test_dense_output_has_its_order_everywhere_in_the_step(name, order):
    """With the tree of n vertices, sum b_i(theta) Phi_i = theta^n / gamma as polynomials."""
    pair = PAIRS[name]
    for n in range(1, order + 2):
        misses = [
            dot([row[j] for row in pair.dense], grown(pair.tableau.a, tree))
            - (Fraction(1, density(tree)) if j + 1 == n else 0)
            for tree in trees(n)
            for j in range(4)
        ]
        if n <= order:
            assert largest(misses) <= ROUNDING.get(name, 0)
        else:
            assert largest(misses) > Fraction(1, 10**3)


@loop("name", PAIRS)
def test_dense_output_has_states_and_slopes_of_both_ends(name):
    pair = PAIRS[name]
    for i, row in enumerate(pair.dense):
        assert sum(row) == pair.tableau.b[i]
        assert row[0] == (i == 0)
        assert sum((j + 1) * p for j, p in enumerate(row)) == (i == len(pair.dense) - 1)
    assert pair.inside(0.0) == [0.0] * pair.stages
    assert pair.inside(1.0) == pytest.approx(pair.tableau.weights, abs=1e-13)


def problem(stage, y):
    """Return f of a coupled, nonlinear, time-dependent system with the solution ``exact``."""
    t, (u, v) = torch.tensor(stage.t, dtype=y.dtype), y
    return torch.stack([u * t.cos(), t.sin().exp() / u * (-v).exp() * (1 + t)])


def exact(t):
    return torch.tensor([math.exp(math.sin(t)), math.log(2 + t + t * t / 2)], dtype=torch.float64)


@loop(("name", "order", "inside"), [("bosh3", 3, 3), ("dopri5", 5, 4), ("tsit5", 5, 4)])
def test_fitted_orders_of_one_step_its_estimate_and_its_inside(name, order, inside):
    """A local error is one order higher than the scheme, or than its dense output.

    Root mean squares over several starts: at a single one a leading term may nearly vanish.
    """
    solver = Adaptive(PAIRS[name], 1e-6, 1e-6, 100)
    sizes = [0.15 * 0.8**k for k in range(6)]
    ends, insides, estimates = [], [], []
    for h in sizes:
        spans = [Span(t, t + h) for t in torch.arange(0, 1.5, 0.2).tolist()]
        steps = [
            solver.attempt(problem, y, problem(span.stage(0, 0.0), y), span)
            for span in spans
            for y in [exact(span.t)]
        ]
        fractions = [0.2, 0.4, 0.6, 0.8]
        ends.append(sum((s.after - exact(s.span.end)).square().sum().item() for s in steps))
        truths = [torch.stack([exact(s.span.t + x * h) for x in fractions]) for s in steps]
        misses = [solver.inside(s, fractions) - y for s, y in zip(steps, truths, strict=True)]
        insides.append(sum(miss.square().sum().item() for miss in misses))
        estimates.append(sum(solver.error_ratio(s) ** 2 for s in steps))
    assert fit_slope(sizes, insides).value / 2 == pytest.approx(inside + 1, abs=0.1)
    assert fit_slope(sizes, estimates).value / 2 == pytest.approx(order, abs=0.1)
    # The next term is still seen; the order itself has been checked exactly.
    assert order + 0.9 < fit_slope(sizes, ends).value / 2 < order + 1.5
