"""One docutils node for any HTML element, for what Markdown and docutils have no word for."""

from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


class HtmlElement(nodes.General, nodes.TextElement):
    """An HTML element: its name in ``tag``, its attributes in ``given``, its content as children.

    Unlike raw HTML its content is found by the search, and formulas and links inside it work.
    """


def element(tag: str, *content: nodes.Node | str, **given: str) -> HtmlElement:
    """Return an element; text may stand for a text node, ``class_`` for ``class``."""
    children = [nodes.Text(part) if isinstance(part, str) else part for part in content]
    named = {name.rstrip("_").replace("_", "-"): value for name, value in given.items()}
    return HtmlElement("", "", *children, tag=tag, given=named)


def _open(self: HTML5Translator, node: HtmlElement) -> None:
    given = "".join(f' {name}="{escape(value)}"' for name, value in node["given"].items())
    self.body.append(f"<{node['tag']}{given}>")


def _close(self: HTML5Translator, node: HtmlElement) -> None:
    self.body.append(f"</{node['tag']}>")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_node(HtmlElement, html=(_open, _close))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
