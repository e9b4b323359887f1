"""Order conditions of Runge-Kutta schemes: one for every rooted tree.

A tree is the tuple of what grows on its root.
"""

import functools
import math
from fractions import Fraction


@functools.cache
def trees(vertices):
    """Return the rooted trees of so many vertices: every way to grow one on the root of another."""
    if vertices == 1:
        return [()]
    return sorted({
        tuple(sorted((*tree, branch)))
        for k in range(1, vertices)
        for tree in trees(vertices - k)
        for branch in trees(k)
    })  # fmt: skip


def size(tree):
    return 1 + sum(map(size, tree))


def density(tree):
    return size(tree) * math.prod(map(density, tree))


def dot(u, v):
    return sum((x * y for x, y in zip(u, v, strict=True)), Fraction(0))


def grown(a, tree):
    """Return at each stage: the product over the branches of what ``a`` gathers of them."""
    values = [Fraction(1)] * len(a)
    for branch in tree:
        inner = grown(a, branch)
        gathered = [dot(row, inner[: len(row)]) for row in a]
        values = [x * y for x, y in zip(values, gathered, strict=True)]
    return values


def residues(a, weights, order: int) -> list[Fraction]:
    """What each order condition of the trees with ``order`` vertices misses, exactly."""
    return [dot(weights, grown(a, tree)) - Fraction(1, density(tree)) for tree in trees(order)]
