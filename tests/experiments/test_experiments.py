"""Declaring, finding and running experiments; records that answer; rows that decide claims."""

import dataclasses

import pytest
import torch

from companion import records
from companion.chapters import CHAPTERS
from companion.claims import CATALOGUE
from companion.experiments import experiment, find, run
from companion.experiments.freshness import checked, moved, tiny
from companion.experiments.registry import Row
from companion.listing import entries
from companion.results import Claim, Findings
from companion.train import Team


def scaled(run, *, terms=(1, 2), rate=0.5):
    draw = torch.rand(1, generator=torch.Generator().manual_seed(run.seed)).item()
    return Findings({"sum": sum(terms) * rate, "draw": draw})


# As if it lay in the package: the provenance hashes the code of the function's module.
scaled.__module__ = "companion.train"


def declare(function=scaled, **changes):
    options = {
        "id": "T",
        "title": "a test",
        "paper": "none",
        "claims": (("CL01", "sum", 0.0, 2.0, "sum of {terms[0]} and more"),),
        "full": {"terms": (1, 2, 3)},
        "tiny": {"terms": (1,)},
    }
    options |= changes
    return experiment(options.pop("id"), options.pop("title"), **options)(function)


def test_tiers_overrides_and_provenance():
    entry = declare()
    assert entry()["sum"] == 1.5
    assert entry(tier="tiny")["sum"] == 0.5
    full = entry(tier="full", seed=4, terms=[4, 5], rate=1)
    assert full["sum"] == 9.0
    made = full.provenance
    assert (made.tier, made.seed) == ("full", 4)
    assert made.parameters == {"terms": (4, 5), "rate": 1.0}
    assert made.threads == torch.get_num_threads()
    assert made.versions["torch"] == torch.__version__
    assert made.device.startswith("cpu")
    assert entry(seed=1)["draw"] == entry(seed=1)["draw"] != entry(seed=2)["draw"]


def test_the_ends_of_the_range_of_seeds():
    for seed in (0, 2**63 - 1):
        assert declare()(seed=seed).provenance.seed == seed


def test_a_row_decides_its_claim_and_words_it_with_the_parameters():
    (claim,) = declare()(terms=(3, 4)).claims
    assert claim == Claim("CL01", "sum of 3 and more", 3.5, 0.0, 2.0)
    assert not claim.holds
    assert declare()().claim("CL01").holds


def test_a_row_asks_for_a_scalar_that_is_there():
    with pytest.raises(
        KeyError, match=r"claim CL01: no scalar 'total' was found; there are \['draw', 'sum'\]"
    ):
        declare(claims=(("CL01", "total", 0, None, "x"),))()


