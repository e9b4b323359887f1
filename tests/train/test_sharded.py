"""FSDP2 and torch.distributed.checkpoint with a block, in two processes; `make weekly` runs it."""

import gc
import os

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from arrivals import data, loss, model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

GRADIENTS = ["backprop", "checkpoint", "reconstruct", "adjoint"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("COMPANION_FRESH") != "1", reason="`make weekly` runs it"),
]


def shard(net):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (*net, net):
        fully_shard(part, mesh=mesh)
    return net


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for gradient in GRADIENTS:
        net = shard(model(gradient))
        stack = net[1].weights.stacks.inner.weight
        assert stack.to_local().shape == (2, 3, 3)  # divided in depth
        sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            sgd.zero_grad()
            loss(net, data().chunk(2)[rank]).backward()
            sgd.step()
        whole = {name: p.full_tensor() for name, p in net.named_parameters()}
        if rank == 0:
            torch.save(whole, f"{folder}/{gradient}.pt")
        dcp.save(net.state_dict(), checkpoint_id=f"{folder}/{gradient}")
        again = shard(model(gradient))
        for p in again.parameters():
            torch.nn.init.zeros_(p)
        state = again.state_dict()
        dcp.load(state, checkpoint_id=f"{folder}/{gradient}")
        again.load_state_dict(state)
        assert all(torch.equal(p.full_tensor(), whole[n]) for n, p in again.named_parameters())
        del net, again
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def test_sharded_training_is_training_alone_and_any_number_of_processes_loads_it(tmp_path):
    torch.multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    for gradient in GRADIENTS:
        net, fresh = model(gradient), model(gradient)
        sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            sgd.zero_grad()
            loss(net, data()).backward()
            sgd.step()
        found = torch.load(tmp_path / f"{gradient}.pt")
        for name, p in net.named_parameters():
            torch.testing.assert_close(found[name], p.detach(), rtol=1e-12, atol=1e-14)
        state = {name: torch.zeros_like(value) for name, value in fresh.state_dict().items()}
        dcp.load(state, checkpoint_id=tmp_path / gradient)
        fresh.load_state_dict(state)
        for name, p in fresh.named_parameters():
            assert torch.equal(p, found[name])
