"""Repairs of docstrings, and of what is documented where, on the way to the API pages.

Formulas: docstrings write them between dollar signs, as the chapters do. Autodoc reads
reStructuredText, so this turns `$...$` into the math role and `$$...$$` into the math directive.
Literals and doctests are left alone.

Once: what `companion` itself exports is documented there, and not in its module too. The automatic
text of a named tuple's field ("Alias for field number 0") is left out. Source pages link back to
all names of a module under one of the two, so both are anchors.

Colons: napoleon takes the text before a colon in the first line of a property or a constant for its
type. An empty comment as the first line keeps the sentence whole.
"""

import importlib
import re

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

import companion

LITERAL = re.compile(r"(``[^`]*``|^[ ]*(?:>>>|\.\.\.) .*$)", re.MULTILINE)
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
        lines[:0] = ["..", ""]


def _skip(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object):
    exported = app.env.temp_data.get("autodoc:module") != "companion" and any(
        obj is getattr(companion, name) for name in companion.__all__
    )
    if type(obj).__name__ == "_tuplegetter" or (what == "module" and exported):
        return True
    return None


def _add_anchors(app: Sphinx, doctree: nodes.document):
    homes = {getattr(companion, name).__module__ for name in companion.__all__}
    for signature in doctree.findall(addnodes.desc_signature):
        module, name = signature.get("module"), signature.get("fullname")
        if module == "companion":
            home = getattr(companion, name.split(".")[0]).__module__
            signature["ids"].append(f"{home}.{name}")
        elif module in homes:
            signature["ids"].append(f"companion.{name}")


def _source(app: Sphinx, module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name.split(".")[0])
    home = getattr(value, "__module__", module)
    # An alias such as dict[str, Tensor] says it lives in builtins, which has no source.
    return home if home.startswith("companion") else module


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.viewcode")
    # Before napoleon (priority 500), which splits the text into sections.
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-skip-member", _skip)
    app.connect("viewcode-follow-imported", _source)
    app.connect("doctree-read", _add_anchors)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