def test_rows_and_claims_of_the_function_go_together():
    def function(run, *, terms=(1,)):
        return Findings({"x": 1.0}, claims=[Claim("CL02", "y", 2.0, low=1.0)])

    function.__module__ = "companion.train"
    declared = (("CL01", "x", None, 0.5, "x"), "CL02")
    entry = declare(function, claims=declared, full={}, tiny={})
    assert entry.claims == ("CL01", "CL02")
    assert [(claim.id, claim.holds) for claim in entry().claims] == [
        ("CL01", False),
        ("CL02", True),
    ]
    with pytest.raises(RuntimeError, match=r"declares \('CL02', 'CL03'\) but decided \['CL02'\]"):
        declare(function, claims=("CL02", "CL03"), full={}, tiny={})()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"tier": "huge"},
            ValueError,
            r"tier: 'huge' is not allowed; it must be one of \['smoke', 'full', 'tiny'\]",
        ),
        ({"term": (1,)}, ValueError, "parameter of T: 'term' is not allowed; did you mean 'terms'"),
        (
            {"terms": "12"},
            TypeError,
            r"terms: '12' is not allowed; it must be a tuple like \(1, 2\)",
        ),
        ({"terms": (1, 0.5)}, TypeError, r"terms: 0.5 is not allowed; it must be a int like 1"),
        ({"rate": "fast"}, TypeError, r"rate: 'fast' is not allowed; it must be a float like 0.5"),
        ({"rate": True}, TypeError, "rate: True is not allowed; it must be a float"),
        ({"device": "gpu"}, ValueError, r"device must be one of \['cpu'.*got 'gpu'"),
        ({"device": "cuda:99"}, ValueError, r"device must be one of \['cpu'.*got 'cuda:99'"),
        (
            {"device": "meta"},
            ValueError,
            "device: 'meta' is not allowed; it must be cpu, cuda or cuda:INDEX",
        ),
        ({"device": "mps"}, ValueError, "device.*'mps'"),
        (
            {"seed": 1.5},
            ValueError,
            r"seed: 1\.5 is not allowed; it must be an integer from 0 to 2\^63 - 1",
        ),
        ({"seed": True}, ValueError, "seed: True is not allowed"),
        ({"seed": -1}, ValueError, "seed: -1 is not allowed"),
        ({"seed": 2**63}, ValueError, rf"seed: {2**63} is not allowed"),
        ({"every": 61}, ValueError, "every: 61 is not allowed; it must lie between 0 and 60"),
        ({"every": -1}, ValueError, "every: -1 is not allowed"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        declare()(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full": {"term": (1,)}}, r"T: tier 'full': \['term'\] is not allowed"),
        ({"tiny": {"steps": 1}}, r"T: tier 'tiny': \['steps'\] is not allowed"),
        ({"claims": (("CL99", "sum", 0, 1, "x"),)}, r"claims \['CL99'\] are not in .*CATALOGUE"),
        ({"claims": ("Q20-X99",)}, r"claims \['Q20-X99'\] are not in"),
    ],
)
def test_bad_declarations(changes, message):
    with pytest.raises(ValueError, match=message):
        declare(**changes)


def test_every_parameter_needs_a_default():
    def function(run, *, terms, rate=0.5):
        return Findings({})

    with pytest.raises(ValueError, match=r"tier 'smoke': \['terms'\].*needs a default"):
        declare(function)


@pytest.mark.parametrize(
    ("id", "hint"),
    [
        ("S22-F9", "did you mean"),
        ("s22-f3a", "did you mean 'S22-F3a'"),
        ("S22F3a", "did you mean 'S22-F3a'"),
        ("zebra", r"it must be one of \[.*'S22-F3a'"),
    ],
)
def test_an_unknown_id_gets_the_nearest_or_all(id, hint):
    for call in (find, run):
        with pytest.raises(ValueError, match=rf"experiment: '{id}' is not allowed; .*{hint}"):
            call(id)


def test_a_record_answers_for_just_its_run(monkeypatch):
    monkeypatch.delenv("COMPANION_FRESH", raising=False)
    recorded = records.load("C18-A6", "smoke")
    assert run("C18-A6") == recorded
    seeded, few = run("C18-A6", tier="tiny", seed=1), run("C18-A6", fields=1, steps=(4, 8))
    for other in (seeded, few, run("C18-A6", device="cpu", fields=1, steps=(4, 8))):
        assert other.provenance.finished > recorded.provenance.finished
    parameters = dict(recorded.provenance.parameters)
    assert run("C18-A6", **parameters) == recorded


def test_a_fresh_run_computes_what_is_recorded(monkeypatch):
    recorded = records.load("Q20-PC", "smoke")
    monkeypatch.setenv("COMPANION_FRESH", "1")
    monkeypatch.setattr(records, "load", lambda *name: pytest.fail("a record was read"))
    fresh = run("Q20-PC")
    assert fresh.provenance.finished > recorded.provenance.finished
    assert fresh.findings == recorded.findings


def test_every_experiment_is_complete_and_lies_in_its_chapter():
    for id, entry in entries().items():
        made = find(id)
        assert (made.id, made.title, made.claims) == (entry.id, entry.title, entry.claims)
        assert entry.chapter in CHAPTERS
        assert made.title
        assert made.paper
        assert made.function.__doc__


def test_a_claim_is_treated_in_a_chapter_that_decides_it():
    deciding = {}
    for entry in entries().values():
        for claim in entry.claims:
            deciding.setdefault(claim, set()).add(entry.chapter)
    assert {c: d for c, d in deciding.items() if CATALOGUE[c].chapter not in d} == {}


