"""What every process of ``test_torchrun.py`` does; it writes what it found to a file."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch
from arrivals import COMPARED, average
from torch import nn

from companion.basis import PiecewiseConstant
from companion.block import OdeBlock
from companion.experiments import experiment
from companion.files import load_checkpoint
from companion.results import Findings
from companion.train import Refinement, Snapshot, connected, fit, seeded, step_decay

ROWS = 11  # the last batch of an epoch is odd: the shares differ


def compute(part, x, watch):
    watch.append(x)
    return {"third": x / 3}


def thirds(run, *, parts=7):
    """Seven parts; ``run.watch`` collects those that this process computes."""
    watch = []
    table = run.map(compute, {str(x): (x, watch) for x in range(parts)})
    thirds.watch = watch
    return Findings({name: value["third"] for name, value in table.items()})


# As if it lay in the package: the provenance hashes the code of the function's module.
thirds.__module__ = "companion.train"
THIRDS = experiment("X", "a test", paper="none", claims=(), full={})(thirds)


def model(gradient="backprop", norm=False):
    with seeded(1):
        unit = [nn.Linear(3, 3), nn.Tanh()] + ([nn.BatchNorm1d(3)] if norm else [])
        block = OdeBlock(nn.Sequential(*unit), PiecewiseConstant(2), steps=2, gradient=gradient)
        return nn.Sequential(block, nn.Linear(3, 2)).double()


def data():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(ROWS, 3, generator=generator, dtype=torch.float64)
    return x, x[:, :2].sin()


class OnDemand:
    """The same rows, read when needed and moved by noise from the sample's seed."""

    sha256 = "a" * 64

    def __len__(self):
        return ROWS

    def __getitem__(self, key):
        draw = torch.Generator().manual_seed(key[1])
        noise = torch.randn(3, generator=draw, dtype=torch.float64)
        return data()[0][key[0]] + noise, data()[1][key[0]]


def jitter(x, generator):
    return x + torch.randn(x.shape, generator=generator, dtype=x.dtype)


def loss(net, x, y):
    return ((net(x) - y) ** 2).mean()


CASES = {
    "tensors": {"augment": jitter, "clip": 0.5},
    "on demand": {"samples": OnDemand()},
    "checkpoint": {"gradient": "checkpoint"},
    "reconstruct": {"gradient": "reconstruct"},
    "batch norm": {"norm": True, "batch_size": 6},
    "single rows": {"batch_size": 1},
    "refinement": {"refinement": Refinement(at=(1,))},
}


def train(case, parallel, snapshot=None, epochs=2, loss=loss):
    """Train and return all numbers that the run ends with."""
    options = dict(CASES[case])
    net = model(options.pop("gradient", "backprop"), options.pop("norm", False))
    history = fit(
        net,
        loss,
        options.pop("samples", None) or data(),
        optimiser=lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9),
        epochs=epochs,
        batch_size=options.pop("batch_size", 4),
        generator=torch.Generator().manual_seed(3),
        schedule=step_decay(0.5),
        parallel=parallel,
        snapshot=snapshot,
        **options,
    )
    state = {name: value.tolist() for name, value in net.state_dict().items()}
    return {"state": state, "loss": history["loss"]}


class Killed(BaseException):
    """As if the process ended here."""


def killed(case, snapshot, steps):
    """Train for a number of steps, with a snapshot after each, and stop."""
    left = iter(range(steps))

    def counted(net, x, y):
        if next(left, None) is None:
            raise Killed
        return loss(net, x, y)

    with suppress(Killed):
        train(case, True, snapshot, loss=counted)


def main(folder: Path) -> None:
    with connected() as team:
        found = {"rank": team.rank, "size": team.size}
        result = THIRDS(folder=folder / "parts", resume=True)
        found["scalars"] = dict(result.findings.scalars)
        found["computed"] = thirds.watch
        found["cases"] = {case: train(case, parallel=True) for case in CASES}
        path = folder / f"seen by {team.rank}" / "last.pt"
        train("tensors", True, Snapshot(path, every=0), epochs=1)
        found["wrote a snapshot"] = path.exists()
        shared = Snapshot(folder / "shared.pt", every=0)
        train("tensors", True, shared, epochs=1)
        team.wait()
        found["resumed"] = train("tensors", True, shared)
        refined = Snapshot(folder / "refined.pt", every=0)
        killed("refinement", refined, steps=5)  # in the middle of the epoch after the refinement
        team.wait()
        found["killed after"] = load_checkpoint(refined.path)["refined"]
        found["refined and resumed"] = train("refinement", True, refined)
        found["arrivals"] = {name: average(name, team.rank, team.size) for name in COMPARED}
        (folder / f"{team.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
