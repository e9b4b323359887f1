"""The notebook tools, on a small chapter and a small package made for the purpose."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import notebook_sync
import papermill.cli
import papermill_run
import pytest
from chapter_skeleton import lacks
from nbclient.exceptions import CellExecutionError
from notebook_check import check
from notebook_record import record
from notebook_sync import RECORD, read_text, sync

import notebooks

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "notebooks" / "template.md"

CHAPTER = '''\
---
tiny: {n: 3}
---

# A chapter

```{code-cell} ipython3
:tags: [parameters]

n = 2
```

```{code-cell} ipython3
from companion import double


def triple(x):
    """Return three times x."""
    return 3 * x


print(double(n), triple(n))  # both
```

Something goes wrong.

```{code-cell} ipython3
:tags: [nbval-check-output]

try:
    double(None)
except TypeError as error:
    print(type(error).__name__)
```

```{code-cell} ipython3
name = "Q20-ERR"
triple(n)
```
'''
PACKAGE = {
    "__init__.py": "from companion.numbers import double\nfrom companion.unused import nothing\n",
    "numbers.py": '''\
"""Numbers."""


def double(x):
    """Return twice x."""
    from companion.deep import two

    return two * x
''',
    "deep.py": "two = 2\n",
    "unused.py": "nothing = 0\n",
    "experiments/__init__.py": "",
    "experiments/steps/__init__.py": "",
    "experiments/steps/q20_err_two_words.py": "def orders():\n    return 1\n",
    "experiments/steps/q20_err_x_two_words.py": "def others():\n    return 1\n",
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A root with one chapter, executed once."""
    root = tmp_path_factory.mktemp("executed")
    for name, code in PACKAGE.items():
        path = root / "companion" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    shutil.copy(ROOT / "companion" / "sources.py", root / "companion")
    text = root / "notebooks" / "01_tiny.md"
    text.parent.mkdir()
    text.write_text(CHAPTER)
    assert sync(text, root) == "executed"
    return root


@pytest.fixture
def root(executed, tmp_path):
    """A copy of the executed root for one test to change."""
    return Path(shutil.copytree(executed, tmp_path / "book"))


@pytest.fixture
def no_kernel(monkeypatch):
    def refuse(*_):
        pytest.fail("nothing should be executed")

    monkeypatch.setattr(notebook_sync, "_execute", refuse)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def outputs(root):
    notebook = nbformat.read(root / "notebooks" / "01_tiny.ipynb", as_version=4)
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def test_an_executed_chapter_is_sound_and_up_to_date(root, no_kernel):
    assert outputs(root)[1][0].text == "4 6\n"
    assert check(root) == []
    assert sync(root / "notebooks" / "01_tiny.md", root) == "up to date"


def test_another_run_gives_the_same_bytes_even_after_a_broken_merge(root):
    twin = root / "notebooks" / "01_tiny.ipynb"
    before = twin.read_bytes()
    twin.write_text("<<<<<<< ours\n")
    assert sync(root / "notebooks" / "01_tiny.md", root) == "executed"
    assert twin.read_bytes() == before
    assert sorted(path.name for path in twin.parent.iterdir()) == ["01_tiny.ipynb", "01_tiny.md"]


def test_an_edit_to_prose_keeps_the_outputs_and_runs_nothing(root, no_kernel):
    before = outputs(root)
    text = root / "notebooks" / "01_tiny.md"
    edit(text, "Something goes wrong.", "Something else.\n\n+++\n\nIn two cells.")
    edit(text, "# both", "# the two")
    assert sync(text, root) == "text updated"
    assert outputs(root) == before
    assert check(root) == []
    assert "In two cells" in text.with_suffix(".ipynb").read_text()


def test_stale_code_is_executed_again(root):
    edit(root / "companion" / "deep.py", "two = 2", "two = 20")
    assert sync(root / "notebooks" / "01_tiny.md", root) == "executed"
    assert outputs(root)[1][0].text == "40 6\n"


