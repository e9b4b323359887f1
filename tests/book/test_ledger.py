import sys
from dataclasses import replace
from pathlib import Path

import pytest
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from companion.claims import CATALOGUE
from companion.experiments import find
from companion.listing import entries
from companion.results import Claim, Findings, Provenance, Result

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import ledger  # noqa: E402
import verdicts  # noqa: E402

RECORDED = sorted((ROOT / "book" / "results").glob("*.json"))


def result(*claims, tier="smoke", source="0" * 64, **scalars):
    made = Provenance(
        tier,
        7,
        {},
        "cpu (x86_64)",
        1,
        {"torch": "2.13", "python": "3.11"},
        source,
        12.4,
        "2026-01-02T03:04:05+00:00",
    )
    return Result("S22-F3a", Findings(scalars, claims=claims, data="d" * 64), made)


HIT = Claim("CL57", "error", 0.05, high=0.08)
MISS = Claim("CL58", "error", 0.2, low=0.3, note="Too few layers.")


def row(results, id, written=True):
    """Return the text of a claim's row, and its verdict for filters."""
    statement = CATALOGUE[id]
    words = ledger.Wording(nodes.Text("1"), [nodes.Text(statement.text)], [])
    made = ledger.claim_row(statement, ledger.deciding(results, id), written, words)
    return " ".join(made.astext().split()), made["given"]["data-verdict"]


def numbers(*pairs):
    """Return claims with observed numbers and their ranges."""
    return [Claim("CL57", f"number {x}", x, low, high) for x, low, high in pairs]


def test_a_verdict_counts_the_numbers_and_names_the_closest():
    hits = numbers((0.01, None, 0.08), (3.98, 3.75, 4.25), (0.07, None, 0.08), (0.0, 0.0, 0.0))
    assert verdicts.summary(hits) == "4 of 4 numbers; closest: 0.07 of at most 0.08 (number 0.07)"
    near = numbers((4.24, 3.75, 4.25), (0.07, None, 0.08))
    assert verdicts.closest(near).observed == 4.24
    assert "4.24, where 3.75 to 4.25 is expected" in verdicts.summary(near)
    worst = verdicts.summary(numbers((0.01, None, 0.08), (0.2, 0.3, None), (0.1, 0.3, None)))
    assert worst == "1 of 3 numbers in range; worst: 0.1 of at least 0.3 (number 0.1)"
    assert verdicts.summary(numbers((0.0, 0.0, 0.0))) == "1 of 1 number; exact"
    assert "worst: nan" in verdicts.summary(numbers((float("nan"), 0, 1), (5.0, 0, 1)))


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ((0.5, None, 1.0), 0.5),
        ((2.0, None, 1.0), -0.5),
        ((2.0, 1.0, None), 0.5),
        ((-0.3, None, 0.0), 1.0),
        ((0.0, None, 0.0), 0.0),
        ((1.5, 1.0, 3.0), 0.5),
        ((3.5, 1.0, 3.0), -0.5),
        ((1.0, 1.0, 1.0), float("inf")),
        ((1.1, 1.0, 1.0), -float("inf")),
    ],
)
def test_a_margin_is_relative_to_the_range(claim, expected):
    assert verdicts.margin(*numbers(claim)) == expected


def test_a_row_says_which_data_stood_in_for_the_papers():
    """CL57 is about CIFAR-10 and ImageNet; a run without data of its own is no stand-in."""
    text, verdict = row([result(HIT)], "CL57")
    assert verdict == "holds on digits"
    assert "holds on digits (an analogue: the paper's claim is about CIFAR-10 and ImageNet)" in text
    on_cifar = result(HIT, tier="full")
    made = replace(on_cifar.provenance, parameters={"dataset": "cifar10"})
    assert row([result(HIT), replace(on_cifar, provenance=made)], "CL57")[1] == "holds"
    without = replace(result(HIT), findings=replace(result(HIT).findings, data=None))
    assert row([without], "CL57")[1] == "holds"
    assert row([result(replace(HIT, id="CL24"))], "CL24")[1] == "holds"


def test_a_row_shows_both_tiers_and_why_it_misses():
    full = result(replace(HIT, observed=0.12, note="Too few layers."), tier="full")
    text, verdict = row([result(HIT, MISS), full], "CL57")
    assert verdict == "misses on digits"
    assert "1 of 2 numbers in range; worst: 0.12 of at most 0.08 (error)" in text
    assert text.count("Why it misses: Too few layers.") == 1
    assert text.startswith("CL57 The $1/N$ factor does no harm")
    assert text.endswith("S22-F3aerrorat most 0.080.050.12 (misses)")  # the cells of one line


def test_what_has_not_been_run_says_so():
    assert row([], "CL48")[1] == "not yet run"
    assert row([result(HIT)], "CL48", written=False)[1] == "chapter to come"


