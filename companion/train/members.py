"""Training of several members at once, each as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from companion.arguments import check_count
from companion.depth_weights import DepthWeights
from companion.plain_layers import own_rank
from companion.solve import NonFiniteError
from companion.train.batches import check_rows

# Their state and their steps are functions of every number on its own.
_ELEMENTWISE = (
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.NAdam,
    torch.optim.RAdam, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta,
    torch.optim.Rprop, torch.optim.ASGD,
)  # fmt: skip


class MembersHistory(NamedTuple):
    """What became of the members.

    Attributes:
        loss: mean training loss of every epoch and member, shape ``(epochs, members)``; not finite
            from the epoch on in which a member was stopped.
        stopped: for each member the step, from 0, in which its loss or its gradient was not finite,
            or ``None``.
    """

    loss: Tensor
    stopped: tuple[int | None, ...]


def fit_members(
    model: nn.Module,
    loss: Callable[..., Tensor],
    data: Sequence[Tensor],
    *,
    optimiser: Callable[[Iterable[nn.Parameter]], Optimizer],
    epochs: int,
    batch_size: int,
    generators: Sequence[torch.Generator],
    schedule: Callable[[float], float] | None = None,
    clip: float | None = None,
) -> MembersHistory:
    r"""Train all members of a model in place, on minibatches of their own.

    The members' losses are summed, so that each has the gradient it has alone; each is clipped by
    its own norm, and the optimiser's steps go by single numbers. So a member trained in company
    equals the member trained alone, to rounding: a product of many matrices may add in another
    order than that of one.

    A member whose loss or gradient is not finite stops there. It keeps the values it had before
    that step, which are in the model at the end, and the others go on.

    Args:
        model: its parameters have the members' axis first, in a block after the axis of the layers:
            made of :class:`companion.models.Members`.
        loss: called as ``loss(model, *batch)``; returns every member's mean loss, ``(members,)``.
        data: tensors ``(members, rows, *shape)``; ``x.expand(members, *x.shape)`` is data for all.
        optimiser: makes the optimiser from the parameters; one that goes by single numbers.
        epochs: number of passes over the data.
        batch_size: rows per step; the last batch of an epoch may be smaller.
        generators: one a member, on the CPU: draws the order of its rows.
        schedule: factor on the learning rates, given the finished fraction of all steps.
        clip: largest norm of every member's gradient, above 0, or ``None``.

    Raises:
        TypeError: an optimiser that looks at a whole tensor, such as Adafactor or LBFGS.
        ValueError: a value out of range, data without the members' axis, or a loss of another
            shape.

    Example:
        >>> from companion.models import Members
        >>> def mse(model, x, y):
        ...     return (model(x) - y).square().mean((1, 2))
        >>> x = torch.linspace(-1, 1, 32).view(1, 32, 1)
        >>> data = (x.expand(2, 32, 1), torch.stack([3 * x[0], 5 * x[0]]))  # two data sets
        >>> members = Members([nn.Linear(1, 1), nn.Linear(1, 1)])
        >>> history = fit_members(
        ...     members, mse, data, optimiser=lambda p: torch.optim.SGD(p, lr=0.3), epochs=20,
        ...     batch_size=8, generators=[torch.Generator().manual_seed(s) for s in range(2)])
        >>> members.stack.weight.flatten()
        tensor([3.0000, 5.0000], grad_fn=...)
    """
    _check(data, epochs, batch_size, generators, clip)
    company = _Company(model, optimiser(model.parameters()), len(generators))
    rates = [float(group["lr"]) for group in company.optimiser.param_groups]
    rows = data[0].shape[1]
    starts = range(0, rows, batch_size)
    losses = torch.zeros(epochs, company.size, dtype=torch.float64)
    for epoch in range(epochs):
        order = torch.stack([torch.randperm(rows, generator=g) for g in generators])
        for k, start in enumerate(starts):
            step = epoch * len(starts) + k
            if schedule is not None:
                factor = schedule(step / (epochs * len(starts)))
                for group, rate in zip(company.optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            wanted = order[:, start : start + batch_size]
            values = company.step(loss, [_rows(tensor, wanted) for tensor in data], clip, step)
            losses[epoch] += values.double().cpu() * (wanted.shape[1] / rows)
    company.put_back()
    return MembersHistory(losses, tuple(company.stopped))


def clip_members(model: nn.Module, members: int, most: float | None) -> Tensor:
    """Scale every member's gradient down to a norm of at most ``most``; return the norms before.

    As :func:`torch.nn.utils.clip_grad_norm_` does for one model.

    Args:
        model: made of :class:`companion.models.Members`.
        members: how many there are.
        most: the largest norm, above 0; ``None`` changes nothing.

    Example:
        >>> from companion.models import Members
        >>> model = Members([nn.Linear(1, 1, bias=False) for _ in range(2)])
        >>> model.stack.weight.grad = torch.tensor([[[0.5]], [[8.0]]])
        >>> clip_members(model, 2, most=2.0)
        tensor([0.5000, 8.0000])
        >>> model.stack.weight.grad.flatten()
        tensor([0.5000, 2.0000])
    """
    return _clipped(_axes(model, members), most)


def _clipped(axes: Mapping[Tensor, int], most: float | None) -> Tensor:
    grads = [_slices(p.grad, axis) for p, axis in axes.items() if p.grad is not None]
    norms = [torch.linalg.vector_norm(grad.reshape(len(grad), -1), dim=1) for grad in grads]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    if most is not None:
        factors = (most / (total + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factors.view(-1, *[1] * (grad.ndim - 1)))
    return total


class _Company:
    """Members at work: who has stopped, and with which values."""

    def __init__(self, model: nn.Module, optimiser: Optimizer, size: int) -> None:
        if not isinstance(optimiser, _ELEMENTWISE):
            raise TypeError(
                f"optimiser: {type(optimiser).__name__} is not allowed; it must step every number "
                f"on its own, as {', '.join(kind.__name__ for kind in _ELEMENTWISE)} do"
            )
        self.model, self.optimiser, self.size = model, optimiser, size
        self.axes = _axes(model, size)
        self.stopped: list[int | None] = [None] * size
        self.kept: dict[int, list[Tensor]] = {}

    @property
    def left(self) -> list[int]:
        """The members that have not stopped."""
        return [k for k, step in enumerate(self.stopped) if step is None]

    def step(
        self, loss: Callable[..., Tensor], batch: list[Tensor], clip: float | None, step: int
    ) -> Tensor:
        """Take a step; return every member's loss, NaN for those that have stopped."""
        while self.left:
            self._mirror(batch)
            try:
                values = _checked(loss(self.model, *batch), self.size)
            except NonFiniteError:
                self._stop(self._culprits(loss, batch), step)
                continue
            self._stop(self._failing(values), step)
            if not self.left:
                break
            self.optimiser.zero_grad()
            values[self.left].sum().backward()  # type: ignore[no-untyped-call]
            self._stop(self._failing(_clipped(self.axes, clip)), step)
            self.optimiser.step()
            known = torch.full_like(values, torch.nan, requires_grad=False)
            known[self.left] = values.detach()[self.left]
            return known
        return torch.full((self.size,), torch.nan)

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the members that have stopped the values that they had then."""
        for k, values in self.kept.items():
            for tensor, value in zip(self._tensors(), values, strict=True):
                tensor[k] = value

    def _tensors(self) -> list[Tensor]:
        return [_slices(tensor.detach(), axis) for tensor, axis in self.axes.items()]

    def _failing(self, values: Tensor) -> list[int]:
        finite = values.detach().isfinite().tolist()
        return [k for k in self.left if not finite[k]]

    def _stop(self, members: Sequence[int], step: int) -> None:
        for k in members:
            self.stopped[k] = step
            self.kept[k] = [tensor[k].clone() for tensor in self._tensors()]

    @torch.no_grad()
    def _mirror(self, batch: list[Tensor], whom: int | None = None) -> None:
        """Let those that have stopped, or all, do what one of the others does: that is finite."""
        one = self.left[0] if whom is None else whom
        for k in range(self.size):
            if k != one and (whom is not None or k not in self.left):
                for tensor in (*self._tensors(), *batch):
                    tensor[k] = tensor[one]

    @torch.no_grad()
    def _culprits(self, loss: Callable[..., Tensor], batch: list[Tensor]) -> list[int]:
        """Return whose solve fails: it fails too if all do what this member does."""
        before, found = [tensor.clone() for tensor in self._tensors()], []
        for k in self.left:
            try:
                rows = [tensor.clone() for tensor in batch]
                self._mirror(rows, whom=k)
                loss(self.model, *rows)
            except NonFiniteError:
                found.append(k)
            for tensor, value in zip(self._tensors(), before, strict=True):
                tensor.copy_(value)
        if not found:
            raise ValueError("loss: it fails for all members at once, and for none on its own")
        return found


def _axes(model: nn.Module, members: int) -> dict[Tensor, int]:
    """Return the members' axis of every parameter and buffer: after those of a block's layers."""
    axes: dict[Tensor, int] = {p: p.dim() - rank for p, rank in own_rank(model).items()}
    stacked = {b for m in model.modules() if isinstance(m, DepthWeights) for b in m.buffers()}
    axes |= {buffer: int(buffer in stacked) for buffer in model.buffers()}
    for tensor, axis in axes.items():
        if tensor.dim() <= axis or tensor.shape[axis] != members:
            raise ValueError(
                f"model: a parameter of shape {tuple(tensor.shape)} is not allowed; it must have "
                f"{members} members, one a generator, along axis {axis}"
            )
    return axes


def _slices(tensor: Tensor, axis: int) -> Tensor:
    """Return a view with the members first."""
    return tensor.movedim(axis, 0)


def _checked(values: Tensor, size: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (size,):
        found = tuple(values.shape) if isinstance(values, Tensor) else repr(values)
        raise ValueError(
            f"loss: a value of shape {found} is not allowed; it must be ({size},), the mean loss "
            "of every member"
        )
    return values


def _rows(tensor: Tensor, wanted: Tensor) -> Tensor:
    wanted = wanted.to(tensor.device)
    return tensor[torch.arange(len(wanted), device=tensor.device).unsqueeze(1), wanted]


def _check(
    data: Sequence[Tensor],
    epochs: int,
    batch_size: int,
    generators: Sequence[torch.Generator],
    clip: float | None,
) -> None:
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    if not generators or not all(isinstance(g, torch.Generator) for g in generators):
        raise TypeError(
            f"generators: {generators!r} is not allowed; give one torch.Generator a member"
        )
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: {clip!r} is not allowed; it must be above 0, or None")
    check_rows("data", data)
    shapes = [tuple(tensor.shape) for tensor in data]
    wanted = {(len(generators), *shape[1:2]) for shape in shapes}
    if {shape[:2] for shape in shapes} != wanted or len(wanted) > 1 or shapes[0][1:2] < (1,):
        raise ValueError(
            f"data: shapes {shapes} are not allowed; they must begin with {len(generators)} "
            "members, one a generator, and equally many rows, at least 1"
        )
