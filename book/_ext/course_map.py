"""The map of the course: `{course-map}` lists every chapter, with a link or as one to come."""

from itertools import groupby
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

from companion.chapters import CHAPTERS, Chapter


def entry(chapter: Chapter, written: Any) -> str:
    """Return the line of a chapter in Markdown."""
    if chapter.notebook in written:
        return f"- {chapter.number}: {{doc}}`{chapter.title} </{chapter.notebook}>`"
    return f"- {chapter.number}: {chapter.title} *(to come)*"


class CourseMap(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        lines = []
        for part, chapters in groupby(CHAPTERS.values(), key=lambda chapter: chapter.part):
            lines += [f"**{part}**", ""]
            lines += [entry(chapter, self.env.found_docs) for chapter in chapters]
            lines += [""]
        holder = nodes.Element()
        holder.document = self.state.document
        self.state.nested_parse(StringList(lines, source="course-map"), 0, holder)
        return holder.children


def outdated(app: Sphinx, env: BuildEnvironment, *changes: Any) -> list[str]:
    """Draw the map anew in every build: a chapter may have been written."""
    return [name for name in ("book/index",) if name in env.found_docs]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("course-map", CourseMap)
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
