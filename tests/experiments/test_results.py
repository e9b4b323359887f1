import json
import math
import struct

import numpy as np
import pytest
import torch

from companion.results import SCHEMA, Claim, Findings, Provenance, Result

MADE = Provenance(
    tier="smoke",
    seed=3,
    parameters={"depths": (2, 4), "rate": 0.1},
    device="cpu (x86_64)",
    threads=1,
    versions={"torch": "2"},
    source="0" * 64,
    seconds=1.5,
    finished="2026-01-01T00:00:00+00:00",
)


def result(scalars=None, curves=None, claims=()):
    return Result("S22-F3a", Findings(scalars or {}, curves or {}, claims, "f" * 64), MADE)


@pytest.mark.parametrize(
    ("observed", "low", "high", "holds"),
    [
        (1.0, 0.0, 2.0, True),
        (0.0, 0.0, 2.0, True),
        (2.0, 0.0, 2.0, True),
        (2.1, 0.0, 2.0, False),
        (-0.1, 0.0, 2.0, False),
        (-9.0, None, 2.0, True),
        (3.0, None, 2.0, False),
        (3.0, 2.0, None, True),
        (1.0, 2.0, None, False),
        (math.inf, 2.0, None, True),
        (math.nan, 0.0, None, False),
        (math.nan, None, 0.0, False),
    ],
)
def test_a_claim_holds_inside_its_closed_range(observed, low, high, holds):
    assert Claim("CL01", "x", observed, low, high).holds is holds


@pytest.mark.parametrize(("low", "high"), [(None, None), (2.0, 1.0), (math.nan, 1.0)])
def test_a_claim_needs_a_range(low, high):
    with pytest.raises(ValueError, match="CL01"):
        Claim("CL01", "x", 1.0, low, high)


def bits(x):
    return struct.pack("<d", x)


@pytest.mark.parametrize(
    "x", [0.1, 1 / 3, -0.0, 5e-324, 1.7976931348623157e308, math.nan, math.inf, -math.inf, 1e16]
)
def test_json_keeps_every_bit_and_is_strict(x):
    stored = result({"x": x}, {"y": [[x, 1.0]]}, [Claim("CL01", "x", x, low=0.0)]).to_json()
    json.loads(stored, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    read = Result.from_json(stored)
    assert bits(read["x"]) == bits(x)
    assert bits(read["y"][0, 0]) == bits(x)
    assert bits(read.claims[0].observed) == bits(x)
    assert read.to_json() == stored


def test_arrays_and_tensors_become_curves():
    made = result(
        curves={"a": np.arange(4.0).reshape(2, 2), "b": torch.tensor([1, 2]), "c": (1, 2)}
    )
    assert made["a"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert made["b"].tolist() == made["c"].tolist() == [1.0, 2.0]
    assert made["a"].dtype == np.float64


def test_float32_values_are_stored_exactly():
    x = torch.rand(5, generator=torch.Generator().manual_seed(0))
    read = Result.from_json(result(curves={"x": x}).to_json())
    assert torch.equal(torch.from_numpy(read["x"]).float(), x)


def test_save_and_load(tmp_path):
    claims = [
        Claim("CL57", "a miss", 2.0, high=1.0, note="because"),
        Claim("CL58", "a hit", 1.0, 0.0),
    ]
    made = result({"x": 1.0}, {"y": [1.0]}, claims)
    made.save(tmp_path / "new" / "r.json")
    assert Result.load(tmp_path / "new" / "r.json") == made
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.json"]
    assert [claim.id for claim in made.misses] == ["CL57"]
    assert made.claim("CL57").note == "because"


def test_unknown_names_list_the_known_ones():
    made = result({"error": 1.0}, {"depths": [1]}, [Claim("CL57", "x", 1.0, 0.0)])
    with pytest.raises(KeyError, match=r"'eror'.*depths.*error"):
        made["eror"]
    with pytest.raises(KeyError, match=r"'CL1'.*CL57"):
        made.claim("CL1")


def test_one_name_for_a_scalar_and_a_curve_is_refused():
    with pytest.raises(ValueError, match="error"):
        result({"error": 1.0}, {"error": [1.0]})


def changed(**fields):
    return json.dumps(json.loads(result(claims=[Claim("CL57", "x", 1.0, 0.0)]).to_json()) | fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not the JSON of a result"),
        ("[]", "not the JSON of a result"),
        ("{}", "not the JSON of a result"),
        (changed(schema=SCHEMA + 1), rf"schema version {SCHEMA + 1}; this package reads {SCHEMA}"),
        (changed(provenance={}), "not a complete result"),
        (changed(claims=[{"id": "CL57"}]), "not a complete result"),
        (json.dumps({"schema": SCHEMA}), "not a complete result"),
        (changed().replace('"holds": true', '"holds": false'), "CL57 says holds: False"),
    ],
)
def test_bad_json_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        Result.load(path)
    if "holds" not in message:
        assert "r.json" in str(raised.value)
