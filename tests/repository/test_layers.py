"""The companion's imports point down only."""

from pathlib import Path

import pytest

import companion
from companion.sources import imported_modules

ROOT = Path(companion.__file__).parent

# From the bottom up. A module imports modules of lower layers, and of its own package.
LAYERS = (
    {"arguments", "files", "sources", "claims", "chapters", "machine", "version"},
    {"schemes", "basis"},
    {"solve", "results", "listing"},
    {"checks", "leapfrog", "records"},
    {"methods"},
    {"gradients"},
    {"ode"},
    {"block"},
    {"plain_layers"},
    {"models", "data", "train", "observe", "figures", "notebook"},
    {"analysis"},
    {"experiments"},
    {"exercises", "commands"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def files():
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    assert parts[0] in LEVEL, f"place {parts[0]!r} in LAYERS"
    package = ".".join(("companion", *parts[:-1]))
    for name in imported_modules(path.read_text(encoding="utf-8"), package):
        assert name != "companion", f"{path.name}: import from the defining module instead"
        target = name.split(".")[1]
        assert target == parts[0] or LEVEL[target] < LEVEL[parts[0]], f"{path.name} imports {name}"
