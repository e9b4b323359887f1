"""The refusal of fields for which a trace computed row by row is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["check_rows"]


def check_rows(field: Callable[[Tensor, Tensor], Tensor], t: Tensor, x: Tensor) -> None:
    r"""Check that a field is a function of time and state, for each row by itself.

    Rows are split in two by each binary digit of their number, so that any two of them are parted
    at least once. The gradient of a random combination of the values of one part, with respect to
    the rows of the other, must be zero. This takes one evaluation and $2 \log_2 n$ backward passes.
    A second evaluation at the same place must give the same values. A module's buffers stay as they
    are.

    Args:
        field: ``field(t, x)``.
        t: a time, without axes.
        x: states, shape ``(batch, ...)``.

    Raises:
        ValueError: if rows depend on each other, as with batch norm in training mode, or if the
            field is no function of time and state, as with dropout in training mode.

    Example:
        >>> check_rows(lambda t, x: -x, torch.tensor(0.0), torch.randn(5, 2))
        >>> check_rows(lambda t, x: x - x.mean(0), torch.tensor(0.0), torch.randn(5, 2))
        Traceback (most recent call last):
        ValueError: field: rows depend on each other (batch norm in training mode?), ...
    """
    with torch.inference_mode(False), torch.enable_grad():
        t, leaf = t.clone(), x.detach().clone().requires_grad_()
        value = _evaluated(field, t, leaf)
        again = _evaluated(field, t, leaf).detach()
    error = 1e3 * torch.finfo(x.dtype).eps  # kernels of some devices add in any order
    if not torch.allclose(value.detach(), again, rtol=error, atol=error, equal_nan=True):
        raise ValueError(
            "field: two evaluations at one place differ (dropout in training mode, or noise drawn "
            "at every evaluation?), so that the flow is no function and has no density; call "
            "eval(), or draw the noise once, before the solve"
        )
    if not value.requires_grad:
        return
    draw = torch.Generator().manual_seed(0)  # any combination but special ones
    weights = torch.randn(value.shape, generator=draw, dtype=torch.float64).to(value)
    for part in _parts(x):
        mine = part.reshape(-1, *[1] * (x.ndim - 1))
        (pulled,) = torch.autograd.grad(
            value, leaf, weights * mine, retain_graph=True, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
        if (pulled[~part].abs() > 0).any():
            raise ValueError(
                "field: rows depend on each other (batch norm in training mode?), and then the "
                "trace of each row's Jacobian is not the change of its log-density; call eval(), "
                "or use a norm of single rows"
            )


def _evaluated(field: Callable[[Tensor, Tensor], Tensor], t: Tensor, x: Tensor) -> Tensor:
    """Return the field's value, with copies of a module's buffers."""
    buffers = dict(field.named_buffers()) if isinstance(field, nn.Module) else {}
    if not isinstance(field, nn.Module) or not buffers:
        return field(t, x)
    copies = {name: buffer.clone() for name, buffer in buffers.items()}
    value: Tensor = functional_call(field, copies, (t, x))
    return value


def _parts(x: Tensor) -> Iterator[Tensor]:
    """Yield masks of rows; of any two rows, one mask holds the first without the second."""
    rows = torch.arange(len(x), device=x.device)
    for digit in range((len(x) - 1).bit_length() if len(x) else 0):
        ones = (rows >> digit) % 2 == 1
        yield ones
        yield ~ones
