"""Where the figures of the pages are written, and how."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

STATIC = Path(__file__).parents[1] / "_static"


def write_slider(stem: str, found: dict[str, Any], picture: Figure) -> None:
    """Write the data of a slider, and the picture that stands where no script runs.

    Args:
        stem: the slug of the page, with which the names of both files begin.
        found: what the slider needs.
        picture: drawn with the settings that it keeps.
    """
    first, *rest = stem.split("_")
    name = first + "".join(word.capitalize() for word in rest)
    text = json.dumps(found, separators=(",", ":"))
    (STATIC / f"{stem}_data.js").write_text(f"window.{name}Data = {text};\n", encoding="utf-8")
    mpl.rcParams.update({"svg.hashsalt": stem.replace("_", " "), "svg.fonttype": "path"})
    picture.savefig(STATIC / f"{stem}.svg", metadata={"Date": None})
