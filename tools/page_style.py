"""Report how pages read: `python tools/page_style.py`. It never fails; `CONTRIBUTING.md` says why.

For each chapter: the share of sentences under eight words, words of prose in view and folded,
code cells in view, lines of code wider than the column, and the reading time on the card beside
an estimate. For each other page: words and short sentences. An asterisk marks what is beyond the
aim. `--html FOLDER` adds the size of each page of a built book.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chapter_skeleton import OPTION, PARSER
from markdown_it.token import Token
from notebook_sync import chapters, read_text

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "book" / "_ext"))

from plumbing import FOLDED, is_plumbing  # noqa: E402

SHORT = 8
COLUMN = 75
"""Characters of code in a line of a page 1280 pixels wide."""
WORDS_A_MINUTE = 150
LARGEST_SHARE, MOST_WORDS, MOST_CELLS = 0.12, 3500, 35
LARGEST_CHAPTER, LARGEST_INDEX = 1.0, 0.5  # megabytes
HIDDEN = {FOLDED, "hide-cell", "remove-cell", "remove-input"}
"""Tags of cells whose code is not in view."""
FOLDS = ("dropdown", "solution", "solution-start")
"""Directives whose content waits behind a click; the last lasts until its end."""
PROSE = {
    "admonition", "card", "dropdown", "exercise", "figure", "hint", "important", "margin", "note",
    "seealso", "solution", "tip", "warning",
}  # fmt: skip


@dataclass
class Page:
    """What was counted on a page."""

    sentences: list[str] = field(default_factory=list)
    words: dict[str, int] = field(default_factory=lambda: {"shown": 0, "folded": 0})
    formulas: int = 0
    cells: int = 0
    wide: int = 0
    minutes: int | None = None

    @property
    def short(self) -> float:
        """The share of sentences under eight words."""
        return sum(count(s) < SHORT for s in self.sentences) / max(len(self.sentences), 1)

    @property
    def estimate(self) -> int:
        """Minutes to read what is in view: words, and a minute for each formula on its own."""
        return round(self.words["shown"] / WORDS_A_MINUTE + self.formulas)


def count(text: str) -> int:
    """Return the number of words."""
    return len(re.findall(r"\w[\w'’.,-]*", text))


def plain(text: str) -> str:
    """Return a paragraph with formulas, code and roles as one word each, links as their texts.

    A full stop or comma inside a formula is one of the sentence.
    """
    text = re.sub(r"\{[\w:-]+\}`[^`]*`|`[^`]*`|\$[^$]*?([.,;:]?)\$", r"X\1", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)|<[^>]*>", r"\1", text)
    return " ".join(re.sub(r"[*_~]", "", text).split())


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a paragraph; labels, in bold or without an end, are left out."""
    text = re.sub(r"\A\*\*[^*]+\*\*", "", text)
    for part in re.split(r"(?<=[.?!])[\"”)]*\s+(?=[\"“(]?[A-Z])", plain(text)):
        if re.search(r"[.?!:;][\"”)]*$", part) and count(part) > 0:
            yield part


def read(text: str, page: Page, folded: bool = False) -> bool:
    """Count the Markdown of a cell or page; return whether a fold is still open at its end."""
    inside = None
    for token in PARSER.parse(text):
        if token.type in ("fence", "colon_fence", "math_block"):
            folded = directive(token, page, folded)
        elif token.type == "heading_open" or token.type == "table_open":
            inside = token.type
        elif token.type in ("heading_close", "table_close"):
            inside = None
        elif token.type == "inline" and inside is None:
            paragraph(token.content, page, folded)
    return folded


def paragraph(text: str, page: Page, folded: bool) -> None:
    """Count the words, sentences and display formulas of a paragraph."""
    text, displayed = re.subn(r"\$\$.*?\$\$", " X ", text, flags=re.DOTALL)
    page.formulas += displayed if not folded else 0
    page.words["folded" if folded else "shown"] += count(plain(text))
    page.sentences += sentences(text)


