import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from companion.claims import CATALOGUE
from companion.experiments import find
from companion.listing import entries
from companion.results import Claim, Findings, Provenance, Result

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import ledger  # noqa: E402

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


def row(results, id, written=()):
    return ledger.claim_row(CATALOGUE[id], results, written)


def test_a_claim_shows_each_tier_beside_the_paper():
    full = result(replace(HIT, observed=0.12, note="why"), tier="full")
    cells = row([result(HIT, MISS), full], "CL57", ["notebooks/01_residual_steps"])
    assert cells[0] == "CL57"
    assert cells[2] == "{doc}`1 </notebooks/01_residual_steps>`"
    assert cells[3] == CATALOGUE["CL57"].paper
    assert cells[4] == "holds: 0.05 (at most 0.08)"
    assert cells[5] == "**misses**: 0.12 (at most 0.08)"


def test_what_has_not_been_run_says_so():
    assert row([result(HIT)], "CL57", ["notebooks/01_residual_steps"])[4:] == (
        "holds: 0.05 (at most 0.08)",
        "not yet run",
    )
    assert row([], "CL48")[4:] == ("chapter to come", "chapter to come")


def test_a_claim_decided_more_than_once_shows_every_number():
    again = replace(HIT, text="difference", observed=-0.01, low=-0.02)
    worst = replace(HIT, text="worst", observed=0.5)
    assert row([result(worst, HIT, again)], "CL57")[4] == (
        "holds: 0.05 (at most 0.08), −0.01 (−0.02 to 0.08); **misses**: 0.5 (at most 0.08)"
    )


@pytest.mark.parametrize(
    ("x", "spelled"),
    [
        (0.0, "0"),
        (-0.5101, "−0.51"),
        (2894.0, "$2.89\\times 10^{3}$"),
        (1.954e-10, "$1.95\\times 10^{-10}$"),
        (-3e8, "$-3\\times 10^{8}$"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_are_spelled_for_readers(x, spelled):
    assert ledger.number(x) == spelled


def test_an_exact_expectation_says_so():
    assert ledger.expected(Claim("CL02", "x", 0.0, 0.0, 0.0)) == "exactly 0"


def test_measurements_put_the_tiers_side_by_side_in_words():
    full = result(replace(HIT, observed=0.04), tier="full")
    assert list(ledger.measurements([result(HIT, MISS), full]))[2:] == [
        "| S22-F3a | CL57 | error | holds: 0.05 (at most 0.08) | holds: 0.04 (at most 0.08) |",
        "| S22-F3a | CL58 | error | **misses**: 0.2 (at least 0.3) | not yet run |",
    ]


def test_misses_are_listed_with_their_explanation():
    lines = "\n".join(ledger.misses([result(HIT, MISS)]))
    assert "**CL58** (S22-F3a, smoke tier)" in lines
    assert "0.2 (at least 0.3). Too few layers." in lines
    assert "CL57" not in lines


def test_provenance_tells_when_numbers_moved():
    assert ledger.run_row(result(HIT, source="a" * 64))[7] == "`aaaaaaaaaa`"
    stale = replace(result(HIT), tiny=Findings({"worst": 1.0}), moved=("worst",))
    assert ledger.run_row(stale)[7].endswith(", moved since: worst")
    assert ledger.run_row(result(HIT))[2:7] == (
        "7",
        "cpu (x86_64)",
        "torch 2.13, python 3.11",
        "12 s",
        "2026-01-02 03:04:05",
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
    assert all(id in html for id in CATALOGUE)
    assert "No run is recorded yet." in html
    assert html.count("chapter to come") > 100
    assert 'href="../notebooks/01_residual_steps.html"' in html
    assert "MISS" not in html

    result(HIT, MISS).save(folder / "S22-F3a.smoke.json")
    html = build(tmp_path, text)
    assert "0.05 (at most 0.08)" in html
    assert "<strong>misses</strong>: 0.2 (at least 0.3)" in html
    assert "Too few layers." in html
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


def test_recorded_results_fit_the_registry():
    """Loading checks the schema; the rest is checked here."""
    for path in RECORDED:
        recorded = Result.load(path)
        entry, made = find(recorded.experiment), recorded.provenance
        assert path.name == f"{entry.id}.{made.tier}.json"
        assert made.parameters == entry.parameters(made.tier), path.name
        for row in entry.rows:
            again = replace(row.decide(recorded.findings.scalars, made.parameters), note="")
            assert any(replace(claim, note="") == again for claim in recorded.claims), path.name
        assert {claim.id for claim in recorded.claims} == set(entry.claims), path.name
        for claim in recorded.misses:
            assert claim.note, f"explain in {path.name} why {claim.id} misses"
        if made.tier == "smoke" and made.processor_seconds is not None:
            assert made.processor_seconds <= 90, path.name


def test_every_experiment_has_a_recorded_smoke_run():
    names = {path.name for path in RECORDED}
    assert {f"{id}.smoke.json" for id in entries()} <= names
