import pytest
import torch

from companion.claims import CATALOGUE
from companion.experiments import experiment, experiments, find, run
from companion.experiments.registry import Experiment
from companion.results import Claim, Findings
from companion.sources import closure


def scaled(run, *, terms, rate):
    draw = torch.rand(1, generator=torch.Generator().manual_seed(run.seed)).item()
    findings = {"sum": sum(terms) * rate, "draw": draw}
    return Findings(findings, claims=[Claim("CL01", "x", 1.0, 0.0)])


def test_tiers_overrides_and_provenance():
    entry = declare(scaled)
    assert entry()["sum"] == 1.5
    full = entry(tier="full", seed=4, terms=[4, 5], rate=1)
    assert full["sum"] == 9.0
    made = full.provenance
    assert (made.tier, made.seed) == ("full", 4)
    assert made.parameters == {"terms": (4, 5), "rate": 1.0}
    assert made.threads == torch.get_num_threads()
    assert made.versions["torch"] == torch.__version__
    assert made.device.startswith("cpu")
    assert entry(seed=1)["draw"] == entry(seed=1)["draw"] != entry(seed=2)["draw"]


# As if it lay in the package: the provenance hashes the code of the function's module.
scaled.__module__ = "companion.train"


def test_the_ends_of_the_range_of_seeds():
    for seed in (0, 2**63 - 1):
        assert declare(scaled)(seed=seed).provenance.seed == seed


def declare(function=None, **changes):
    def default(run, *, terms, rate):
        return Findings({"x": terms * rate}, claims=[Claim("CL01", "x", 1.0, 0.0)])

    options = {
        "id": "T",
        "title": "a test",
        "paper": "none",
        "claims": ("CL01",),
        "tiers": {
            "smoke": {"terms": (1, 2), "rate": 0.5},
            "full": {"terms": (1, 2, 3), "rate": 0.5},
        },
    }
    return experiment(**options | changes)(function or default)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tier": "huge"}, ValueError, r"tier must be one of \['smoke', 'full'\]; got 'huge'"),
        ({"term": (1,)}, ValueError, r"no parameter 'term'; it has \['rate', 'terms'\]"),
        ({"terms": "12"}, TypeError, r"'terms' must be a tuple like \(1, 2\); got '12'"),
        ({"terms": (1, 0.5)}, TypeError, r"'terms' must be a int like 1; got 0.5"),
        ({"rate": "fast"}, TypeError, r"'rate' must be a float like 0.5; got 'fast'"),
        ({"rate": True}, TypeError, r"'rate' must be a float"),
        ({"device": "gpu"}, ValueError, r"device must be one of \['cpu'.*got 'gpu'"),
        ({"device": "cuda:99"}, ValueError, r"device must be one of \['cpu'.*got 'cuda:99'"),
        ({"device": "meta"}, ValueError, "device must be cpu, cuda or cuda:INDEX; got 'meta'"),
        ({"device": "mps"}, ValueError, "device must be.*got 'mps'"),
        ({"seed": 1.5}, ValueError, r"seed must be an integer from 0 to 2\^63 - 1; got 1\.5"),
        ({"seed": True}, ValueError, r"seed must be an integer .*got True"),
        ({"seed": -1}, ValueError, r"seed must be an integer .*got -1"),
        ({"seed": 2**63}, ValueError, rf"seed must be an integer .*got {2**63}"),
        ({"every": 61}, ValueError, "every must lie between 0 and 60 seconds; got 61"),
        ({"every": -1}, ValueError, "every must lie between 0 and 60 seconds; got -1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        declare(scaled)(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tiers": {"smoke": {"terms": (1,), "rate": 1.0}}}, r"tiers must be \('smoke', 'full'\)"),
        (
            {"tiers": {"smoke": {"terms": (1,)}, "full": {"terms": (1,)}}},
            r"tier 'smoke' sets \['terms'\], the function takes \['rate', 'terms'\]",
        ),
    ],
)
def test_bad_declarations(changes, message):
    with pytest.raises(ValueError, match=message):
        declare(**changes)


def test_an_experiment_must_decide_the_claims_it_declares():
    with pytest.raises(RuntimeError, match=r"declares \('CL02',\) but decided \['CL01'\]"):
        declare(scaled, claims=("CL02",))()


def test_an_unknown_id_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"experiment must be one of \[.*'S22-F3a'.*got 'S22-F9'"):
        find("S22-F9")
    with pytest.raises(ValueError, match="got 'S22-F9'"):
        run("S22-F9")


@pytest.mark.parametrize("id", list(experiments()))
def test_every_registered_experiment_is_complete(id):
    entry = experiments()[id]
    assert isinstance(entry, Experiment)
    assert entry.id == id
    assert entry.title
    assert entry.paper
    assert set(entry.claims) <= set(CATALOGUE)
    assert entry.function.__doc__


def test_the_catalogue_has_every_claim_of_the_papers():
    assert [id for id in CATALOGUE if id.startswith("CL")] == [f"CL{i:02}" for i in range(1, 66)]
    for statement in CATALOGUE.values():
        assert statement.text
        assert statement.source in {"C18", "Q20", "S22", "here"}
        assert 1 <= statement.chapter <= 17
        assert "|" not in statement.text.replace("\\|", "")
        assert statement.text.count("$") % 2 == statement.paper.count("$") % 2 == 0


def test_the_smoke_tier_runs_on_one_thread():
    def count(run, *, terms, rate):
        found = {"threads": torch.get_num_threads()}
        return Findings(found, claims=[Claim("CL01", "x", 1.0, 0.0)])

    count.__module__ = "companion.train"
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        smoke, full = declare(count)(), declare(count)(tier="full")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert smoke["threads"] == smoke.provenance.threads == 1
    assert full["threads"] == full.provenance.threads == 2


@pytest.mark.parametrize("id", list(experiments()))
def test_words_and_pictures_are_no_part_of_the_code_behind_a_number(id):
    behind = closure([experiments()[id].function.__module__])
    assert not behind & {"companion.claims", "companion.figures"}
