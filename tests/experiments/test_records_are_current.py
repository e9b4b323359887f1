"""Recorded numbers are still what the code computes: a tiny run of every experiment."""

import pytest

from companion import records
from companion.experiments import find
from companion.experiments.freshness import moved, tiny
from companion.listing import entries


@pytest.mark.parametrize("id", list(entries()))
def test_a_tiny_run_finds_what_is_stored_beside_the_records(id):
    entry = find(id)
    now = tiny(entry)
    for name, tier in records.names():
        if name == id:
            recorded = records.load(id, tier)
            assert recorded.tiny is not None, f"{id}.{tier}: python tools/records.py {id}"
            found = moved(recorded.tiny, now, entry.tolerance)
            assert found == recorded.moved, f"{id}.{tier}: python tools/records.py {id}"
