"""Several models of one architecture side by side, in one call."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from companion.arguments import check_type
from companion.block import ode_blocks
from companion.depth_weights import first_difference

__all__ = ["Members"]

# Applied to every number on its own, so that a leading axis more is no matter.
_ELEMENTWISE = (
    nn.Identity, nn.Tanh, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.GELU, nn.ELU, nn.CELU, nn.Softplus,
    nn.LeakyReLU, nn.Hardtanh, nn.Tanhshrink, nn.LogSigmoid,
)  # fmt: skip


class Members(nn.Module):
    r"""Models of one architecture, with their values along a leading axis: seeds, penalties, data.

    A small network costs as many calls as a large one; $S$ of them in one call cost little more.
    Nothing passes between the members: each computes what it does alone, and draws its own random
    numbers in dropout. Train them together with
    :func:`companion.train.fit_members`.

    A block solves for all members at once if they are inside it, in its residual:
    ``OdeBlock(lambda: Members([unit() for unit in units]), ...)``, with other ``Members`` for the
    stem and the head. :func:`~companion.odeint` takes ``Members`` as a field in the same way, for
    fields of the state alone.

    Args:
        models: at least one module, all of one structure, without blocks. Their values are copied.

    Attributes:
        size: number of members.

    Shapes:
        Every input has the members' axis first, ``(members, *shape)``, and so has the output:
        ``x.expand(size, *x.shape)`` gives all of them the same ``x``.

    Raises:
        TypeError: for something else than modules.
        ValueError: no module, modules of different structure, or a block in one.

    Source:
        ``torch.func.stack_module_state``, kept as parameters of a module.

    Example:
        >>> from companion.train import seeded
        >>> def net(seed):
        ...     with seeded(seed):
        ...         return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> members = Members([net(seed) for seed in range(3)])
        >>> x = torch.ones(3, 5, 2)
        >>> members(x).shape
        torch.Size([3, 5, 1])
        >>> bool(torch.allclose(members(x)[2], net(2)(x[2])))
        True
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        models = _checked_models(models)
        self.size = len(models)
        self.stack = copy.deepcopy(models[0])
        made: dict[int, Tensor] = {}  # by identity: what is tied stays tied
        for name, param in models[0].named_parameters(remove_duplicate=False):
            values = torch.stack([m.get_parameter(name).detach() for m in models])
            value = made.setdefault(id(param), nn.Parameter(values, param.requires_grad))
            holder, _, leaf = name.rpartition(".")
            self.stack.get_submodule(holder)._parameters[leaf] = value  # type: ignore[assignment]
        for name, buffer in models[0].named_buffers(remove_duplicate=False):
            value = made.setdefault(
                id(buffer), torch.stack([model.get_buffer(name) for model in models])
            )
            holder, _, leaf = name.rpartition(".")
            self.stack.get_submodule(holder)._buffers[leaf] = value

    def forward(self, *inputs: Tensor) -> Any:
        """Return what every member makes of its own input."""
        for value in inputs:
            check_type("x", value, Tensor)
            if value.ndim < 1 or len(value) != self.size:
                raise ValueError(
                    f"x: shape {tuple(value.shape)} is not allowed; its first axis must be that of "
                    f"the {self.size} members"
                )
        layers = _chain(self.stack)
        if layers is not None and len(inputs) == 1 and inputs[0].ndim > 2:
            return _run(layers, inputs[0])
        params = dict(self.stack.named_parameters(remove_duplicate=False))
        values = {**params, **dict(self.stack.named_buffers(remove_duplicate=False))}

        def call(values: dict[str, Tensor], *own: Tensor) -> Any:
            return functional_call(self.stack, values, own, tie_weights=False)

        return torch.func.vmap(call, randomness="different")(values, *inputs)

    def member(self, index: int) -> nn.Module:
        """Return one of the models on its own, a copy with its present values.

        Example:
            >>> Members([nn.Linear(2, 3), nn.Linear(2, 3)]).member(1)
            Linear(in_features=2, out_features=3, bias=True)
        """
        check_type("index", index, int)
        if not -self.size <= index < self.size:
            raise ValueError(f"index: {index!r} is not allowed; there are {self.size} members")
        own = copy.deepcopy(self.stack)
        for param in own.parameters():  # each once, if tied
            param.data, param.grad = param.data[index].clone(), None
        for buffer in own.buffers():
            buffer.data = buffer.data[index].clone()
        return own


def _chain(model: nn.Module) -> list[nn.Module] | None:
    """Return the layers of a perceptron: those need no vmap, which costs as much as they do."""
    layers = list(model) if type(model) is nn.Sequential else [model]
    plain = all(type(layer) is nn.Linear or type(layer) in _ELEMENTWISE for layer in layers)
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return layers if plain and not hooked else None


def _run(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = _affine(layer, x) if isinstance(layer, nn.Linear) else layer(x)
    return x


def _affine(layer: nn.Linear, x: Tensor) -> Tensor:
    flat = x.flatten(1, -2)  # baddbmm takes three axes
    weight, bias = layer.weight.mT, layer.bias
    value = flat @ weight if bias is None else torch.baddbmm(bias.unsqueeze(1), flat, weight)
    return value.reshape(*x.shape[:-1], value.shape[-1])


def _checked_models(given: Iterable[nn.Module]) -> list[nn.Module]:
    if not isinstance(given, Iterable):
        raise TypeError(f"models: {type(given).__name__} is not allowed; give a list of modules")
    models = list(given)
    if not models or not all(isinstance(model, nn.Module) for model in models):
        kinds = [type(model).__name__ for model in models]
        raise TypeError(f"models: {kinds} is not allowed; give at least one module, and only those")
    if any(ode_blocks(model) for model in models):
        raise ValueError(
            "models: a block in a member is not allowed; put the members into the block: "
            "OdeBlock(lambda: Members(...), ...)"
        )
    for k, model in enumerate(models):
        if difference := first_difference(models[0], model):
            raise ValueError(
                f"models: number {k} is not allowed; it differs from number 0 in {difference}"
            )
    return models
