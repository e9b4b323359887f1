"""The catalogue of claims: what the three papers say, and what this course adds.

Experiments decide claims by their IDs; the ledger lists all of them. Paper values are quoted
from the papers and were not measured here. Texts are Markdown with dollar maths.

Papers: Chen et al. 2018 (C18), Queiruga et al. 2020 (Q20), Sander et al. 2022 (S22).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Statement:
    """One claim of the catalogue.

    Attributes:
        id: ``CL01`` to ``CL65`` for the papers' claims, a theory ID for ours.
        text: the claim in one line of Markdown.
        paper: the value the paper gives, or an empty string where it gives none.
        source: the paper's short name, or ``"here"`` for results of this course.
        chapter: the slug of the chapter that treats it.
    """

    id: str
    text: str
    paper: str
    source: str
    chapter: str


CATALOGUE: dict[str, Statement] = {
    row[0]: Statement(*row)
    for row in (
        (
            "CL01",
            "A Lipschitz field has unique solutions that never cross",
            "",
            "C18",
            "residual_steps",
        ),
        (
            "CL02",
            "A residual network is Euler's method with unit steps",
            "identity",
            "C18",
            "residual_steps",
        ),
        ("CL03", "The adjoint equation gives $dL/dz_0$", "", "C18", "adjoint"),
        ("CL04", "One backward solve also gives $dL/d\\theta$", "", "C18", "adjoint"),
        ("CL05", "The adjoint gives $dL/dt_0$ and $dL/dt_1$", "", "C18", "adjoint"),
        (
            "CL06",
            "The adjoint's memory does not grow with depth",
            "$O(1)$ and $O(L)$",
            "C18",
            "adjoint",
        ),
        (
            "CL07",
            "An ODE-Net matches a ResNet on MNIST",
            "0.42 % and 0.41 % error",
            "C18",
            "ode_nets",
        ),
        ("CL08", "It does so with fewer parameters", "0.22 M and 0.60 M", "C18", "ode_nets"),
        ("CL09", "Function evaluations grow during training", "", "C18", "ode_nets"),
        ("CL10", "The tolerance trades accuracy for speed", "", "C18", "solvers"),
        ("CL11", "Log-density changes at the rate $-\\operatorname{tr}J$", "", "C18", "cnf"),
        ("CL12", "A trace is cheaper than a determinant", "$O(M)$ and $O(M^3)$", "C18", "cnf"),
        ("CL13", "A continuous flow beats a discrete one in 2-D", "lower KL", "C18", "cnf"),
        ("CL14", "A continuous flow gains from width", "", "C18", "cnf"),
        ("CL15", "A continuous flow inverts any Lipschitz field", "", "C18", "cnf"),
        ("CL16", "Hutchinson's trace estimate is unbiased", "", "C18", "cnf"),
        (
            "CL17",
            "A latent ODE has a lower RMSE than an RNN",
            "0.1346 and 0.1813",
            "C18",
            "latent_ode",
        ),
        ("CL18", "A latent ODE handles irregular times", "", "C18", "latent_ode"),
        ("CL19", "One solve gives a Poisson process likelihood", "", "C18", "point_processes"),
        ("CL20", "Stiffness raises the cost of explicit solvers", "", "C18", "solvers"),
        ("CL21", "Solving backwards in time can be unstable", "", "C18", "adjoint"),
        ("CL22", "No ODE maps $x$ to $-x$ in 1-D; augmentation helps", "", "C18", "limits"),
        ("CL23", "The pendulum has a closed form", "Eq. 13, misprinted", "Q20", "pendulum"),
        (
            "CL24",
            "Euler, midpoint and RK4 have orders 1, 2 and 4",
            "slopes 1, 2, 4",
            "Q20",
            "solvers",
        ),
        (
            "CL25",
            "A trained Euler net beats numerical Euler at its own step",
            "",
            "Q20",
            "pendulum",
        ),
        ("CL26", "An Euler net gets worse when its step is halved", "dip", "Q20", "pendulum"),
        (
            "CL27",
            "RK4 nets tolerate other steps; close midpoint fits don't",
            "no dip",
            "Q20",
            "pendulum",
        ),
        ("CL28", "RK4 and midpoint can be swapped, Euler cannot", "", "Q20", "pendulum"),
        (
            "CL29",
            "Optimisation sets a floor to the global error",
            "about $10^{-4}$",
            "Q20",
            "pendulum",
        ),
        ("CL30", "All explicit one-step schemes resemble ResNets", "", "Q20", "residual_steps"),
        (
            "CL31",
            "OdeBlock with Euler and $M=N=\\epsilon$ is a ResNet",
            "exact",
            "Q20",
            "residual_steps",
        ),
        ("CL32", "Splitting weights leaves the function unchanged", "", "Q20", "refinement"),
        ("CL33", "Refinement during training does no harm", "Fig. 7", "Q20", "refinement"),
        ("CL34", "Refinement cuts RK4 training time", "1053 to 608 min", "Q20", "refinement"),
        ("CL35", "Parameter counts for $M = 1$ to $32$", "0.2 M to 3.2 M", "Q20", "continuous_net"),
        (
            "CL36",
            "ContinuousNet with Euler matches a ResNet",
            "93.84 % and 93.84 %",
            "Q20",
            "continuous_net",
        ),
        ("CL37", "ContinuousNet with RK4 is slightly worse", "93.57 %", "Q20", "continuous_net"),
        ("CL38", "Weights trained with RK4 run under Euler", "93.55 %", "Q20", "many_graphs"),
        (
            "CL39",
            "Depth compresses from 32 to 11 and 6 steps",
            "93.44 %, 92.28 %",
            "Q20",
            "many_graphs",
        ),
        (
            "CL40",
            "Inference time is proportional to evaluations",
            "32.55 s to 6.25 s",
            "Q20",
            "many_graphs",
        ),
        ("CL41", "An Euler-trained net breaks under another graph", "Fig. 9", "Q20", "many_graphs"),
        ("CL42", "Weights grown with RK4 vary less with depth", "Fig. 8", "Q20", "refinement"),
        ("CL43", "Accuracy on CIFAR-100", "78.80 %, 77.99 %, 76.19 %", "Q20", "many_graphs"),
        ("CL44", "The adjoint needs $N_t \\ge 3M$ steps", "3", "Q20", "many_graphs"),
        ("CL45", "Batch norm must be sliced in time", "", "Q20", "continuous_net"),
        ("CL46", "Skip initialisation starts from the identity", "", "Q20", "continuous_net"),
        ("CL47", "Tiny-ImageNet shows the same behaviour", "about 40 %", "Q20", "many_graphs"),
        (
            "CL48",
            "The ResNet-to-ODE gap is bounded, tightly",
            "$\\|a\\|/2N$",
            "S22",
            "is_it_an_ode",
        ),
        ("CL49", "Without smoothness in depth the gap stays", "1/2, 2/3", "S22", "is_it_an_ode"),
        ("CL50", "Linear nets keep smoothness in depth", "$C/N$", "S22", "is_it_an_ode"),
        (
            "CL51",
            "Weights converge uniformly to a limit in depth",
            "rate $1/N$",
            "S22",
            "is_it_an_ode",
        ),
        ("CL52", "Reverse Euler recovers activations", "$O(1/N)$", "S22", "memory_free"),
        ("CL53", "Reverse Euler recovers gradients", "$O(1/N^2)$", "S22", "memory_free"),
        ("CL54", "Neither needs smoothness in depth", "", "S22", "memory_free"),
        (
            "CL55",
            "Reverse Heun recovers activations",
            "$O(\\Delta/N + 1/N^2)$",
            "S22",
            "memory_free",
        ),
        (
            "CL56",
            "Reverse Heun recovers gradients",
            "$O(\\Delta/N^2 + 1/N^3)$",
            "S22",
            "memory_free",
        ),
        (
            "CL57",
            "The $1/N$ factor does no harm",
            "95.5 %, 95.5 %; 77.8 %, 77.9 %",
            "S22",
            "residual_steps",
        ),
        ("CL58", "Tied nets without it fail when deep", "Fig. 3a", "S22", "residual_steps"),
        ("CL59", "Memory-free training fails in shallow nets", "Figs. 3b, 4", "S22", "memory_free"),
        (
            "CL60",
            "Memory-free training equals backprop in deep nets",
            "Fig. 4",
            "S22",
            "memory_free",
        ),
        ("CL61", "Heun needs fewer layers for that", "Fig. 4", "S22", "memory_free"),
        (
            "CL62",
            "Untying and memory-free fine-tuning help",
            "95.25 to 95.65 %; 73.1 to 75.1 %",
            "S22",
            "memory_free",
        ),
        ("CL63", "Tied weights transfer to deeper nets", "over 94.5 %; 72 %", "S22", "memory_free"),
        (
            "CL64",
            "A deep ResNet can break topology, an ODE cannot",
            "Fig. 1",
            "S22",
            "residual_steps",
        ),
        ("CL65", "Activations dominate the memory", "22 GiB and 220 MiB", "S22", "adjoint"),
        (
            "S22-X3",
            "Trajectories cross only where a layer's Lipschitz constant reaches $N$",
            "",
            "here",
            "is_it_an_ode",
        ),
        ("C18-A6", "Adjoint and backprop gradients differ by $O(h^p)$", "", "here", "adjoint"),
        ("C18-E2", "The backward solve takes half the evaluations", "about half", "C18", "adjoint"),
        (
            "Q20-X0",
            "A round trip gains an order when the order is even",
            "",
            "here",
            "is_it_an_ode",
        ),
        (
            "Q20-X1",
            "One-sided stages keep order 4 with jumping weights",
            "",
            "here",
            "weight_functions",
        ),
        ("Q20-X2", "The dip is an inverse modified equation", "", "here", "pendulum"),
        (
            "Q20-X3",
            "$\\epsilon$ decides invariance at least as much as the scheme",
            "",
            "here",
            "many_graphs",
        ),
        (
            "Q20-F11",
            "Without skip-init, Euler nets lose less elsewhere",
            "Fig. 11",
            "Q20",
            "many_graphs",
        ),
        (
            "S22-P3",
            "An explicit bound on reverse Euler's states holds for every $N$",
            "",
            "here",
            "memory_free",
        ),
        (
            "S22-P4",
            "An explicit bound on its gradients holds for every $N$",
            "",
            "here",
            "memory_free",
        ),
        (
            "S22-X4",
            "Bounded layers stay within $O(1/N)$ of their residual ODE",
            "",
            "here",
            "is_it_an_ode",
        ),
        (
            "S22-X1",
            "Reverse Heun is of order 3 for weights smooth in depth",
            "",
            "here",
            "memory_free",
        ),
        ("S22-F3c", "Heun's gradients are closer than Euler's", "Fig. 3c", "S22", "memory_free"),
        (
            "S22-MEM",
            "Without stored activations, memory does not grow with depth",
            "",
            "S22",
            "memory_free",
        ),
        (
            "FW1",
            "On any grid the order is $\\min(r, q + 2)$ for weights in $C^q$",
            "",
            "here",
            "weight_functions",
        ),
        (
            "FW2a",
            "Adaptive inference takes few evaluations of a refined net",
            "",
            "here",
            "many_graphs",
        ),
        (
            "FW2b",
            "Implicit midpoint bears stiffness, and steps back exactly",
            "",
            "here",
            "pendulum",
        ),
        ("FW3", "Refined nets bear rounding and merged cells better", "", "here", "many_graphs"),
        (
            "FW4",
            "Split cells transfer to a new task like a ResNet's last layers",
            "",
            "here",
            "refinement",
        ),
        ("FW5", "Hyper-parameters found on coarse nets carry over", "", "here", "refinement"),
        (
            "FW6",
            "Smooth nonlinear nets keep a limit in depth for a while",
            "",
            "here",
            "is_it_an_ode",
        ),
        ("FW7", "$k$ sweeps give reverse order $k + 1$", "", "here", "free_order"),
        ("FW8", "A corrected reverse step gains an order at no cost", "", "here", "free_order"),
        (
            "FW8-T",
            "Every reverse rule trains at $L/N < 1$, none at $L/N > 2$",
            "",
            "here",
            "free_order",
        ),
        (
            "FW9",
            "dopri5 takes the evaluations of SciPy's RK45, within 2 %",
            "",
            "here",
            "solvers",
        ),
        (
            "FW10",
            "Explicit evaluations grow like the ratio of rates, implicit ones hardly",
            "",
            "here",
            "solvers",
        ),
    )
}
"""Every claim by its ID."""
