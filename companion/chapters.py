"""The chapters of the course: their numbers, their slugs, and which of them are still to come.

A slug names the chapter's notebook, the folder of its experiments, the module of its exercises and
the folders of its tests.
"""

from typing import NamedTuple


class Chapter(NamedTuple):
    """One chapter.

    Attributes:
        number: its number, which never changes.
        slug: its short name in files and folders.
        title: what it is about.
        part: the part of the course it belongs to.
    """

    number: int
    slug: str
    title: str
    part: str

    @property
    def notebook(self) -> str:
        """The name of its notebook, without an ending.

        Example:
            >>> CHAPTERS["adjoint"].notebook
            'notebooks/03_adjoint'
        """
        return f"notebooks/{self.number:02}_{self.slug}"


_PARTS = {
    "One block, four knobs": (
        (1, "residual_steps", "A residual network takes steps"),
        (2, "solvers", "Take good steps"),
        (3, "adjoint", "Differentiate through a solver without storing it"),
        (4, "ode_nets", "Replace the layers by an equation"),
        (5, "limits", "What a flow cannot do"),
    ),
    "Densities and time": (
        (6, "cnf", "Densities that flow"),
        (7, "flow_matching", "Learn a flow without solving it"),
        (8, "latent_ode", "Time series between their samples"),
        (9, "point_processes", "When events happen"),
    ),
    "Continuous in depth": (
        (10, "pendulum", "Did it learn the equation or the data?"),
        (11, "weight_functions", "Weights as functions of depth"),
        (12, "continuous_net", "A residual network that is continuous in depth"),
        (13, "refinement", "Grow while you train"),
        (14, "many_graphs", "One model, many graphs"),
    ),
    "Training without memory": (
        (15, "is_it_an_ode", "Is your ResNet an ODE?"),
        (16, "memory_free", "Train without storing activations"),
        (17, "free_order", "A free order of accuracy"),
        (18, "choosing_a_gradient", "Choose a gradient"),
    ),
    "In the large": ((19, "at_scale", "Several GPUs, several machines"),),
}

CHAPTERS: dict[str, Chapter] = {
    slug: Chapter(number, slug, title, part)
    for part, chapters in _PARTS.items()
    for number, slug, title in chapters
}
"""Every chapter by its slug, in order."""
