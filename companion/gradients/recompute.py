"""What gradient methods share that evaluate the field again in their backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from companion.solve import Field, Problem, States

__all__ = [
    "Accumulator",
    "RandomState",
    "autocast_as",
    "autocast_mode",
    "check_modes",
    "check_params",
    "differentiate",
    "first_order",
    "modes",
    "needs_gradient",
    "random_state",
    "same_state",
    "set_random_state",
    "solve_with",
]

AutocastMode = tuple[str, bool, torch.dtype]
RandomState = tuple[Tensor, ...]


class Accumulator:
    """Sums gradients of the parameters, ``None`` for those that nothing used."""

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


def check_params(params: object) -> None:
    """Check the ``params`` of a configured gradient method.

    Raises:
        TypeError: for anything but ``None`` or a tuple or list of tensors.
    """
    if params is None:
        return
    if not isinstance(params, tuple | list) or not all(isinstance(p, Tensor) for p in params):
        raise TypeError(f"params: {params!r} is not allowed; pass a tuple of tensors")


def modes(field: Field) -> tuple[bool, ...]:
    """Return the training modes of all modules behind a field."""
    return () if field.module is None else tuple(m.training for m in field.module.modules())


def check_modes(field: Field, before: tuple[bool, ...]) -> None:
    """Check that the modules behind a field are in the modes of the forward solve.

    Raises:
        ValueError: if they are not: batch norm or dropout would compute something else.
    """
    if modes(field) != before:
        raise ValueError(
            "gradient: the module was switched between train() and eval() after the forward solve, "
            "which its backward pass has to repeat; switch after backward(), or use "
            "gradient='backprop'"
        )


def differentiate(
    output: Tensor, inputs: Sequence[Tensor], cotangent: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the vector-Jacobian products of ``output`` with ``cotangent``, ``None`` if unused."""
    if not output.requires_grad:
        return (None,) * len(inputs)
    return torch.autograd.grad(output, inputs, cotangent.to(output.dtype), allow_unused=True)


def autocast_mode(y: Tensor) -> AutocastMode:
    """Return the state of autocast on the device of ``y``."""
    device = y.device.type
    return device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def autocast_as(mode: AutocastMode) -> AbstractContextManager[object]:
    """Return a context in which autocast is as recorded.

    Its cache of cast weights is off: copies made without gradients in a forward pass would
    otherwise be handed to code that needs them with gradients.
    """
    device, enabled, dtype = mode
    return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)


def random_state(device: torch.device) -> RandomState:
    """Return the states of the generators that a field on ``device`` draws from."""
    if device.type == "cuda":
        return torch.random.get_rng_state(), torch.cuda.get_rng_state(device)
    return (torch.random.get_rng_state(),)


def set_random_state(states: RandomState, device: torch.device) -> None:
    """Put the generators that a field on ``device`` draws from into ``states``."""
    torch.random.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def same_state(one: RandomState, other: RandomState) -> bool:
    """Say whether no random number was drawn between two states."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a backward pass refuse to be differentiated again.

    Raises:
        ValueError: when it runs under ``create_graph=True``, which would silently lose terms.
    """

    @wraps(backward)
    def refusing(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise ValueError(
                "gradient: only 'backprop' has second derivatives (create_graph=True); "
                "use gradient='backprop'"
            )
        return backward(ctx, *grads)

    return refusing


def needs_gradient(field: Field, y0: Tensor, t: object) -> bool:
    """Say whether a solve has anything to differentiate."""
    inputs = (y0, *field.params, *((t,) if isinstance(t, Tensor) else ()))
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def solve_with(
    function: type[torch.autograd.Function], problem: Problem, settings: object
) -> States:
    """Solve with a backward pass of its own, or plainly where nothing needs a gradient.

    Args:
        function: its ``forward`` takes the problem without gradients, ``settings``, the times as a
            tensor if they need a gradient and else ``None``, the start, and the parameters.
        problem: what to solve.
        settings: whatever the backward pass needs to know.
    """
    if not needs_gradient(problem.field, problem.y0, problem.t):
        return problem.solve()
    t = problem.t if isinstance(problem.t, Tensor) else None
    bare = replace(problem, y0=problem.y0.detach(), t=problem.t if t is None else t.detach())
    ys: Tensor = function.apply(bare, settings, t, problem.y0, *problem.field.params)  # type: ignore[no-untyped-call]
    return ys