@pytest.mark.parametrize(
    ("x", "spelled"),
    [
        (0.0, "0"),
        (-0.5101, "−0.51"),
        (2894.0, "2.89 × 10³"),
        (1.954e-10, "1.95 × 10⁻¹⁰"),
        (-3e8, "−3 × 10⁸"),
        (1e-6, "10⁻⁶"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_are_spelled_for_readers(x, spelled):
    assert verdicts.number(x).replace("\N{NO-BREAK SPACE}", " ") == spelled


def test_an_exact_expectation_says_so():
    assert verdicts.expected(Claim("CL02", "x", 0.0, 0.0, 0.0)) == "exactly 0"


def test_provenance_tells_when_numbers_moved():
    stale = replace(result(HIT), tiny=Findings({"worst": 1.0}), moved=("worst",))
    assert "Moved since: worst (S22-F3a, smoke run)" in row([stale], "CL57")[0]
    assert "Moved" not in row([result(HIT)], "CL57")[0]
    assert ledger.run_row(result(HIT, source="a" * 64))[1:7] == (
        "7",
        "cpu (x86_64)",
        "torch 2.13, python 3.11",
        "12 s",
        "2026-01-02 03:04:05",
        "aaaaaaaaaa",
    )


def test_a_file_under_a_wrong_name_is_refused(tmp_path):
    result(HIT).save(tmp_path / "S22-F3a.full.json")
    with pytest.raises(ValueError, match=r"holds S22-F3a\.smoke\.json"):
        ledger.read_results(tmp_path)


def build(root, text):
    """Build a book of two pages, warnings as errors; return the first page's HTML."""
    (root / "book").mkdir(exist_ok=True)
    (root / "notebooks").mkdir(exist_ok=True)
    (root / "book" / "ledger.md").write_text(text)
    (root / "notebooks" / "01_residual_steps.md").write_text("---\norphan: true\n---\n# One\n")
    extensions = ["myst_parser", "ledger"]
    settings = {"extensions": extensions, "myst_enable_extensions": ["dollarmath"]}
    settings |= {"root_doc": "book/ledger", "html_theme": "basic"}
    folders = (str(root), None, str(root / "_out"), str(root / "_trees"))
    with docutils_namespace():  # Sphinx registers its nodes globally
        app = Sphinx(*folders, "html", settings, status=None, warning=None, warningiserror=True)
        app.build()
    return (root / "_out" / "book" / "ledger.html").read_text()


def test_the_page_is_drawn_from_the_files_and_drawn_again(tmp_path):
    text = "# Ledger\n\n```{ledger}\n```\n"
    folder = tmp_path / ledger.FOLDER
    folder.mkdir(parents=True)
    html = build(tmp_path, text)
    assert all(f'id="{ledger.anchor(id)}"' in html for id in CATALOGUE)
    assert "No run is recorded yet." in html
    assert html.count('data-verdict="chapter to come"') > 50
    assert 'href="../notebooks/01_residual_steps.html"' in html
    assert "MISS" not in html

    result(HIT, MISS).save(folder / "S22-F3a.smoke.json")
    html = build(tmp_path, text)
    assert "closest: 0.05 of at most 0.08" in html
    assert "0 of 1 number in range; worst: 0.2 of at least 0.3" in html
    assert "Too few layers." in html
    assert 'href="#run-s22-f3a"' in html
    assert 'id="run-s22-f3a"' in html
    assert "$" not in html.split("<body")[1]


def test_prose_cites_recorded_numbers(tmp_path):
    result(HIT, error_2=0.04567).save(tmp_path / ledger.FOLDER / "S22-F3a.smoke.json")
    html = build(
        tmp_path,
        "# Page\n\nGot {recorded}`S22-F3a.smoke error_2 .2%`, "
        "then {recorded}`S22-F3a.smoke CL57`.\n",
    )
    assert "Got 4.57%, then 0.05." in html


@pytest.mark.parametrize(
    ("cited", "message"),
    [
        ("S22-F3a.smoke eror_2", "it has .*error_2"),
        ("S22-F3a.full error_2", "No such file"),
        ("S22-F3a.smoke CL58", "it decides .*CL57"),
        ("S22-F3a.smoke error_2 .2q", "format"),
    ],
)
def test_a_wrong_citation_breaks_the_build(tmp_path, cited, message):
    result(HIT, error_2=0.04567).save(tmp_path / ledger.FOLDER / "S22-F3a.smoke.json")
    with pytest.raises(Exception, match=message):
        build(tmp_path, f"# Page\n\n{{recorded}}`{cited}`\n")


def is_recorded(row, recorded):
    """Say whether a record decides a claim as its row declares, with what the record holds.

    Numbers that only decide claims are not recorded apart: there the bounds are compared.
    """
    parameters = recorded.provenance.parameters
    try:
        again = row.decide(recorded.findings.scalars, parameters)
    except KeyError:
        bounds = [
            at[str(parameters.get("dataset"))] if isinstance(at, dict) else at
            for at in (row.low, row.high)
        ]
        return any(
            claim.id == row.id and [claim.low, claim.high] == bounds for claim in recorded.claims
        )
    return again is None or any(
        replace(claim, note="") == replace(again, note="") for claim in recorded.claims
    )


def test_recorded_results_fit_the_registry():
    """Loading checks the schema; the rest is checked here."""
    for path in RECORDED:
        recorded = Result.load(path)
        entry, made = find(recorded.experiment), recorded.provenance
        assert path.name == f"{entry.id}.{made.tier}.json"
        assert made.parameters == entry.parameters(made.tier), path.name
        for row in entry.rows:
            assert is_recorded(row, recorded), f"{path.name}: {row.id}, {row.text}"
        assert {claim.id for claim in recorded.claims} == set(entry.claims), path.name
        for claim in recorded.misses:
            assert claim.note, f"explain in {path.name} why {claim.id} misses"
        if made.tier == "smoke" and made.processor_seconds is not None:
            assert made.processor_seconds <= 90, path.name


def test_every_experiment_has_a_recorded_smoke_run():
    names = {path.name for path in RECORDED}
    assert {f"{id}.smoke.json" for id in entries()} <= names