def directive(token: Token, page: Page, folded: bool) -> bool:
    """Count what a directive contains, if it is prose; return whether a fold is open after it."""
    match = re.match(r"\{([\w:-]+)\}\s*(.*)", token.info)
    name = match[1] if match else ""
    if name in ("solution-start", "solution-end"):
        return name == "solution-start"
    if name == "math" or token.type == "math_block":
        page.formulas += not folded
    elif name in PROSE or name.startswith("prf:"):
        if name == "card" and (time := re.search(r"(\d+) min\w* to read", token.content)):
            page.minutes = int(time[1])
        read(OPTION.sub("", token.content), page, folded or name in FOLDS)
    return folded


def chapter(path: Path) -> Page:
    """Count a chapter: prose, and the code that is in view."""
    page, folded = Page(), False
    for cell in read_text(path).cells:
        if cell.cell_type == "markdown":
            folded = read(cell.source, page, folded)
            continue
        tags = set(cell.metadata.get("tags", []))
        if not (folded or tags & HIDDEN or is_plumbing(cell.source, tags)):
            page.cells += 1
            page.wide += sum(len(line) > COLUMN for line in cell.source.splitlines())
    return page


def prose(path: Path) -> Page:
    """Count a page that is no notebook."""
    page = Page()
    read(path.read_text(encoding="utf-8"), page)
    return page


def marked(value: float, most: float, form: str = "d") -> str:
    """Spell a number, with an asterisk if it is beyond the aim."""
    return format(value, form) + ("*" if value > most else " ")


def row(name: str, page: Page) -> str:
    """Return what chapters and other pages have in common in their lines."""
    share = marked(page.short, LARGEST_SHARE, ".0%")
    return f"{name:24}{share:>7}{page.words['shown']:>8}{page.words['folded']:>8}"


def report() -> Iterator[str]:
    """Yield the lines on chapters and pages."""
    yield f"{'chapter':24}{'short':>7}{'words':>8}{'folded':>8}{'cells':>7}{'wide':>6}{'card':>7}"
    for path in chapters(ROOT):
        page = chapter(path)
        minutes = "–" if page.minutes is None else page.minutes
        cells, wide = marked(page.cells, MOST_CELLS), marked(page.wide, 0)
        words = "*" if page.words["shown"] > MOST_WORDS else ""
        yield (
            f"{row(path.stem, page)}{cells:>7}{wide:>6}{minutes:>5} min, {page.estimate} counted"
            + (f" (over {MOST_WORDS} words{words})" if words else "")
        )
    yield f"\n{'page':24}{'short':>7}{'words':>8}{'folded':>8}"
    for path in sorted((ROOT / "book").glob("*.md")):
        yield row(path.stem, prose(path))


def sizes(folder: Path) -> Iterator[str]:
    """Yield what each page of a built book weighs: its HTML, and the pictures and scripts it names.

    The theme and MathJax, which all pages share, are not counted.
    """
    yield f"\n{'size in MB':40}{'html':>8}{'own':>8}"
    for path in sorted([*folder.glob("notebooks/*.html"), *folder.glob("book/*.html")]):
        html = path.read_text(encoding="utf-8")
        named = set(re.findall(r'(?:src|href)="((?:\.\./)?_(?:images|static)/[^"?#]+)', html))
        own = [path.parent / name for name in named if is_own(name)]
        size = len(html.encode()) / 1e6
        whole = size + sum(file.stat().st_size for file in own if file.is_file()) / 1e6
        most = LARGEST_INDEX if path.stem == "index" else LARGEST_CHAPTER
        yield f"{path.stem:40}{size:8.2f}{marked(whole, most, '.2f'):>9}"


def is_own(name: str) -> bool:
    """Say whether a file is a picture of the page or one of the course's own scripts and styles."""
    return "_images/" in name or (ROOT / "book" / "_static" / Path(name).name).is_file()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--html", type=Path, help="folder of a built book, such as _build/html")
    given = parser.parse_args()
    print("\n".join(report()))
    if given.html:
        print("\n".join(sizes(given.html)))