def test_a_failing_cell_leaves_the_old_notebook_and_is_reported(root, capsys):
    text = root / "notebooks" / "01_tiny.md"
    before = text.with_suffix(".ipynb").read_bytes()
    edit(text, "triple(n)\n```", "triple(n) / 0\n```")
    with pytest.raises(CellExecutionError):
        sync(text, root)
    assert text.with_suffix(".ipynb").read_bytes() == before
    assert notebooks.main(["sync"], root) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


NO_CHANGE = {
    "comment in a cell": ("notebooks/01_tiny.md", "# both", "# one and the other"),
    "docstring in a cell": ("notebooks/01_tiny.md", "Return three times x.", "Return 3 x."),
    "layout of a cell": ("notebooks/01_tiny.md", "double(n), triple", "double(n),  triple"),
    "prose": ("notebooks/01_tiny.md", "goes wrong", "fails"),
    "docstring of a module": ("companion/numbers.py", "Numbers.", "A few numbers."),
    "docstring of a function": ("companion/numbers.py", "Return twice x.", "Return 2 x."),
    "comment in a module": ("companion/deep.py", "two = 2", "two = 2  # even"),
    "module that is not imported": ("companion/unused.py", "0", "1"),
    "experiment that is not named": (
        "companion/experiments/steps/q20_err_x_two_words.py",
        "1",
        "2",
    ),
}
CHANGE = {
    "code of a cell": ("notebooks/01_tiny.md", "3 * x", "4 * x"),
    "tag of a cell": ("notebooks/01_tiny.md", "[nbval-check-output]", "[other]"),
    "value hidden by a semicolon": ("notebooks/01_tiny.md", "triple(n)\n```", "triple(n);\n```"),
    "string shown by a cell": ("notebooks/01_tiny.md", "triple(n)\n```", "triple(n)\n'a'\n```"),
    "magic line": ("notebooks/01_tiny.md", "triple(n)\n```", "triple(n)\n%who\n```"),
    "module behind the package's name": ("companion/numbers.py", "two * x", "x * two"),
    "module imported inside a function": ("companion/deep.py", "2", "3"),
    "experiment named by its ID": ("companion/experiments/steps/q20_err_two_words.py", "1", "2"),
}


@pytest.mark.parametrize(("file", "old", "new"), NO_CHANGE.values(), ids=NO_CHANGE)
def test_makes_nothing_stale(root, file, old, new):
    text = root / "notebooks" / "01_tiny.md"
    before = record(read_text(text), root)
    edit(root / file, old, new)
    assert record(read_text(text), root) == before


def test_a_page_that_shows_a_record_rests_on_its_numbers_not_on_its_code(root):
    results = root / "book" / "results"
    results.mkdir(parents=True)
    numbers = {"scalars": {"x": 1.0}, "curves": {}, "claims": [], "provenance": {"seconds": 1}}
    (results / "Q20-ERR.smoke.json").write_text(json.dumps(numbers))
    sync(root / "notebooks" / "01_tiny.md", root)
    edit(root / "companion/experiments/steps/q20_err_two_words.py", "1", "2")
    assert check(root) == []
    edit(results / "Q20-ERR.smoke.json", '"seconds": 1', '"seconds": 2')
    assert check(root) == []
    edit(results / "Q20-ERR.smoke.json", '"x": 1.0', '"x": 2.0')
    assert any("outputs are older than Q20-ERR.smoke.json" in line for line in check(root))


@pytest.mark.parametrize(("file", "old", "new"), CHANGE.values(), ids=CHANGE)
def test_makes_outputs_stale(root, file, old, new):
    edit(root / file, old, new)
    stale = [line for line in check(root) if "outputs are older than" in line]
    module = file.removesuffix(".py").replace("/", ".")
    assert len(stale) == 1
    assert ("the code cells" if file.endswith(".md") else module) in stale[0]


