"""What is checked when a field is evaluated for the first time in a solve."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from companion.transforms import beneath

__all__ = ["FirstValue", "check_value", "explained", "first_evaluation"]


def first_evaluation(
    evaluate: Callable[[Tensor], Tensor],
    y: Tensor,
    argument: str,
    params: Iterable[Tensor] | None = None,
) -> Tensor:
    """Evaluate a field once and check what it did.

    Args:
        evaluate: the field as a function of the state.
        y: the state.
        argument: the field's name in messages.
        params: the tensors that a gradient method knows, if it has to know all that the field
            reads; ``None`` if autograd finds them.

    Raises:
        TypeError: if the field does not return a tensor.
        ValueError: if its shape, device or dtype is not the state's, if the field changes the state
            in place, or if it reads a tensor that needs a gradient and is not among ``params``.
    """
    if params is None or torch.compiler.is_compiling():
        return _checked(evaluate, y, argument)
    # This graph is dropped at once; hooks of its own keep it out of counts of saved bytes. They
    # store detached tensors: an operation that saves its own result would keep itself alive.
    with torch.enable_grad(), saved_tensors_hooks(lambda x: x.detach(), lambda x: x):
        leaf = torch.zeros_like(y, requires_grad=True)
        value = _checked(evaluate, y + leaf, argument)
        unknown = _leaves(value, [leaf, *params])
        if unknown:
            # A field that differentiates inside makes leaves of its own, new ones every time.
            again = _leaves(evaluate(y + leaf), [leaf, *params])
            unknown = {key: x for key, x in unknown.items() if key in again}
    for tensor in unknown.values():
        raise ValueError(
            f"gradient: {argument} reads a tensor of shape {tuple(tensor.shape)} that needs a "
            "gradient but is not among its parameters; name all such tensors with params=(...), or "
            "use gradient='backprop'"
        )
    with torch.no_grad():
        return value.clone()  # not detach(): it would drop a tangent of forward-mode derivatives


class FirstValue:
    """What a field returned first, to see whether it writes its next value over it.

    A solver combines the slopes of several evaluations, and would find them all to be the last.
    """

    def __init__(self) -> None:
        """Know no value yet."""
        self.value: Tensor | None = None
        self.version = 0

    def note(self, value: object) -> None:
        """Keep a value; a tensor of inference mode counts no changes."""
        if isinstance(value, Tensor) and not beneath(value).is_inference():
            self.value = beneath(value).detach()  # shares the count of changes, not the graph
            self.version = self.value._version

    def check(self, argument: str) -> None:
        """Refuse a field that has changed its first value since.

        Raises:
            ValueError: naming ``argument``.
        """
        if self.value is not None and self.value._version != self.version:
            raise ValueError(
                f"{argument}: wrote its value over the one that it had returned before; it must "
                "return a new tensor at every evaluation, such as a clone() of its buffer"
            )


def check_value(value: object, y: Tensor, argument: str) -> None:
    """Check that a field's value can be added to the state ``y``.

    Args:
        value: what the field returned.
        y: the state it was evaluated at.
        argument: the field's name in messages.

    Raises:
        TypeError: if the value is not a tensor.
        ValueError: if its shape, device or dtype is not that of the state.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument}: returned {type(value).__name__}; it must return a tensor")
    if value.shape != y.shape:
        raise ValueError(
            f"{argument}: returned shape {tuple(value.shape)} for a state of shape "
            f"{tuple(y.shape)}; they must be equal"
        )
    if value.device != y.device:
        raise ValueError(
            f"{argument}: returned a tensor on {value.device} for a state on {y.device}; "
            "they must be equal"
        )
    if value.dtype != y.dtype and not torch.is_autocast_enabled(y.device.type):
        raise ValueError(
            f"{argument}: returned {value.dtype} for a state of {y.dtype}; they must be equal"
        )


_GRADIENTS_ARE_OFF = (
    "does not require grad and does not have a grad_fn",
    "One of the differentiated Tensors does not require grad",
)


def explained(error: RuntimeError, argument: str) -> ValueError | None:
    """Return an error that says what to do about one of torch's, if this package knows."""
    if any(text in str(error) for text in _GRADIENTS_ARE_OFF):
        return ValueError(
            f"{argument}: differentiates inside itself, but a solve evaluates it without recording "
            "gradients here; compute its value under torch.enable_grad()"
        )
    return None


def _checked(evaluate: Callable[[Tensor], Tensor], y: Tensor, argument: str) -> Tensor:
    if torch.compiler.is_compiling():  # which looks at no versions
        value = evaluate(y)
        check_value(value, y, argument)
        return value
    seen = _counting_changes(y)
    before = beneath(seen)._version
    value = evaluate(seen)
    check_value(value, y, argument)
    if beneath(seen)._version != before:
        raise ValueError(f"{argument}: changed its input in place; it must return a new tensor")
    return value


def _counting_changes(y: Tensor) -> Tensor:
    """Return the state; a copy of one that inference mode made, for those count no changes."""
    if not beneath(y).is_inference():
        return y
    with torch.inference_mode(False):
        return y.clone()


def _leaves(value: Tensor, params: Iterable[Tensor]) -> dict[int, Tensor]:
    """Return the leaves that ``value`` depends on other than through ``params``, by identity."""
    params = list(params)
    known = {id(p) for p in params}
    seen = {p.grad_fn for p in params if p.grad_fn is not None}
    todo = [value.grad_fn]
    unknown: dict[int, Tensor] = {}
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            unknown[id(leaf)] = leaf
        todo.extend(next_node for next_node, _ in node.next_functions)
    return unknown
