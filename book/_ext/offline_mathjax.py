"""Ship MathJax with the book, so that formulas need no network, not even over file://.

The PyPI package sphinx-mathjax-offline carries MathJax 3. Its own extension copies all of it;
pages need only the component that turns TeX into HTML, its extensions and its fonts.
"""

import importlib.util
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.fileutil import copy_asset

PARTS = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts/woff-v2")


def _mathjax_source() -> Path:
    # The module's name has a hyphen, so that an import statement cannot name it.
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ImportError("sphinx-mathjax-offline is missing: pip install -e '.[book]'")
    return Path(spec.origin).parent / "static" / "mathjax"


def _use_local_copy(app: Sphinx, config: Config) -> None:
    config.mathjax_path = "mathjax/tex-chtml.js"


def _copy(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    source, target = _mathjax_source(), Path(app.outdir, "_static", "mathjax")
    for part in PARTS:
        destination = target / part
        if (source / part).is_file():
            destination = destination.parent
        copy_asset(str(source / part), str(destination))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", _use_local_copy)
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
