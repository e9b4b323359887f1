"""``companion new``: the file, the catalogue row and the test of an experiment to be written."""

import re
from collections.abc import Iterator
from pathlib import Path

from companion.chapters import CHAPTERS
from companion.claims import CATALOGUE
from companion.files import replacing
from companion.listing import entries, stem, unknown

_EXPERIMENT = '''"""{id}: one line that asks the question.

What is computed, how, and what the tier ``full`` adds.
"""

from companion.experiments import Findings, Part, Run, experiment, grid


@experiment(
    "{id}",
    "One line on what it does",
    paper="not in the papers",
    claims=(("{claim}", "worst", None, 1.0, "largest number over {{count}} seeds"),),
    full={{"count": 10}},
    tiny={{"count": 1}},
)
def {name}(run: Run, *, count: int = 3) -> Findings:
    """Say what is measured.

    Curves: ``number``, one entry a seed. Scalars: ``worst``, the largest.
    """

    def measure(part: Part, seed: int) -> float:
        return 1 / (1 + seed)

    found = grid(run, measure, seed=run.seeds(count))
    return Findings({{"worst": found.values.max()}}, found.named("number"))
'''

_TEST = """from companion.experiments import run


def test_{name}_by_value():
    assert run("{id}", tier="tiny", seed=1)["worst"] == 0.5
"""

CLAIM = "One line that is true or false"
"""What the row says if nobody says more. A test asks that it is written over."""

_END = "    )\n}\n"
"""Where the rows of the catalogue end."""


def new(id: str, chapter: str, *words: str, claim: str = CLAIM) -> Iterator[str]:
    """Write what an experiment begins with and yield a line on each file.

    Args:
        id: its ID, not taken yet.
        chapter: the slug of its chapter.
        words: two words for the name of its file.
        claim: what it is to decide: at most 85 characters of Markdown for a row in the catalogue,
            or the ID of a row that is there.

    Raises:
        ValueError: an ID that is taken or is none, an unknown chapter, other words than two of
            small letters and digits, a claim that does not fit into a line, or no checkout of the
            repository to write to.
    """
    root = Path(__file__).parents[2]
    catalogue = root / "companion" / "claims.py"
    if not (root / "tests").is_dir():
        raise ValueError(f"there is no checkout of the repository at {root} to write to")
    if not re.fullmatch(r"[A-Z][A-Z0-9]*(-[A-Za-z0-9]+)*", id) or id in entries():
        raise ValueError(f"ID: {id!r} is not allowed; it must be new, and look like FW13 or S22-X6")
    if chapter not in CHAPTERS:
        raise ValueError(unknown("chapter", chapter, CHAPTERS))
    if len(words) != 2 or not all(re.fullmatch(r"[a-z0-9]+", word) for word in words):
        raise ValueError(f"words: {words} is not allowed; they must be two, of a-z and 0-9")
    if not claim.isprintable() or not 0 < len(_quoted(claim)) - 2 <= 85:
        raise ValueError(f"claim: {claim!r} is not allowed; it must be one line of 85 characters")
    name = stem(id)
    module = root / "companion/experiments" / chapter / f"{name}_{'_'.join(words)}.py"
    test = root / "tests/experiments" / chapter / f"test_{name}.py"
    package = module.parent / "__init__.py"
    text = catalogue.read_text(encoding="utf-8")
    rows, _, rest = text.rpartition(_END)
    if not package.exists():
        yield _write(package, f'"""Experiments of the chapter `{chapter}`."""\n')
    known = claim in CATALOGUE
    if not known:
        yield _write(catalogue, rows + _row(id, claim, chapter) + _END + rest)
    yield _write(module, _EXPERIMENT.format(id=id, name=name, claim=claim if known else id))
    yield _write(test, _TEST.format(id=id, name=name))
    yield f"then: write it, and record it by `companion run {id} --out book/results`"


def _row(id: str, claim: str, chapter: str) -> str:
    """Return the row of the catalogue, laid out as the formatter does."""
    fields = [_quoted(text) for text in (id, claim, "", "here", chapter)]
    row = f"        ({', '.join(fields)}),\n"
    if len(row) <= 101:
        return row
    return "        (\n" + "".join(f"            {field},\n" for field in fields) + "        ),\n"


def _quoted(text: str) -> str:
    quote = "'" if text.count('"') > text.count("'") else '"'
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


def _write(path: Path, text: str) -> str:
    done = "changed" if path.exists() else "written"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return f"{done}: {path}"
