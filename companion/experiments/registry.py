"""How experiments are declared, found and called."""

import importlib
import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from companion import records
from companion.claims import CATALOGUE
from companion.experiments.running import Report, Run, open_folder
from companion.listing import locate, unknown
from companion.machine import device_name, package_versions, resolve_device
from companion.results import SCHEMA, Claim, Findings, Provenance, Result, frozen
from companion.sources import source_hash
from companion.train import Team

TIERS = ("smoke", "full", "tiny")


Bound = float | Mapping[str, float] | None
"""A number, or one for every value of the parameter ``dataset``."""


class Row(NamedTuple):
    """A claim as it is declared, before anything ran.

    Parameters in braces, such as ``{depths[0]}`` or ``{depths[-1]}``, are filled in, and so are the
    numbers ``deciding`` of the function's :class:`~companion.results.Findings`.

    Attributes:
        id: the claim's ID in the catalogue.
        scalar: the name of the scalar that decides it.
        low: smallest value that agrees with the claim, or ``None``; where data sets differ, a
            mapping. Data sets that it leaves out do not decide the claim.
        high: largest value, likewise.
        text: what is measured, in one line.
        note: what to know about the number, in particular why a recorded one misses.
    """

    id: str
    scalar: str
    low: Bound
    high: Bound
    text: str
    note: str = ""

    def decide(self, numbers: Mapping[str, float], parameters: Mapping[str, Any]) -> Claim | None:
        """Return the claim with what was observed; a ``KeyError`` names a scalar not there."""
        dataset = parameters.get("dataset")
        if any(isinstance(at, Mapping) and dataset not in at for at in (self.low, self.high)):
            return None
        filled = {
            **numbers,
            **{name: _Items(v) if isinstance(v, tuple) else v for name, v in parameters.items()},
        }
        name, text, note = (words.format(**filled) for words in (self.scalar, self.text, self.note))
        if name not in numbers:
            known = sorted(numbers)
            raise KeyError(f"claim {self.id}: no scalar {name!r} was found; there are {known}")
        low, high = (
            at[str(dataset)] if isinstance(at, Mapping) else at for at in (self.low, self.high)
        )
        return Claim(self.id, text, float(numbers[name]), low, high, note)


