"""Which methods go with which gradients: `{combinations}` asks the companion and draws a table.

Every method is tried with every gradient on a small problem. What the companion refuses is a *no*,
and its own words say why; nothing is typed.
"""

from collections.abc import Iterator
from functools import cache
from itertools import groupby

import torch
from docutils import nodes
from docutils.statemachine import StringList
from markdown_table import table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from companion import odeint
from companion.gradients import GRADIENTS
from companion.methods import METHODS, takes


@cache
def refusal(method: str, gradient: str) -> str:
    """Return why the companion refuses a method with a gradient, or an empty string."""
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    loose = {knob: 0.1 for knob in ("rtol", "atol") if takes(knob, method)}  # few steps will do
    knobs = {"method": method, "gradient": gradient, "params": [weight], **loose}
    try:
        odeint(lambda t, y: weight * y, y0, [0.0, 1.0], **knobs)[-1].sum().backward()
    except ValueError as error:
        return str(error)
    return ""


def page() -> Iterator[str]:
    """Yield the table in Markdown, methods with the same answers in one line, then the reasons."""
    answers = {m: tuple(not refusal(m, g) for g in GRADIENTS) for m in METHODS}
    rows = []
    for row, methods in groupby(METHODS, key=lambda method: answers[method]):
        names = ", ".join(f"`{method}`" for method in methods)
        rows.append((names, *("yes" if works else "no" for works in row)))
    yield from table(("method", *(f"`{name}`" for name in GRADIENTS)), rows)
    reasons = dict.fromkeys(filter(None, (refusal(m, g) for g in GRADIENTS for m in METHODS)))
    yield from ("", "```{dropdown} What the companion says when it refuses", "")
    yield from (f"- `{reason.removeprefix('gradient: ')}`" for reason in reasons)
    yield "```"


class Combinations(SphinxDirective):
    has_content = False

    def run(self) -> list[nodes.Node]:
        holder = nodes.Element()
        holder.document = self.state.document
        self.state.nested_parse(StringList(list(page()), source="combinations"), 0, holder)
        return holder.children


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("combinations", Combinations)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
