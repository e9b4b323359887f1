"""The map of the course: `{course-map}` lists every chapter and what it lets a reader do."""

from itertools import groupby
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

from companion.chapters import CHAPTERS, Chapter

GAINS = {
    "residual_steps": "Read a residual network as a solver at work, and see when that is wrong.",
    "solvers": "Choose a solver and its steps, and foresee the error they make.",
    "adjoint": "Differentiate through a solve in little memory, and tell when the gradient is off.",
    "ode_nets": "Put one equation in the place of many layers, and count what it saves and costs.",
    "limits": "Recognise what no flow can represent, and get round it with more dimensions.",
    "cnf": "Model a density by a flow, and evaluate it exactly.",
    "flow_matching": "Train such a flow without a solver in the training loop.",
    "latent_ode": "Fit series whose samples come at irregular times, and predict between them.",
    "point_processes": "Learn the rate at which events happen.",
    "pendulum": "Test whether a trained model is an equation, or has only learned its data's step.",
    "weight_functions": "Let weights vary with depth in a way that keeps the solver accurate.",
    "continuous_net": "Build a convolutional network continuous in depth, batch norm included.",
    "refinement": "Begin with few layers and add more in training, without changing the function.",
    "many_graphs": "Change depth and solver after training, and know which networks allow it.",
    "is_it_an_ode": "Measure whether the layers of a trained network follow an equation.",
    "memory_free": "Train deep networks without storing their activations.",
    "free_order": "Make memory-free gradients more accurate for the same work.",
    "choosing_a_gradient": "Choose a gradient method for the memory and the time that you have.",
    "at_scale": "Train on several GPUs and on several machines.",
}
"""What each chapter lets its reader do."""


def entry(chapter: Chapter, written: Any) -> str:
    """Return the line of a chapter in Markdown."""
    title = f"{chapter.title} *(to come)*"
    if chapter.notebook in written:
        title = f"{{doc}}`{chapter.title} </{chapter.notebook}>`"
    return f"- {chapter.number}: {title}. {GAINS[chapter.slug]}"


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