@pytest.mark.parametrize(
    ("count", "named"),
    [
        (1, "than m0; run"),
        (3, "than m0, m1, m2; run"),
        (4, "than m0, m1, m2 and 1 more; run"),
        (9, "than m0, m1, m2 and 6 more; run"),
    ],
)
def test_a_chapter_has_one_line_on_all_that_makes_it_stale(root, count, named):
    twin = root / "notebooks" / "01_tiny.ipynb"
    notebook = nbformat.read(twin, as_version=4)
    modules = notebook.metadata[RECORD]["modules"]
    modules.update({f"m{k}": "" for k in reversed(range(count))})  # gone since
    nbformat.write(notebook, twin)
    (line,) = check(root)
    assert line.startswith("01_tiny.md: outputs are older ")
    assert named in line


def test_edited_cells_and_modules_are_told_together(root):
    edit(root / "notebooks" / "01_tiny.md", "3 * x", "4 * x")
    edit(root / "companion" / "deep.py", "2", "3")
    stale = [line for line in check(root) if "older" in line]
    assert len(stale) == 1
    assert "older than the code cells, companion.deep; run" in stale[0]


FAILURE = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])


def shows(text):
    return lambda cell: cell.outputs[0].update(text=text)


# Which cell of the executed notebook (from 0), what is done to it, and the line that must tell.
FAULTS = {
    "type": (3, lambda cell: cell.update(cell_type="raw"), "the type differs"),
    "source": (2, lambda cell: cell.update(source="1"), "the source differs"),
    "tags": (2, lambda cell: cell.metadata.update(tags=["a"]), "the set of tags differs"),
    "caption": (2, lambda cell: cell.metadata.update(mystnb={}), "the figure metadata differs"),
    "blank": (2, lambda cell: cell.update(execution_count=None), "was not executed"),
    "order": (2, lambda cell: cell.update(execution_count=9), "out of order: count 9, not 2"),
    "edited output": (2, shows("5 6\n"), "not those of the recorded run"),
    "failure": (4, lambda cell: cell.update(outputs=[FAILURE]), "cell 5: failed"),
    "tag": (4, lambda cell: cell.metadata.update(tags=["raises-exception"]), "catch the error"),
    "stderr": (2, lambda cell: cell.outputs[0].update(name="stderr"), "wrote to stderr"),
    "home path": (2, shows("in /home/ada/x"), "a path of the machine it ran on: /home/"),
    "Windows path": (2, shows("in C:\\Users\\ada"), "a path of the machine it ran on"),
    "library path": (2, shows("lib/site-packages/x"), "the machine it ran on: site-packages"),
    "address": (2, shows("<f at 0x7f0123456789>"), "a memory address: at 0x7f0123456789"),
    "figure": (
        5,
        lambda cell: cell.outputs[0].data.update({"image/png": "aGk="}),
        "a figure without alt text",
    ),
}


@pytest.mark.parametrize(("number", "change", "line"), FAULTS.values(), ids=FAULTS)
def test_check_tells_a_fault(root, number, change, line):
    twin = root / "notebooks" / "01_tiny.ipynb"
    notebook = nbformat.read(twin, as_version=4)
    change(notebook.cells[number])
    nbformat.write(notebook, twin)
    assert any(line in fault for fault in check(root))


TEXT_FAULTS = {
    "no parameters": ("[parameters]", "[other]", "0 code cells are tagged `parameters`"),
    "derived parameter": ("n = 2\n", "n = 2\nm = 2 * n\n", "literals, not `m = 2 * n`"),
    "tiny": ("{n: 3}", "{n: 4}", "the front matter `tiny` differs"),
    "more cells": ("goes wrong.", "goes\n\n+++\n\nwrong.", "the text has 7 cells, the notebook 6"),
    "not Python": ("3 * x", "3 *", "cell 3 is not Python"),
}


@pytest.mark.parametrize(("old", "new", "line"), TEXT_FAULTS.values(), ids=TEXT_FAULTS)
def test_check_tells_a_fault_of_the_text(root, old, new, line):
    edit(root / "notebooks" / "01_tiny.md", old, new)
    assert any(line in fault for fault in check(root))


