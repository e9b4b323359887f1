r"""S22-F3c: the relative error of each weight matrix's gradient, against depth.

Sander et al. (2022, Fig. 3c) compare a ResNet with a HeunNet. Their released code measures the
squared relative error and leaves biases out; so does this experiment, with small tanh networks.
That code also keeps a copy of every layer's output, so that a layer's input is guessed from the
true output and no layer hands its error on. Both ways are measured: ``chained`` and ``copied``.
"""

import numpy as np

from companion.experiments import Findings, Part, Run, experiment, grid
from companion.experiments.copied_states import CopiedStates
from companion.experiments.memory_free.tanh_networks import DEEP, Draw, draw_networks, fit_rate
from companion.gradients import Reconstruct

_WAYS = {"chained": Reconstruct(), "copied": CopiedStates()}


@experiment(
    "S22-F3c",
    "Relative error of each weight matrix's gradient, Euler against Heun",
    paper="Sander et al. 2022, Fig. 3c",
    claims=(
        *(
            ("S22-F3c", f"slope_{method}_{family}", low, high,
             f"slope of the relative gradient error, {method}, weights {family.replace('_', ', ')}")
            for method, family, low, high in (
                ("euler", "smooth", -1.15, -0.85),
                ("euler", "iid", -1.15, -0.85),
                ("heun", "smooth", None, -1.8),
                ("heun", "iid", None, -0.95),  # the paper promises independent layers order 1 only
                ("euler", "smooth_copied", -2.15, -1.85),
                ("euler", "iid_copied", -2.15, -1.85),
                ("heun", "smooth_copied", -4.15, -3.85),
                ("heun", "iid_copied", -2.15, -1.85),
            )
        ),
        *(
            ("S22-F3c", f"heun_over_euler_{family}", None, 1.0,
             f"largest relative gradient error of Heun over Euler's, {family} weights")
            for family in ("smooth", "iid")
        ),
    ),
    full={"steps": (2, 4, 8, 16, 32, 64, 128, 256, 512), "networks": 32, "dim": 16},
    tiny={"steps": (4, 16, 32), "networks": 2, "dim": 3},
)  # fmt: skip
def s22_f3c(
    run: Run, *, steps: tuple[int, ...] = (4, 16, 32, 64, 128), networks: int = 8, dim: int = 6
) -> Findings:
    """Compare reconstructed gradients with backprop's, matrix by matrix.

    Curves: ``steps``; ``squared_METHOD_WEIGHTS`` of shape ``(steps, networks)``, the mean over the
    matrices of the squared relative error of a matrix's gradient; the same with the suffix
    ``_copied``, where every state is kept. Scalars, of its square root: slopes from 16 layers on,
    and ratios of geometric means over networks.
    """
    drawn = Draw(networks, dim, run.seed, run.device)

    def compare(part: Part, method: str, family: str, way: str, n: int) -> list[float]:
        nets = draw_networks(family, method, n, drawn)
        exact, got = (nets.gradients(g)[..., :-1, :] for g in ("backprop", _WAYS[way]))
        errors, sizes = (x.square().sum(dim=(-2, -1)) for x in (got - exact, exact))
        squared: list[float] = (errors / sizes).mean(dim=0).tolist()
        return squared

    methods, families = ("euler", "heun"), ("smooth", "iid")
    table = grid(run, compare, method=methods, family=families, way=_WAYS, n=steps)
    found = table.named("squared", "method", "family", "way")
    curves = {name.removesuffix("_chained"): rows for name, rows in found.items()}
    deep = tuple(n for n in steps if n >= DEEP)
    scalars = {
        name.replace("squared", "slope"): fit_rate(deep, np.sqrt(rows[-len(deep) :])).value
        for name, rows in curves.items()
    }
    for family in ("smooth", "iid"):
        logs = np.log(curves[f"squared_heun_{family}"]) - np.log(curves[f"squared_euler_{family}"])
        scalars[f"heun_over_euler_{family}"] = float(np.exp(logs.mean(axis=1) / 2).max())
    return Findings(scalars, {"steps": steps, **curves})
