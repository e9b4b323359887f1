"""The companion's imports point down only."""

from pathlib import Path

import companion
from companion.sources import imported_modules

ROOT = Path(companion.__file__).parent

# From the bottom up. A module imports modules of lower layers, and of its own package.
LAYERS = (
    {"arguments", "files", "sources", "claims", "chapters", "machine", "version", "transforms"},
    {"first_evaluation", "schemes", "basis", "listing", "results"},
    {"solve", "records", "pairs"},
    {"buffers", "counts", "flat", "leapfrog", "low_precision", "time_gradients", "scipy_solver"},
    {"adaptive", "adams"},
    {"depth_weights", "evaluation", "methods", "trajectory", "events", "per_sample"},
    {"gradients"},
    {"pieces"},
    {"compiled_adaptive"},
    {"compiled"},
    {"depth_field", "solution"},
    {"ode"},
    {"block"},
    {"capture", "plain_layers", "running_costs"},
    {"models", "data", "train", "observe", "figures", "animation", "notebook"},
    {"analysis", "flow_figures"},
    {"experiments"},
    {"exercises", "commands"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def faults(path):
    """Yield what is wrong with the imports of one file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] not in LEVEL:
        yield f"place {parts[0]!r} in LAYERS"
        return
    package = ".".join(("companion", *parts[:-1]))
    for name in imported_modules(path.read_text(encoding="utf-8"), package):
        if name == "companion":
            yield f"{path.name}: import from the defining module instead"
            continue
        target = name.split(".")[1]
        if target not in LEVEL:
            yield f"place {target!r} in LAYERS"
        elif target != parts[0] and LEVEL[target] >= LEVEL[parts[0]]:
            yield f"{path.relative_to(ROOT)} imports {name}"


def test_imports_point_down():
    files = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
    assert len(files) > 100
    assert [fault for path in files for fault in faults(path)] == []
