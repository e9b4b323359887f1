"""The optimiser's state when weight functions are refined."""

from torch import Tensor
from torch.optim import Optimizer

from companion.basis import PiecewiseLinear


def split_optimiser_state(optimiser: Optimizer) -> None:
    """Refine the optimiser's state as the weight functions of its parameters have been refined.

    Momenta and second moments, of $n$ rows along the leading axis, follow their parameter:

    - $kn$ rows, from splitting the cells of :class:`~companion.basis.PiecewiseConstant`: every row
      is copied $k$ times, so that all copies keep moving as the original did;
    - $2n - 1$ rows, from splitting those of :class:`~companion.basis.PiecewiseLinear`: the mean of
      two neighbours is put between them, as for the weights themselves.

    State of the parameter's own shape, and scalars such as step counts, stay as they are. Call it
    after each refinement: two at once can look like another one, such as 3 nodes that became 9.

    Raises:
        ValueError: a state tensor whose shape does not fit its parameter in this way.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> weight = nn.Parameter(torch.ones(1, 2))
        >>> adam = torch.optim.Adam([weight])
        >>> weight.sum().backward(); adam.step()
        >>> weight.data = weight.data.repeat_interleave(2, dim=0)
        >>> split_optimiser_state(adam)
        >>> adam.state[weight]["exp_avg"].shape
        torch.Size([2, 2])
    """
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.ndim == 0 or value.shape == parameter.shape:
                continue
            old, new = value.shape[0], parameter.shape[0]
            if value.shape[1:] == parameter.shape[1:] and new % old == 0:
                state[name] = value.repeat_interleave(new // old, dim=0)
            elif value.shape[1:] == parameter.shape[1:] and new == 2 * old - 1:
                state[name] = PiecewiseLinear(cells=old - 1).refine(value)
            else:
                raise ValueError(
                    f"optimiser state {name!r} of shape {tuple(value.shape)} cannot be split for a "
                    f"parameter of shape {tuple(parameter.shape)}"
                )
