"""Two repairs of docstrings on their way to the API pages.

Formulas: docstrings write them between dollar signs, as the chapters do. Autodoc reads
reStructuredText, so this turns `$...$` into the math role and `$$...$$` into the math directive.
Literals and doctests are left alone.

Colons: napoleon takes the text before a colon in the first line of a property or a constant for its
type. An empty first line keeps the sentence whole.
"""

import re

from sphinx.application import Sphinx

LITERAL = re.compile(r"(``.*?``|^[ ]*(?:>>>|\.\.\.) .*$)", re.DOTALL | re.MULTILINE)
DISPLAY = re.compile(
    r"^(?P<indent>[ ]*)(?P<before>.*?)\$\$(?P<tex>[^$]+)\$\$[ ]*(?P<after>.*)$", re.MULTILINE
)
INLINE = re.compile(r"(?P<left>\w?)\$(?P<tex>[^$\s](?:[^$]*[^$\s])?)\$(?P<right>\w?)")


def _display(match: re.Match[str]) -> str:
    indent, tex = match["indent"], " ".join(match["tex"].split())
    parts = ["", f"{indent}.. math::", "", f"{indent}   {tex}", ""]
    if match["before"].strip():
        parts.insert(0, indent + match["before"].rstrip())
    if match["after"].strip():
        parts.append(indent + match["after"])
    return "\n".join(parts)


def _inline(match: re.Match[str]) -> str:
    # A role must be set apart from a letter before or after it: "\ " does that without a space.
    left = match["left"] and match["left"] + "\\ "
    right = match["right"] and "\\ " + match["right"]
    return f"{left}:math:`{' '.join(match['tex'].split())}`{right}"


def to_rst(text: str) -> str:
    text = DISPLAY.sub(_display, text)
    pieces = LITERAL.split(text)
    pieces[::2] = [INLINE.sub(_inline, piece) for piece in pieces[::2]]
    return "".join(pieces)


def _process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]):
    lines[:] = to_rst("\n".join(lines)).split("\n")
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")


def setup(app: Sphinx) -> dict[str, bool]:
    # Before napoleon (priority 500), which splits the text into sections.
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
