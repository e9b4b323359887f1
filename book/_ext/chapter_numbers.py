"""Give every chapter the number in its file's name, though chapters before it are not written yet.

Sphinx counts the chapters of the contents from one. `notebooks/13_slug` is chapter 13 all the same:
in titles, in the contents, and in the numbers of figures, theorems and exercises. Pages below a
chapter, such as its long proofs, are numbered with it.
"""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

Number = tuple[int, ...] | None


def renumber(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Exchange the first part of all numbers; return the pages to be written again."""
    wanted = {}
    for docname in env.all_docs:
        counted = env.titles[docname].get("secnumber")
        if counted and (match := re.fullmatch(r"notebooks/(\d+)_\w+", docname)):
            wanted[counted[0]] = int(match[1])

    def exchanged(number: Number) -> Number:
        return (wanted.get(number[0], number[0]), *number[1:]) if number else number

    for docname in env.all_docs:
        numbers = env.toc_secnumbers.get(docname, {})
        numbers.update({anchor: exchanged(found) for anchor, found in numbers.items()})
        for figures in env.toc_fignumbers.get(docname, {}).values():
            figures.update({label: exchanged(found) for label, found in figures.items()})
        titles = [found[docname] for found in (env.titles, env.longtitles) if docname in found]
        entries = (*titles, *env.tocs[docname].findall(nodes.reference))
        for node in {id(node): node for node in entries}.values():  # both titles may be one node
            if "secnumber" in node:
                node["secnumber"] = exchanged(node["secnumber"])
    return list(env.all_docs)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("env-get-updated", renumber, priority=900)  # after Sphinx's own numbering
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
