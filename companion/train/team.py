"""Several processes that train one model together."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from companion.train.rows import data_parallel


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
        """Return the team that ``torch.distributed`` has connected; a process on its own is one.

        Example:
            >>> Team.running()
            Team(rank=0, size=1)
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, rows: Tensor) -> tuple[Tensor, float]:
        r"""Return this process's part of a batch's rows, and the weight of its mean loss.

        The weight is such that the mean over processes of weight times loss is the mean loss over
        the batch. A process without a row gets one whose weight is 0, as all must take part.

        Example:
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
        return data_parallel(model, device_ids=[device] if device.type == "cuda" else None)

    @contextmanager
    def united(self) -> Iterator[None]:
        """Turn an error in one of several processes into one that should end them all.

        The others wait for this process's gradients, so that whoever calls must not go on.

        Raises:
            RuntimeError: in place of any other error, if there are several processes.
        """
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            raise RuntimeError(
                f"process {self.rank} of {self.size} cannot go on, so the others cannot: {error}"
            ) from error

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

    def wait(self) -> None:
        """Wait until every process has come to this point."""
        if self.size > 1:
            gc.collect()  # a process that exits while a wrapped network is alive may abort
            dist.barrier()


@contextmanager
def connected() -> Iterator[Team]:
    """Connect the processes that ``torchrun`` started, and part them at the end.

    Tensors on the CPU travel by gloo, those on a GPU by NCCL. The processes of one machine go round
    its GPUs. One that waits does so for as long as the others need.

    Example:
        >>> with connected() as team:
        ...     team.size
        1
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield Team()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group(backend, timeout=timedelta(days=30))
    try:
        team = Team.running()
        yield team
        team.wait()
    finally:
        dist.destroy_process_group()
