"""Evaluate with a graph, pull a cotangent back through it, and add up what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from companion.solve import Interval

__all__ = ["Accumulator", "Sums", "Taped", "differentiate", "taped"]


class Accumulator:
    """Sums gradients of some tensors, ``None`` for those that nothing used."""

    def __init__(self, params: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        """Start with no gradient for any of ``params``; only those ``wanted`` are asked for."""
        self.params = params
        self.wanted = wanted
        self.grads: list[Tensor | None] = [None] * len(params)

    def select(self, used: Iterable[int]) -> list[int]:
        """Return the indices of ``used`` that need a gradient."""
        return [k for k in used if self.wanted[k]]

    def add(self, indices: Sequence[int], grads: Sequence[Tensor | None], factor: float) -> None:
        """Add ``factor * grads`` at ``indices``."""
        for k, grad in zip(indices, grads, strict=True):
            if grad is None:
                continue
            total = self.grads[k]
            if total is None:
                self.grads[k] = grad * factor
            else:
                total.add_(grad, alpha=factor)  # in place: the first sum was a product, so ours

    def filled(self) -> list[Tensor]:
        """Return the sums, with zeros for what nothing used."""
        pairs = zip(self.params, self.grads, strict=True)
        return [torch.zeros_like(p) if grad is None else grad for p, grad in pairs]


class Taped(NamedTuple):
    """A function of the state, evaluated with a graph.

    Attributes:
        value: the value, with its graph.
        start: the state, a leaf that needs a gradient.
        ends: the interval's two times as leaves, if they need gradients; else empty.
    """

    value: Tensor
    start: Tensor
    ends: tuple[Tensor, ...]


def taped(
    function: Callable[[Tensor, Interval], Tensor], y: Tensor, span: Interval, times: bool
) -> Taped:
    """Evaluate a function of the state and its interval with a graph; ``times`` for theirs too."""
    ends: tuple[Tensor, ...] = ()
    with torch.enable_grad():
        start = y.detach().requires_grad_()
        if times:
            t0, t1 = span
            assert isinstance(t0, Tensor)
            assert isinstance(t1, Tensor)
            span = (t0.detach().requires_grad_(), t1.detach().requires_grad_())
            ends = span
        return Taped(function(start, span), start, ends)


class Sums:
    """What a backward pass adds up: gradients of parameters and, if asked for, of times."""

    def __init__(self, params: Accumulator, times: Accumulator | None) -> None:
        """Begin with empty sums."""
        self.params, self.times = params, times

    def pull(self, tape: Taped, cotangent: Tensor, used: Iterable[int], output: int) -> Tensor:
        """Pull ``cotangent`` back to the start; add to the sums of the parameters ``used``."""
        indices = self.params.select(used)
        inputs = [tape.start, *tape.ends, *(self.params.params[k] for k in indices)]
        grad_y, *grads = differentiate(tape.value, inputs, cotangent)
        self.params.add(indices, grads[len(tape.ends) :], 1.0)
        if self.times is not None and tape.ends:
            self.times.add((output, output + 1), grads[:2], 1.0)
        return torch.zeros_like(tape.start) if grad_y is None else grad_y


def differentiate(
    output: Tensor, inputs: Sequence[Tensor], cotangent: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the vector-Jacobian products of ``output`` with ``cotangent``, ``None`` if unused."""
    if not output.requires_grad:
        return (None,) * len(inputs)
    return torch.autograd.grad(output, inputs, cotangent.to(output.dtype), allow_unused=True)
