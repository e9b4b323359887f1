"""Several processes that train one model together."""

import gc
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Team:
    """The processes that share every batch, seen from one of them.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def running(cls) -> "Team":
        """Return the team of ``torch.distributed``.

        Raises:
            ValueError: it is not initialised.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "parallel=True needs several processes that torch.distributed has connected: start "
                "them with torchrun"
            )
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, rows: Tensor) -> tuple[Tensor, float]:
        r"""Return this process's part of a batch's rows, and the weight of its mean loss.

        The weight is such that the mean over processes of weight times loss is the mean loss over
        the batch. A process without a row gets one whose weight is 0, as all must take part.

        Example:
            >>> import torch
            >>> Team(1, 2).share(torch.arange(5))
            (tensor([1, 3]), 0.8)
        """
        if self.size == 1:
            return rows, 1.0
        mine = rows[self.rank :: self.size]
        return (mine, len(mine) * self.size / len(rows)) if len(mine) else (rows[:1], 0.0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the network to call: one whose gradients are averaged over the team."""
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        return DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of all processes' values."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def agree(self, model: nn.Module) -> None:
        """Give every process the buffers of the first, such as running statistics."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def unwrapped(self) -> None:
        """Wait until no process holds its wrapped network; drop this one's before.

        A process that exits while the wrapper is alive may abort.
        """
        if self.size > 1:
            gc.collect()
            dist.barrier()
