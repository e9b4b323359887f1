"""The local extensions of the book that draw from the companion or change what pages show."""

import sys
from pathlib import Path

import pytest
from docutils import nodes
from docutils.utils import new_document

from companion.gradients import GRADIENTS
from companion.methods import METHODS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import codes  # noqa: E402
import combinations  # noqa: E402
import plumbing  # noqa: E402

PLUMBING = {
    "imports": "import math\nfrom companion import odeint",
    "a check": "assert close(mine, theirs)",
    "stored": "glue('a', found['a'])\nfor k in ks:\n    glue(f'b-{k}', float(found[k]))",
    "a record": "found = run('FW1')\nassert not found.misses\nglue('a', max(found['a']))",
}
IN_VIEW = {
    "a computation": "end = solve(y0)\nglue('end', end)",
    "a table": "print(found['a'])\nglue('a', found['a'])",
    "a function": "def f(x):\n    return x\n\n\nglue('a', f(1))",
    "a record alone": "found = run('FW1')",
    "a comparison": "mine = solve(y0)\nassert close(mine, theirs)",
    "an import and more": "import math\nprint(math.pi)",
    "nothing": "# a comment",
}


@pytest.mark.parametrize("code", PLUMBING.values(), ids=PLUMBING)
def test_plumbing_is_folded(code):
    assert plumbing.is_plumbing(code, set())


@pytest.mark.parametrize("code", IN_VIEW.values(), ids=IN_VIEW)
def test_what_a_reader_needs_stays_in_view(code):
    assert not plumbing.is_plumbing(code, {"nbval-check-output"})
    assert plumbing.is_plumbing(code, {"setup"})


def test_the_table_of_combinations_is_what_the_companion_accepts():
    lines = list(combinations.page())
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]]
    table = {name: row[1:] for row in cells if len(row) > 1 for name in row[0].split(", ")}
    assert set(table) == {f"`{method}`" for method in METHODS}
    columns = list(GRADIENTS)
    answer = {name: dict(zip(columns, row, strict=True)) for name, row in table.items()}
    assert set(answer["`rk4`"].values()) == {"yes", "no"}
    assert answer["`rk4`"]["reversible"] == answer["`dopri5`"]["reconstruct"] == "no"
    assert answer["`rk4`"]["reconstruct"] == answer["`dopri5`"]["adjoint"] == "yes"
    assert answer["`scipy_solver`"]["backprop"] == "no"
    assert any("'backprop' cannot see inside scipy_solver" in line for line in lines)


class Page:
    """As much of Sphinx's application as the links need."""

    srcdir = ROOT
    env = builder = None

    def __init__(self):
        self.env = self.builder = self
        self.found_docs = {"book/ledger"}

    def get_relative_uri(self, docname, target):
        return "../book/ledger.html"


def linked(*content):
    """Return the links of a page with one paragraph, as text and address."""
    page = new_document("page")
    page += nodes.paragraph("", "", *content)
    codes.link(Page(), page, "notebooks/01_residual_steps")
    return page, [(node.astext(), node["refuri"]) for node in page.findall(nodes.reference)]


def test_codes_lead_to_their_rows():
    ledger = "../book/ledger.html"
    page, found = linked(nodes.Text("As said (CL24, S22-F4), XCL24 and S22-F4b do not."))
    assert found == [("CL24", f"{ledger}#claim-cl24"), ("S22-F4", f"{ledger}#run-s22-f4")]
    assert page.astext() == "As said (CL24, S22-F4), XCL24 and S22-F4b do not."
    assert linked(nodes.literal("", "FW8-T"))[1] == [("FW8-T", f"{ledger}#claim-fw8-t")]
    assert linked(nodes.literal("", 'run("FW8-T")'))[1] == []
    inside = nodes.reference("", "", nodes.Text("see CL24"), refuri="x")
    assert linked(inside)[1] == [("see CL24", "x")]
