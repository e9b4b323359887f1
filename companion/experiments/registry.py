"""How experiments are declared, found and called."""

import functools
import importlib
import inspect
import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from companion.experiments.running import Report, Run, open_folder
from companion.machine import device_name, package_versions, resolve_device
from companion.results import SCHEMA, Findings, Provenance, Result, frozen
from companion.sources import source_hash
from companion.train import Team

TIERS = ("smoke", "full")


@dataclass(frozen=True)
class Experiment:
    """A function with an ID, the claims it decides and the parameters of its tiers.

    Call it to get a :class:`~companion.results.Result`. Made by :func:`experiment`.

    Attributes:
        id: the experiment's ID.
        title: one line on what it does.
        paper: where the papers treat it.
        claims: IDs of the claims it decides.
        tiers: for each tier the values of all parameters, by name.
        function: computes the findings from a :class:`Run` and the parameters.
    """

    id: str
    title: str
    paper: str
    claims: tuple[str, ...]
    tiers: Mapping[str, Mapping[str, Any]]
    function: Callable[..., Findings]

    def __call__(
        self,
        *,
        tier: str = "smoke",
        seed: int = 0,
        device: str | torch.device = "cpu",
        folder: Path | None = None,
        resume: bool = False,
        every: float = 30.0,
        report: Report = lambda fraction, part: None,
        data: Path | None = None,
        **overrides: Any,
    ) -> Result:
        """Run the experiment.

        The smoke tier runs on one CPU thread, so that its numbers do not depend on how many cores
        a machine has; its tensors are too small to gain from more.

        Args:
            tier: ``"smoke"`` or ``"full"``.
            seed: seed of the whole run, from 0 to $2^{63} - 1$.
            device: where to compute: the CPU or a CUDA device.
            folder: where to keep finished parts and snapshots; ``None`` keeps nothing. It stays, so
                that nothing is lost before the result is saved; remove it then. Several processes
                need one that all of them see.
            resume: continue from what ``folder`` holds.
            every: longest time in seconds between two snapshots, at most 60.
            report: called with the finished fraction and the name of the part at work.
            data: folder with data sets that do not come with the package; ``None`` takes the one
                that the environment variable ``COMPANION_DATA`` names.
            **overrides: parameters that differ from the tier's.

        Returns:
            The result with its provenance.

        Raises:
            ValueError: unknown tier, parameter or device, ``seed`` or ``every`` out of range, a
                folder with parts that this run must not go on from, or none for several processes.
            TypeError: a parameter of another type than the tier's.
        """
        parameters = self.parameters(tier, **overrides)
        if not 0 <= every <= 60:
            raise ValueError(f"every must lie between 0 and 60 seconds; got {every}")
        place = resolve_device(device)
        identity = self.identity(tier, seed, place, parameters)
        team = Team.running()
        if folder is not None and team.rank == 0:
            open_folder(folder, identity, resume)
        if folder is None and team.size > 1:
            raise ValueError(f"folder must be given, for {team.size} processes to share; got None")
        team.wait()
        start = time.perf_counter()
        with _threads(identity["provenance"]["threads"]):
            findings = self.function(
                Run(seed, place, folder, every, report, data, team), **parameters
            )
        self._check_claims(findings)
        provenance = Provenance(
            **identity["provenance"],
            versions=package_versions(),
            seconds=round(time.perf_counter() - start, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return Result(self.id, findings, provenance)

    def parameters(self, tier: str, **overrides: Any) -> dict[str, Any]:
        """Return the parameters of ``tier`` with ``overrides`` applied.

        Lists become tuples and whole numbers pass for floats.

        Raises:
            ValueError: unknown tier or parameter; the message lists the known ones.
            TypeError: an override of another type than the tier's value.
        """
        if tier not in self.tiers:
            raise ValueError(f"tier must be one of {list(self.tiers)}; got {tier!r}")
        values = dict(self.tiers[tier])
        for name, value in overrides.items():
            if name not in values:
                raise ValueError(f"{self.id} has no parameter {name!r}; it has {sorted(values)}")
            values[name] = _like(values[name], frozen(value), name)
        return values

    def identity(
        self, tier: str, seed: int, device: torch.device, parameters: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return everything that decides the numbers of a run.

        Raises:
            ValueError: a seed that is no integer from 0 to 2^63 - 1, or a device that is neither
                the CPU nor a CUDA device.
        """
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise ValueError(f"seed must be an integer from 0 to 2^63 - 1; got {seed!r}")
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu, cuda or cuda:INDEX; got {str(device)!r}")
        return {
            "schema": SCHEMA,
            "experiment": self.id,
            "provenance": {
                "tier": tier,
                "seed": seed,
                "parameters": dict(parameters),
                "device": device_name(device),
                "threads": 1 if tier == "smoke" else torch.get_num_threads(),
                "source": self.source,
            },
        }

    @property
    def source(self) -> str:
        """Hash of the code the experiment rests on."""
        return source_hash([self.function.__module__])

    def _check_claims(self, findings: Findings) -> None:
        decided = {claim.id for claim in findings.claims}
        if decided != set(self.claims):
            raise RuntimeError(f"{self.id} declares {self.claims} but decided {sorted(decided)}")


def experiment(
    *,
    id: str,
    title: str,
    paper: str,
    claims: tuple[str, ...],
    tiers: Mapping[str, Mapping[str, Any]],
) -> Callable[[Callable[..., Findings]], Experiment]:
    """Declare an experiment: a decorator for a function ``(run, *, parameters...) -> Findings``.

    Args:
        id: the experiment's ID.
        title: one line on what it does.
        paper: where the papers treat it.
        claims: IDs of the claims it decides. They are in the catalogue; a test sees to that, so
            that the catalogue's wording is no part of the code behind a number.
        tiers: the values of all parameters, for ``"smoke"`` and ``"full"``.

    Raises:
        ValueError: other tiers than these two, or a tier whose names differ from the function's
            keyword-only parameters.

    Example:
        >>> @experiment(id="X", title="a sum", paper="none", claims=(),
        ...             tiers={"smoke": {"terms": 3}, "full": {"terms": 300}})
        ... def total(run, *, terms):
        ...     return Findings({"sum": sum(range(terms))})
        >>> total(tier="smoke")["sum"], total(terms=5)["sum"]
        (3.0, 10.0)
    """
    if tuple(tiers) != TIERS:
        raise ValueError(f"{id}: tiers must be {TIERS}; got {tuple(tiers)}")

    def declare(function: Callable[..., Findings]) -> Experiment:
        parameters = inspect.signature(function).parameters.values()
        names = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        for tier, values in tiers.items():
            if set(values) != names:
                raise ValueError(
                    f"{id}: tier {tier!r} sets {sorted(values)}, the function takes {sorted(names)}"
                )
        values = {tier: frozen(values) for tier, values in tiers.items()}
        return Experiment(id, title, paper, claims, values, function)

    return declare


@functools.cache
def experiments() -> Mapping[str, Experiment]:
    """Return all experiments of this package by ID, in order of ID.

    They are found by looking: every module of ``companion.experiments`` is imported on the first
    call.

    Example:
        >>> "S22-F3a" in experiments()
        True
    """
    found: dict[str, Experiment] = {}
    package = importlib.import_module("companion.experiments")
    for entry in pkgutil.iter_modules(package.__path__, "companion.experiments."):
        for value in vars(importlib.import_module(entry.name)).values():
            if isinstance(value, Experiment) and value.function.__module__ == entry.name:
                if value.id in found:
                    raise RuntimeError(f"two experiments are called {value.id!r}")
                found[value.id] = value
    return dict(sorted(found.items()))


def find(id: str) -> Experiment:
    """Return the experiment with this ID.

    Raises:
        ValueError: there is none; the message lists the known IDs.

    Example:
        >>> find("S22-F3a").claims
        ('CL57', 'CL58')
    """
    if id not in experiments():
        raise ValueError(f"experiment must be one of {list(experiments())}; got {id!r}")
    return experiments()[id]


def run(id: str, **arguments: Any) -> Result:
    """Run the experiment with this ID: ``run("S22-F3a", tier="smoke", depths=(2, 4))``.

    The arguments and errors are those of :class:`Experiment` when called.
    """
    return find(id)(**arguments)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _like(default: Any, value: Any, name: str) -> Any:
    """Check that an override has the type of the value it replaces."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise TypeError(
            f"parameter {name!r} must be a {type(default).__name__} like {default!r}; got {value!r}"
        )
    if isinstance(default, tuple) and default:
        return tuple(_like(default[0], item, name) for item in value)
    return value
