"""Recorded results are found in a checkout and in the installed package, under their own names."""

from pathlib import Path

import pytest

from companion import records
from companion.results import Result

ROOT = Path(records.__file__).parents[1]


def test_a_checkout_reads_the_results_of_the_book():
    assert records.folder() == ROOT / "book" / "results"


def test_names_are_those_of_the_files():
    files = {path.name for path in (ROOT / "book" / "results").glob("*.json")}
    assert {f"{id}.{tier}.json" for id, tier in records.names()} == files
    assert records.names() == tuple(sorted(records.names()))
    assert {tier for _, tier in records.names()} == {"smoke", "full"}


def test_every_record_is_read_under_its_name():
    for id, tier in records.names():
        result = records.load(id, tier)
        assert result is not None
        assert (result.experiment, result.provenance.tier) == (id, tier)


@pytest.mark.parametrize(("id", "tier"), [("C18-A6", "tiny"), ("NONE", "smoke"), ("", "")])
def test_what_is_not_recorded_is_none(id, tier):
    assert records.load(id, tier) is None


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package without a checkout around it, as a wheel installs it."""
    package = tmp_path / "site-packages" / "companion"
    (package / "recorded").mkdir(parents=True)
    monkeypatch.setattr(records, "__file__", str(package / "records.py"))
    return package / "recorded"


def test_without_a_checkout_the_package_has_a_copy(installed):
    assert records.folder() == installed
    assert records.names() == ()
    text = (ROOT / "book" / "results" / "C18-A6.smoke.json").read_text()
    (installed / "C18-A6.smoke.json").write_text(text)
    assert records.names() == (("C18-A6", "smoke"),)
    assert records.load("C18-A6", "smoke") == Result.from_json(text)


@pytest.mark.parametrize(("id", "tier"), [("C18-A6", "full"), ("C18-A7", "smoke")])
def test_a_record_under_another_name_is_refused(installed, id, tier):
    text = (ROOT / "book" / "results" / "C18-A6.smoke.json").read_text()
    (installed / f"{id}.{tier}.json").write_text(text)
    message = f"{id}.{tier}.json holds C18-A6, tier 'smoke'; its name says {id}, tier '{tier}'"
    with pytest.raises(ValueError, match=message):
        records.load(id, tier)
