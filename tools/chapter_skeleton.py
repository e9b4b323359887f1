"""Say what a chapter's text lacks of the common skeleton."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from mdit_py_plugins.colon_fence import colon_fence_plugin
from nbformat import NotebookNode

SECTIONS = ("what goes wrong", "exercises", "summary", "further reading")
CARD = ("you will do", "you will be able to", "you need", "to read", "cpu", "gpu")
THEOREMS = {"prf:theorem", "prf:proposition", "prf:lemma", "prf:corollary"}
LONGEST_CELL = 30
EXERCISES = range(4, 8)
TEST = re.compile(r"tests/[\w/]+\.py::[\w:]+")
PARSER = MarkdownIt().enable("table").use(colon_fence_plugin)
OPTION = re.compile(r"\A(?:---\n.*?^---\n|(?::[\w-]+:.*\n)+)", re.MULTILINE | re.DOTALL)
"""The options at the head of a directive's content."""


@dataclass(frozen=True)
class Directive:
    """A MyST directive: its name, its argument and the text inside it."""

    name: str
    argument: str
    body: str


def lacks(notebook: NotebookNode, root: Path) -> list[str]:
    """Return one line for everything the chapter `notebook` still needs."""
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = list(directives(prose))
    return [
        *_frame(found, notebook),
        *_theorems(found, root),
        *_exercises(found),
        *_sections(notebook),
        *_cells(notebook),
    ]


def directives(text: str) -> Iterator[Directive]:
    """Yield every directive of `text`, also those inside others, in order."""
    for token in PARSER.parse(text):
        match = re.match(r"\{([\w:-]+)\}\s*(.*)", token.info)
        if token.type in ("fence", "colon_fence") and match:
            yield Directive(match[1], match[2].strip(), token.content)
            yield from directives(token.content)


def _frame(found: list[Directive], notebook: NotebookNode) -> Iterator[str]:
    cards = [directive.body.lower() for directive in found if directive.name == "card"]
    if not any(all(phrase in body for phrase in CARD) for body in cards):
        yield f"a `card` that says: {', '.join(CARD)}"
    if not notebook.metadata.get("tiny"):
        yield "front matter `tiny: {name: value}`, parameters for a run of a few seconds"


def _theorems(found: list[Directive], root: Path) -> Iterator[str]:
    """Ask that each theorem is followed by its proof, and that a real test is named.

    The test stands in the theorem or the proof, in a fold or not, or in a fold `Checked by` after.
    """
    formal = [d for d in found if d.name in THEOREMS or d.name == "prf:proof"]
    theorems = [number for number, d in enumerate(formal) if d.name in THEOREMS]
    if not theorems:
        yield "a numbered theorem or proposition"
    for number in theorems:
        theorem, proof = formal[number], formal[number + 1 : number + 2]
        name = f"theorem {theorem.argument!r}"
        if ":nonumber:" in theorem.body:
            yield f"{name}: a number"
        if not proof or proof[0].name != "prf:proof":
            yield f"{name}: a proof right after it"
            continue
        after = found[found.index(proof[0]) + 1 :][:1]
        folds = [d.body for d in after if _is_check(d)]
        tests = TEST.findall("\n".join([theorem.body, proof[0].body, *folds]))
        if not tests:
            yield f"{name}: the test that checks it, as `tests/test_x.py::test_y`"
        yield from (
            f"{name}: {test}, which does not exist" for test in tests if not is_test(test, root)
        )


def _is_check(directive: Directive) -> bool:
    return directive.name == "dropdown" and directive.argument.lower().startswith("checked by")


def is_test(name: str, root: Path) -> bool:
    """Return whether `tests/test_x.py::[TestClass::]test_y` is defined under `root`."""
    file, *path = name.split("::")
    if not (root / file).is_file():
        return False
    body: list[ast.stmt] = ast.parse((root / file).read_bytes()).body
    for part in path:
        definitions = (n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef))
        node = next((n for n in definitions if n.name == part), None)
        if node is None:
            return False
        body = node.body
    return path[-1].startswith("test_")


def _exercises(found: list[Directive]) -> Iterator[str]:
    """Ask for four to seven exercises, each with a folded solution."""
    asked = [d for d in found if d.name in ("exercise", "exercise-start")]
    solved = {d.argument: d.body for d in found if d.name in ("solution", "solution-start")}
    if len(asked) not in EXERCISES:
        yield f"{EXERCISES[0]} to {EXERCISES[-1]} exercises, not {len(asked)}"
    for exercise in asked:
        label = re.search(r":label:\s*(\S+)", exercise.body)
        body = solved.get(label[1]) if label else None
        if body is None:
            yield f"exercise {exercise.argument!r}: a label and a solution"
        elif not re.search(r":class:.*\bdropdown\b", body):
            yield f"exercise {exercise.argument!r}: a solution with `:class: dropdown`"


def _sections(notebook: NotebookNode) -> Iterator[str]:
    """Ask for the closing sections in order, and for code in the one on failures."""
    headings: list[str] = []
    with_code = set()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings += [
                heading.lower() for heading in re.findall(r"^## +(.+)$", cell.source, re.M)
            ]
        elif headings:
            with_code.add(headings[-1])
    present = [heading for heading in headings if heading in SECTIONS]
    yield from (f"a section `## {name.capitalize()}`" for name in SECTIONS if name not in present)
    if present != sorted(present, key=SECTIONS.index):
        yield f"its sections in the order {', '.join(SECTIONS)}"
    if SECTIONS[0] in present and SECTIONS[0] not in with_code:
        yield "a code cell under `## What goes wrong`"


def _cells(notebook: NotebookNode) -> Iterator[str]:
    figures = 0
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code":
            continue
        tags = set(cell.metadata.get("tags", []))
        if (lines := len(cell.source.splitlines())) > LONGEST_CELL:
            yield f"cell {number}: {LONGEST_CELL} lines or fewer, not {lines}"
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        image = cell.metadata.get("mystnb", {}).get("image", {})
        complete = figure.get("caption") and figure.get("name") and image.get("alt")
        figures += bool(complete)
        if "plot" in tags and not complete:
            yield f"cell {number}: a figure's caption, name and alt text in `mystnb`"
    if figures == 0:
        yield "a figure with caption, name and alt text"