def test_check_tells_half_a_pair(root):
    shutil.copy(root / "notebooks/01_tiny.md", root / "notebooks/02_alone.md")
    shutil.copy(root / "notebooks/01_tiny.ipynb", root / "notebooks/03_alone.ipynb")
    assert check(root) == [
        "02_alone.md: 02_alone.ipynb is missing; run `make notebooks`",
        "03_alone.ipynb: there is no 03_alone.md to be its source",
    ]


def test_check_exits_with_one_and_accepts_a_book_without_chapters(root, tmp_path, capsys):
    assert notebooks.main(["check"], root) == 0
    assert notebooks.main(["check"], tmp_path) == 0
    edit(root / "companion" / "deep.py", "2", "3")
    assert notebooks.main(["check"], root) == 1
    assert "01_tiny.md: outputs are older than companion.deep" in capsys.readouterr().err


def test_check_does_not_import_torch(root):
    code = "import sys, notebooks; notebooks.main(['check']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tools").returncode == 0


def test_only_names_one_chapter(root, no_kernel, capsys):
    assert notebooks.main(["sync", "--only", "01"], root) == 0
    with pytest.raises(SystemExit):
        notebooks.main(["sync", "--only", "tiny"], root)
    assert "--only tiny: the chapters are 01_tiny" in capsys.readouterr().err


@pytest.mark.notebook
def test_papermill_run_sets_a_parameter(root, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(root))
    output = root / "out.ipynb"
    twin = root / "notebooks" / "01_tiny.ipynb"
    assert papermill_run.main([str(twin), str(output), "-p", "n", "5"]) == 0
    assert '"10 15\\n"' in output.read_text()


TYPED = (
    ("1e-3", 0.001),
    ("1.5E+2", 150.0),
    (".5", 0.5),
    ("-inf", -math.inf),
    ("-1e-3", -0.001),
    ("-p", "-p"),
    ("3", 3),
    ("1_000", 1000),
    ("0o17", "0o17"),
    ("017", 17),
    ("0x10", "0x10"),
    ("1:30", "1:30"),
    ("yes", "yes"),
    ("no", "no"),
    ("on", "on"),
    ("off", "off"),
    ("true", "true"),
    ("True", True),
    ("False", False),
    ("None", None),
    ("null", "null"),
    ("~", "~"),
    ("", ""),
    ("2024-01-02", "2024-01-02"),
    ("[1, 2]", "[1, 2]"),
    ("a: b", "a: b"),
    ("# x", "# x"),
)


def test_papermill_run_types_values_as_papermill_does(monkeypatch):
    """Both command lines, up to the call that would run the notebook."""
    seen = []
    monkeypatch.setattr(papermill_run, "run", lambda *found: seen.append(found[2]))
    monkeypatch.setattr(
        papermill.cli, "execute_notebook", lambda **found: seen.append(found["parameters"])
    )
    for text, value in TYPED:
        seen.clear()
        command = [str(TEMPLATE), "b.ipynb", "-p", "n", text, "-r", "raw", text]
        assert papermill_run.main(command) == 0
        papermill.cli.papermill(command, standalone_mode=False)
        ours, theirs = seen
        assert ours == theirs == {"n": value, "raw": text}
        assert type(ours["n"]) is type(theirs["n"]) is type(value)


def test_papermill_run_takes_yaml_for_lists_and_later_options_win(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(papermill_run, "run", lambda *found: seen.append(found[2]))
    files = [str(TEMPLATE), "b.ipynb"]
    document = "{depths: [2, 4], rate: 0.5, day: 2024-01-02}"
    assert papermill_run.main([*files, "-p", "rate", "1e-3", "-y", document]) == 0
    assert seen == [{"depths": [2, 4], "rate": 0.001, "day": "2024-01-02"}]
    for wrong, message in (("[1, 2]", "it must be a mapping"), ("{", "expected")):
        with pytest.raises(SystemExit):
            papermill_run.main([*files, "-y", wrong])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "name", "message"),
    [
        ("out.ipynb", "steps", "01_tiny.ipynb has no parameter steps; it has ['n']"),
        ("notebooks/01_tiny.ipynb", "n", "output must not be the notebook itself"),
    ],
)
def test_papermill_run_refuses_before_it_runs(root, capsys, output, name, message):
    twin = root / "notebooks" / "01_tiny.ipynb"
    before = twin.read_bytes()
    with pytest.raises(SystemExit):
        papermill_run.main([str(twin), str(root / output), "-p", name, "3"])
    assert message in capsys.readouterr().err
    assert twin.read_bytes() == before
    assert not (root / "out.ipynb").exists()


