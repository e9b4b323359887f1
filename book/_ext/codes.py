"""Codes in prose, such as CL24 or S22-F4, become links to their rows of the ledger.

A code of the catalogue leads to the claim, that of an experiment to its recorded runs. Headings,
links, code blocks and the ledger itself are left alone.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from ledger import FOLDER, PAGE, anchor, run_anchor
from sphinx.application import Sphinx

from companion.claims import CATALOGUE

KEPT = (nodes.reference, nodes.title, nodes.literal_block, nodes.raw, nodes.comment, nodes.math)


def targets(folder: Path) -> dict[str, str]:
    """Return where the ledger treats each code."""
    runs = {path.name.split(".")[0]: "" for path in folder.glob("*.json")}
    return {id: run_anchor(id) for id in runs} | {id: anchor(id) for id in CATALOGUE}


def link(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Exchange the codes of a page for links."""
    if docname == PAGE or PAGE not in app.env.found_docs:
        return
    known = targets(Path(app.srcdir) / FOLDER)
    ids = "|".join(sorted(map(re.escape, known), key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w-])({ids})(?![\w-])")
    page = app.builder.get_relative_uri(docname, PAGE)

    def parts(text: str) -> Iterator[nodes.Node]:
        for number, part in enumerate(pattern.split(text)):
            if number % 2:
                row = nodes.reference("", "", refuri=f"{page}#{known[part]}", internal=True)
                yield row
                row += nodes.inline("", part, classes=["code-of-claim"])
            elif part:
                yield nodes.Text(part)

    for text in list(doctree.findall(nodes.Text)):
        if pattern.search(text) and not any(isinstance(node, KEPT) for node in parents(text)):
            whole = text.parent if isinstance(text.parent, nodes.literal) else text
            if whole is text or pattern.fullmatch(text):
                whole.parent.replace(whole, list(parts(str(text))))


def parents(node: nodes.Node) -> Iterator[nodes.Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
