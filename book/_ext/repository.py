"""One setting for the repository's public address, empty by default.

The address is `repository: url:` in `_config.yml`, or the environment variable REPOSITORY_URL.
With it, pages get buttons for the repository, for an issue about the page and for an edit of its
source, notebooks a Colab button and the citation a link. Without it, none of these appears.
"""

import os
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

COLAB = "https://colab.research.google.com"
# Where the theme knows how a page is edited and an issue opened.
HOSTS = ("https://github.com/", "https://gitlab.com/")


def address(config: Config) -> str:
    """Return the repository's address without a trailing slash, or an empty string."""
    configured = config.html_theme_options.get("repository_url", "")
    url = (os.environ.get("REPOSITORY_URL") or configured or "").strip().rstrip("/")
    if url and not url.startswith("https://"):
        raise ConfigError(f"the repository's address must start with https://, not {url!r}")
    return url


def configure(app: Sphinx, config: Config) -> None:
    url, options = address(config), config.html_theme_options
    options["repository_url"] = url
    options["use_repository_button"] = bool(url)
    options["use_issues_button"] = options["use_edit_page_button"] = url.startswith(HOSTS)
    # Colab opens notebooks from GitHub only.
    colab = COLAB if url.startswith("https://github.com/") else ""
    options["launch_buttons"] = {"colab_url": colab}


def edit_the_source(app: Sphinx, pagename: str, template: str, context: Any, *rest: Any) -> None:
    """Point the edit button of a chapter at its text, of which the notebook is made."""
    if not pagename.startswith("notebooks/"):
        return
    for group in context.get("header_buttons", ()):
        for button in group.get("buttons", ()):
            if button.get("label") == "source-edit-button":
                button["url"] = button["url"].removesuffix(".ipynb") + ".md"


def bibtex(citation: dict, url: str) -> str:
    """Return the BibTeX entry of the course, from the fields of CITATION.cff."""
    fields = {
        "title": "{" + citation["title"] + "}",
        "author": "{" + citation["authors"][0]["name"] + "}",
        "version": citation["version"],
        "year": str(citation["date-released"])[:4],
    }
    if url:
        fields["url"] = url
    lines = [f"  {name:8}= {{{value}}}," for name, value in fields.items()]
    return "\n".join(["@software{continuous_depth,", *lines, "}"])


class HowToCite(Directive):
    """The BibTeX entry of the course and, where the address is known, a link to its source."""

    def run(self) -> list[nodes.Node]:
        env = self.state.document.settings.env
        source = Path(env.app.confdir, "CITATION.cff")
        env.note_dependency(str(source))
        url = address(env.config)
        entry = bibtex(yaml.safe_load(source.read_text(encoding="utf-8")), url)
        block = nodes.literal_block(entry, entry, language="bibtex")
        if not url:
            return [block]
        link = nodes.reference("", url, refuri=url)
        return [block, nodes.paragraph("", "", nodes.Text("Source: "), link)]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", configure)
    app.connect("html-page-context", edit_the_source, priority=900)  # after the theme's own
    app.add_directive("how-to-cite", HowToCite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
