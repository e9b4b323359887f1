"""One meaning for each symbol on a page, or an honest `here` in the chapter's table of notation."""

import re
from collections import defaultdict
from pathlib import Path

from notebook_sync import chapters, read_text

ROOT = Path(__file__).parents[2]
HERE = re.compile(r"\bhere\b")
# What an example may choose: field, state, loss, counts and factors get values everywhere.
CHOSEN = {"f", "x", "L", "n", "N", r"\epsilon"}
# A formula after one of these words says what its symbol means.
CUE = re.compile(
    r"\b([Ll]et|[Pp]ut|[Ww]rite|[Ww]ith|[Ss]et|[Ww]here|[Cc]all|[Ff]or|is)\b[^.$]{0,40}$"
)


def scopes(heading: str) -> range:
    """Return the chapters that a heading of the notation page is about."""
    numbers = [int(number) for number in re.findall(r"\d+", heading)]
    return range(numbers[0], numbers[-1] + 1) if numbers else range(1, 100)


def rows() -> list[tuple[range, str, str]]:
    """Return the rows of the notation page: chapters, symbol, the rest of the row."""
    found, scope = [], range(0)
    for line in (ROOT / "book" / "notation.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            scope = scopes(line) if "hapters" in line or re.search(r"\d", line) else range(0)
        elif scope and line.startswith("| ") and not line.startswith("| symbol"):
            cell, _, rest = line.strip("| ").partition(" | ")
            found += [
                (scope, symbol(formula), rest) for formula in re.findall(r"\$([^$]+)\$", cell)
            ]
    return found


def symbol(formula: str) -> str:
    """Return what a formula of the first column names: `z = \\lambda h` names `z`."""
    return re.split(r"\s*(?:=|\\in|<)\s*", formula.strip())[0]


def test_no_symbol_has_two_rows_for_one_chapter_unless_it_says_so():
    by_symbol = defaultdict(list)
    for scope, name, rest in rows():
        by_symbol[name].append((scope, rest))
    assert len(by_symbol) > 100
    for name, meanings in by_symbol.items():
        for number in range(1, 20):
            told = sorted((len(s), rest) for s, rest in meanings if number in s)
            assert all(HERE.search(rest) for _, rest in told[:-1]), (name, number, told)


def definitions(text: str) -> dict[str, set[str]]:
    """Return what letters are said to be in a text: `with $q = 1 + L_f/N$`."""
    found = defaultdict(set)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    parts = text.split("$")
    for before, formula in zip(parts[::2], parts[1::2], strict=False):
        match = re.fullmatch(r"(\\?[A-Za-z]+)\s*=\s*(.+)", formula.strip(), flags=re.DOTALL)
        if not match or not (len(match[1]) == 1 or match[1].startswith("\\")):
            continue
        value = re.sub(r"\s|[.,:;]$", "", match[2])
        letters = re.sub(r"\\[a-z]+", "", value)
        if CUE.search(before) and re.search("[A-Za-z]", letters) and not value.startswith("O("):
            found[match[1]].add(value)
    return found


def test_definitions_are_found():
    text = r"Put $q = 1 + L$. $q = 7$. With $q = 1 + M:$ with $q = 1 + M$, $p = x$ and $\mu = 2a.$"
    assert definitions(text) == {"q": {"1+L", "1+M"}}


def test_a_letter_with_two_meanings_on_a_chapters_page_has_a_row_of_its_own():
    narrow = {(number, name) for scope, name, _ in rows() if len(scope) < 5 for number in scope}
    for path in chapters(ROOT):
        cells = read_text(path).cells
        prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for name, meanings in definitions(prose).items():
            if len(meanings) > 1 and name not in CHOSEN:
                assert (int(path.stem[:2]), name) in narrow, (
                    f"{path.stem}: ${name}$ is {sorted(meanings)}; give it another letter, or a "
                    "row under that chapter on the notation page"
                )