@pytest.mark.parametrize("rate", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("steps", [3, 10, 100])
def test_template_theorem(rate, steps):
    error = abs((1 - rate / steps) ** steps - math.exp(-rate))
    assert error <= rate**2 / (2 * steps)


def test_the_template_is_a_complete_chapter():
    assert lacks(read_text(TEMPLATE), ROOT) == []


@pytest.mark.notebook
def test_the_template_runs_twice_to_the_same_bytes(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "companion").symlink_to(ROOT / "companion")
    text = Path(shutil.copy(TEMPLATE, tmp_path / "notebooks" / "01_template.md"))
    assert sync(text, tmp_path) == "executed"
    assert check(tmp_path) == []
    before = text.with_suffix(".ipynb").read_bytes()
    assert b"image/png" in before
    assert sync(text, tmp_path, force=True) == "executed"
    assert text.with_suffix(".ipynb").read_bytes() == before


MISSING = {
    "card": ("**You need**", "**Needed**", "a `card` that says"),
    "tiny": ("tiny:\n  finest: 8\n", "", "front matter `tiny"),
    "theorem": ("{prf:theorem}", "{prf:remark}", "a numbered theorem or proposition"),
    "number": (":label: template-euler", ":nonumber:", 'method has order one": a number'),
    "proof": ("{prf:proof}", "{note}", "a proof right after it"),
    "test": ("Checked by `tests", "Checked by `test", "the test that checks it"),
    "existing test": (
        "::test_template_theorem",
        "::test_gone",
        "::test_gone, which does not exist",
    ),
    "existing test file": ("test_notebook_tools.py", "test_gone.py", "which does not exist"),
    "exercises": ("{exercise} Core: a ratio", "{note} Core: a ratio", "4 to 7 exercises, not 3"),
    "solution": ("{solution} template-core-1", "{note}", "'Core: a ratio': a label and a solution"),
    "folded solution": (":class: dropdown", ":class: tip", "with `:class: dropdown`"),
    "section": ("## Summary", "## The end", "a section `## Summary`"),
    "order": ("## Measure it", "## Further reading", "in the order what goes wrong"),
    "failure": ("turns decay into growth.", "grows.\n\n## Later", "a code cell under `## What"),
    "short cells": ("end = (1", "# \n" * 30 + "end = (1", "30 lines or fewer, not 33"),
    "alt text": (
        "image:\n    alt:",
        "image:\n    align:",
        "caption, name and alt text in `mystnb`",
    ),
    "figure": ("mystnb:", "other:", "a figure with caption, name and alt text"),
}


def test_a_test_may_be_named_in_a_fold_after_the_proof(tmp_path):
    chapter = Path(shutil.copy(TEMPLATE, tmp_path / "01_template.md"))
    named = "Checked by `tests/book/test_notebook_tools.py::test_template_theorem`."
    edit(chapter, named, "")
    end = r"\tfrac12 \lambda^2 / N^2$." + "\n:::\n::::\n"
    edit(chapter, end, f"{end}\n:::{{dropdown}} Checked by\n{named}\n:::\n")
    assert lacks(read_text(chapter), ROOT) == []


@pytest.mark.parametrize(("old", "new", "line"), MISSING.values(), ids=MISSING)
def test_skeleton_tells_what_is_missing(tmp_path, old, new, line):
    chapter = Path(shutil.copy(TEMPLATE, tmp_path / "01_template.md"))
    edit(chapter, old, new)
    assert re.search(re.escape(line), "\n".join(lacks(read_text(chapter), ROOT)))