class _Items(tuple[Any, ...]):
    """A tuple in which a format string finds the last item as ``{name[-1]}``, too."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(int(index))


Declared = tuple[str, str, Bound, Bound, str] | tuple[str, str, Bound, Bound, str, str]
"""What a :class:`Row` is made of."""


@dataclass(frozen=True)
class Experiment:
    """A function with an ID, the claims it decides and the parameters of its tiers.

    Call it to get a :class:`~companion.results.Result`. Made by :func:`experiment`, which says what
    the attributes are; ``rows`` are the claims that one scalar decides.
    """

    id: str
    title: str
    paper: str
    claims: tuple[str, ...]
    rows: tuple[Row, ...]
    tiers: Mapping[str, Mapping[str, Any]]
    tolerance: float
    machine_dependent: tuple[str, ...]
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
        models: Path | None = None,
        team: Team | None = None,
        **overrides: Any,
    ) -> Result:
        """Run the experiment.

        The smoke and tiny tiers run on one CPU thread, so that their numbers do not depend on how
        many cores a machine has; their tensors are too small to gain from more. Experiments that
        train with :attr:`Run.dtype` are in double precision in the tier ``tiny``.

        Args:
            tier: ``"smoke"``, ``"full"`` or ``"tiny"``.
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
            models: folder to keep trained models in, one file a part; ``None`` keeps none.
            team: the processes that share the run; those that ``torchrun`` started if ``None``.
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
            raise ValueError(f"every: {every} is not allowed; it must lie between 0 and 60 seconds")
        place = resolve_device(device)
        identity = self.identity(tier, seed, place, parameters)
        team = Team.running() if team is None else team
        if folder is not None and team.rank == 0:
            open_folder(folder, identity, resume)
        if folder is None and team.size > 1:
            raise ValueError(
                f"folder: None is not allowed; {team.size} processes must share a folder"
            )
        team.wait()
        start, worked = time.perf_counter(), _processor_seconds()
        dtype = torch.float64 if tier == "tiny" else torch.float32
        own = Run(seed, place, folder, every, report, data, models, team, dtype)
        with _threads(identity["provenance"]["threads"]):
            findings = self.function(own, **parameters)
        findings = self._decided(findings, parameters)
        provenance = Provenance(
            **identity["provenance"],
            versions=package_versions(),
            seconds=round(time.perf_counter() - start, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            processor_seconds=round(_processor_seconds() - worked, 3),
        )
        return Result(self.id, findings, provenance)

    def parameters(self, tier: str, **overrides: Any) -> dict[str, Any]:
        """Return the parameters of ``tier`` with ``overrides`` applied.

        Lists become tuples and whole numbers pass for floats.

        Raises:
            ValueError: unknown tier or parameter, and the message lists the known ones; an empty
                list, or a whole number below 1, for one that is not.
            TypeError: an override of another type than the tier's value.
        """
        if tier not in self.tiers:
            raise ValueError(unknown("tier", tier, self.tiers))
        values = dict(self.tiers[tier])
        for name, value in overrides.items():
            if name not in values:
                raise ValueError(unknown(f"parameter of {self.id}", name, sorted(values)))
            values[name] = _like(values[name], frozen(value), name)
        return values

    def identity(
        self, tier: str, seed: int, device: torch.device, parameters: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return everything that decides the numbers of a run."""
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise ValueError(
                f"seed: {seed!r} is not allowed; it must be an integer from 0 to 2^63 - 1"
            )
        if device.type not in ("cpu", "cuda"):
            raise ValueError(
                f"device: {str(device)!r} is not allowed; it must be cpu, cuda or cuda:INDEX"
            )
        return {
            "schema": SCHEMA,
            "experiment": self.id,
            "provenance": {
                "tier": tier,
                "seed": seed,
                "parameters": dict(parameters),
                "device": device_name(device),
                "threads": torch.get_num_threads() if tier == "full" else 1,
                "source": self.source,
            },
        }

    @property
    def source(self) -> str:
        """Hash of the code the experiment rests on."""
        return source_hash([self.function.__module__])

    def _decided(self, findings: Findings, parameters: Mapping[str, Any]) -> Findings:
        """Add the claims that rows declare to those the function decided itself."""
        numbers = {**findings.scalars, **findings.deciding}
        rows = (row.decide(numbers, parameters) for row in self.rows)
        claims = (*(claim for claim in rows if claim is not None), *findings.claims)
        if (decided := {claim.id for claim in claims}) != set(self.claims):
            raise RuntimeError(f"{self.id} declares {self.claims} but decided {sorted(decided)}")
        return Findings(findings.scalars, findings.curves, claims, findings.data)


def experiment(
    id: str,
    title: str,
    *,
    paper: str,
    claims: tuple[Declared | str, ...],
    full: Mapping[str, Any],
    tiny: Mapping[str, Any] | None = None,
    tolerance: float = 1e-6,
    machine_dependent: tuple[str, ...] = (),
) -> Callable[[Callable[..., Findings]], Experiment]:
    """Declare an experiment: a decorator for a function ``(run, *, name=value, ...) -> Findings``.

    The defaults of the function are the parameters of the tier ``smoke``.

    Args:
        id: the experiment's ID; its file is called after it.
        title: one line on what it does.
        paper: where the papers treat it.
        claims: the claims it decides. A tuple ``(id, scalar, low, high, text)``, with a note behind
            if need be, is decided by that scalar (:class:`Row`), and the text says what the scalar
            is; a bare ID says that the function returns the claim itself.
        full: the parameters of the tier ``full`` that differ from ``smoke``.
        tiny: those of ``tiny``, a run of at most a second that tells whether recorded numbers are
            still what the code computes.
        tolerance: by how much, relative to the largest of an array, the numbers of a tiny run may
            differ between machines: 1e-6 in double precision, 1e-2 in single precision.
        machine_dependent: names of scalars and curves that no two machines share: times, what
            follows from times, and what rounding leaves. No tiny run compares them.

    Raises:
        ValueError: a claim is not in the catalogue, or a tier sets a parameter that the function
            does not take.

    Example:
        >>> @experiment("X", "a sum", paper="none", full={"terms": 300}, claims=(
        ...     ("CL01", "sum", 0, None, "sum of {terms} terms"),
        ... ))
        ... def total(run, *, terms=3):
        ...     return Findings({"sum": sum(range(terms))})
        >>> total(tier="smoke")["sum"], total(terms=5)["sum"], total.claims
        (3.0, 10.0, ('CL01',))
    """
    rows = tuple(Row(*claim) for claim in claims if not isinstance(claim, str))
    ids = tuple(dict.fromkeys(claim if isinstance(claim, str) else claim[0] for claim in claims))
    if strange := [claim for claim in ids if claim not in CATALOGUE]:
        raise ValueError(f"{id}: claims {strange} are not in companion.claims.CATALOGUE")

    def declare(function: Callable[..., Findings]) -> Experiment:
        arguments = inspect.signature(function).parameters.values()
        smoke = {p.name: p.default for p in arguments if p.kind is p.KEYWORD_ONLY}
        for tier, values in (("smoke", smoke), ("full", full), ("tiny", tiny or {})):
            bare = [name for name, value in values.items() if value is inspect.Parameter.empty]
            if wrong := bare + sorted(set(values) - set(smoke)):
                raise ValueError(
                    f"{id}: tier {tier!r}: {wrong} is not allowed; the function has {smoke}, and "
                    "every parameter needs a default"
                )
        tiers = {"smoke": smoke, "full": {**smoke, **full}, "tiny": {**smoke, **(tiny or {})}}
        values = {tier: frozen(tiers[tier]) for tier in TIERS}
        return Experiment(
            id, title, paper, ids, rows, values, tolerance, machine_dependent, function
        )

    return declare


def find(id: str) -> Experiment:
    """Return the experiment with this ID; only its own file is imported.

    Raises:
        ValueError: there is none; the message names the nearest ID.

    Example:
        >>> find("S22-F3a").claims
        ('CL57', 'CL58')
    """
    module = importlib.import_module(locate(id))
    return next(
        value for value in vars(module).values() if isinstance(value, Experiment) and value.id == id
    )


def run(id: str, *, tier: str = "smoke", seed: int = 0, **arguments: Any) -> Result:
    """Return the recorded result of just this run, or run the experiment if none is recorded.

    A record answers if its ID, tier, seed and parameters are those asked for, and nothing is said
    of how to compute (``device``, ``folder``, ``data``, ...). Where the environment variable
    ``COMPANION_FRESH`` is ``1``, everything is computed.

    The arguments and errors are those of :class:`Experiment` when called.

    Example:
        >>> run("C18-A6").provenance.seconds > 0  # as recorded: no time passed here
        True
    """
    entry = find(id)
    options = set(inspect.signature(Experiment.__call__).parameters) & set(arguments)
    if not options and os.environ.get("COMPANION_FRESH", "") != "1":
        parameters = entry.parameters(tier, **arguments)
        recorded = records.load(id, tier)
        if recorded is not None:
            made = recorded.provenance
            if (made.seed, made.parameters) == (seed, parameters):
                return recorded
    return entry(tier=tier, seed=seed, **arguments)


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


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
            f"{name}: {value!r} is not allowed; it must be a {type(default).__name__} "
            f"like {default!r}"
        )
    if type(default) is int and value < 1 <= default:
        raise ValueError(f"{name}: {value!r} is not allowed; it must be at least 1")
    if isinstance(default, tuple) and default:
        if not value:
            raise ValueError(f"{name}: [] is not allowed; it must hold something like {default!r}")
        return tuple(_like(default[0], item, name) for item in value)
    return value