def test_the_listing_says_what_the_code_declares():
    entry, made = entries()["S22-F3a"], find("S22-F3a")
    assert {name: repr(value) for name, value in made.tiers["smoke"].items()} == dict(
        entry.parameters["smoke"]
    )
    assert made.function.__module__ == entry.module


def test_the_catalogue_has_every_claim_of_the_papers():
    assert [id for id in CATALOGUE if id.startswith("CL")] == [f"CL{i:02}" for i in range(1, 66)]
    for statement in CATALOGUE.values():
        assert statement.text
        assert statement.source in {"C18", "Q20", "S22", "here"}
        assert statement.chapter in CHAPTERS
        assert "|" not in statement.text.replace("\\|", "")
        assert statement.text.count("$") % 2 == statement.paper.count("$") % 2 == 0


def test_the_smoke_tier_runs_on_one_thread():
    def count(run, *, terms=(1,), rate=1.0):
        return Findings({"threads": torch.get_num_threads()})

    count.__module__ = "companion.train"
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        entry = declare(count, claims=())
        smoke, full, least = entry(), entry(tier="full"), entry(tier="tiny")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert smoke["threads"] == smoke.provenance.threads == least["threads"] == 1
    assert full["threads"] == full.provenance.threads == 2


def test_numbers_that_moved_are_named():
    entry = declare(machine_dependent=("draw",))
    now = tiny(entry)
    assert now == Findings({"sum": 0.5})
    assert moved(now, Findings({"sum": 0.5 + 1e-8}), 1e-6) == ()
    assert moved(now, Findings({"sum": 0.5 + 1e-5}), 1e-6) == ("sum",)
    assert moved(now, Findings({"sum": float("nan")}), 1e-2) == ("sum",)
    assert moved(Findings({}, {"x": [1.0, 2.0]}), Findings({}, {"x": [1.0]}), 1.0) == ("x",)


def test_a_record_gets_a_tiny_run_and_then_answers_for_it():
    entry = declare(machine_dependent=("draw",))
    first = checked(entry(), entry)
    assert first.tiny == tiny(entry)
    assert first.moved == ()
    assert checked(first, entry) == first
    changed = dataclasses.replace(first, tiny=Findings({"sum": 0.6}))
    assert checked(changed, entry).moved == ("sum",)
    text = checked(changed, entry).to_json()
    assert type(first).from_json(text).moved == ("sum",)


def test_a_tiny_run_needs_no_other_process(monkeypatch):
    """After a run of several processes, the first alone computes it, without a shared folder."""
    entry = declare(machine_dependent=("draw",))
    monkeypatch.setattr(Team, "running", lambda: Team(rank=0, size=2))
    assert tiny(entry) == Findings({"sum": 0.5})
    with pytest.raises(ValueError, match="folder: None is not allowed; 2 processes must share"):
        entry()


def test_a_row_words_what_it_measures():
    row = Row("CL01", "x", None, 1.0, "mean over {seeds} seeds")
    assert row.decide({"x": 2.0}, {"seeds": 3}).text == "mean over 3 seeds"


def test_bounds_may_differ_by_data_set():
    row = Row("CL01", "x_{depths[0]}", {"a": 0.0}, {"a": 1.0}, "{dataset}: {depths[-1]}, {deep:g}")
    numbers = {"x_2": 2.0, "deep": 3.0}
    claim = row.decide(numbers, {"dataset": "a", "depths": (2, 4, 8)})
    assert claim == Claim("CL01", "a: 8, 3", 2.0, 0.0, 1.0)
    assert row.decide(numbers, {"dataset": "b", "depths": (2, 4, 8)}) is None


def test_what_only_decides_claims_is_no_number_of_the_run():
    def function(run, *, terms=(1, 2)):
        return Findings({"sum": 3.0}, deciding={"gap": 0.5, "terms": 7})

    function.__module__ = "companion.train"
    declared = (("CL01", "gap", None, 1.0, "{terms[1]} terms, {sum:g}"),)
    result = declare(function, claims=declared, full={}, tiny={})()
    assert result.claims == (Claim("CL01", "2 terms, 3", 0.5, None, 1.0),)
    assert (result.findings.scalars, result.findings.deciding) == ({"sum": 3.0}, {})
