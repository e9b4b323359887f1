"""The built pages, and the texts they are made from."""

import ast
import functools
import importlib
import inspect
import json
import pkgutil
import re
from importlib.resources import files
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import unquote

import pytest
import torch
import yaml
from book_build import ROOT, Book, chapters_in_toc, jupyter_book, shared_book, soup
from bs4 import BeautifulSoup
from chapter_skeleton import TEST, is_test
from sphinx.errors import ConfigError
from sphinx.util.inventory import InventoryFile

import companion
from companion.chapters import CHAPTERS

EXTERNAL = re.compile(r"^(https?:)?//", re.IGNORECASE)
TEXTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "book").rglob("*.md"),
    *(ROOT / "notebooks").glob("*.md"),
]
CODE = [
    path
    for folder in ("companion", "tests", "tools", "book", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
]


# The build and its pages


@pytest.fixture(scope="session")
def book(tmp_path_factory, worker_id) -> Book:
    return shared_book(tmp_path_factory, worker_id)


def test_build_is_clean(book):
    problems = [line for line in book.log.splitlines() if re.search("WARNING|ERROR", line)]
    assert not problems, "\n".join(problems)
    assert book.status == 0, book.log[-3000:]


def test_every_document_of_the_toc_is_a_page(book):
    assert {f"{name}.html" for name in chapters_in_toc()} <= set(book.pages())


def test_pages_load_nothing_from_the_network(book):
    loads = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "srcset"}
    for name, path in book.pages().items():
        for tag, attribute in loads.items():
            for node in soup(path).find_all(tag):
                assert not EXTERNAL.match(node.get(attribute) or ""), f"{name}: {node}"
        styles = " ".join(node.text for node in soup(path).find_all("style"))
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", styles), name
    for path in book.html.rglob("*.css"):
        assert not re.search(
            r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")
        ), path.name


def test_mathjax_is_part_of_the_book(book):
    assert (book.html / "_static" / "mathjax" / "tex-chtml.js").is_file()
    scripts = [node.get("src", "") for node in soup(book.pages()["book/notation.html"])("script")]
    assert any(src.startswith("../_static/mathjax/tex-chtml.js") for src in scripts)


@functools.cache
def anchors(page: Path) -> set[str]:
    return {node["id"] for node in soup(page).find_all(id=True)} | {
        node["name"] for node in soup(page).find_all("a", attrs={"name": True})
    }


@functools.cache
def linked(folder: Path, address: str) -> Path | None:
    """Return the file that an address in a page of a folder leads to."""
    target = (folder / unquote(address)).resolve()
    return target if target.is_file() else None


def test_internal_links_and_anchors_resolve(book):
    for name, path in book.pages().items():
        for node in soup(path).find_all(["a", "link", "img", "script"]):
            link = node.get("href") or node.get("src")
            if node.name == "a" and node.has_attr("href"):
                assert link, f"{name}: empty link {node}"
            if not link or re.match(r"^[a-z]+:|^//", link) or link == "#":
                continue
            address, _, fragment = link.partition("#")
            address = address.partition("?")[0]
            target = linked(path.parent, address) if address else path
            assert target is not None, f"{name}: {link} is missing"
            if fragment and target.suffix == ".html":
                assert unquote(fragment) in anchors(target), f"{name}: no anchor {link}"


def test_no_raw_tex(book):
    tex = re.compile(r"\\[a-zA-Z]{2,}|\\[(\[]|\$[^$\s][^$]*\$")
    for name, path in book.pages().items():
        if name.startswith("_modules"):
            continue
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for node in page.select(".math, pre, code, script, style"):
            node.decompose()
        found = tex.search(page.get_text())
        assert not found, f"{name}: {found}"


def test_images_have_alternative_text(book):
    for name, path in book.pages().items():
        for image in soup(path).find_all("img"):
            alt = image.get("alt", "").strip()
            assert alt, f"{name}: {image} has no alt text"
            # The path of a file is none; a fraction such as 1/N is.
            path_like = re.search(r"(?<!\d)[/\\]|\.(png|svg|jpe?g|gif)$|[0-9a-f]{16}", alt)
            assert not path_like, f"{name}: {alt}"


def test_equal_numbers_of_images_for_light_and_dark(book):
    page = soup(book.pages()["book/index.html"])
    assert len(page.select("img.only-light")) == len(page.select("img.only-dark")) == 1


def test_the_ledger_stays_light(book):
    assert book.pages()["book/ledger.html"].stat().st_size <= 300_000


def test_titles_are_unique(book):
    titles = [soup(book.pages()[f"{name}.html"]).h1.get_text() for name in chapters_in_toc()]
    assert len(set(titles)) == len(titles)


# The API pages


def public_modules() -> list[ModuleType]:
    """Return `companion` and what lies directly in it; deeper modules are reached through these."""
    names = [info.name for info in pkgutil.iter_modules(companion.__path__)]
    return [companion] + [
        importlib.import_module(f"companion.{name}") for name in names if not name.startswith("_")
    ]


def public_names(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def resolve(name: str) -> object:
    module, _, rest = name, "", ""
    while True:
        try:
            value: object = importlib.import_module(module)
            break
        except ImportError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}" if rest else last
    for part in rest.split(".") if rest else []:
        # A module may import a name when it is first asked for.
        look = getattr if isinstance(value, ModuleType) else inspect.getattr_static
        value = look(value, part, None)
    return value


def test_every_public_name_is_documented(book):
    with (book.html / "objects.inv").open("rb") as stream:
        inventory = InventoryFile.load(stream, "", lambda base, path: path)
    names = {name for kind in inventory if kind.startswith("py:") for name in inventory[kind]}
    documented = {id(resolve(name)) for name in names}
    missing = [
        f"{module.__name__}.{name}"
        for module in public_modules()
        for name in public_names(module)
        if f"{module.__name__}.{name}" not in names and id(getattr(module, name)) not in documented
    ]
    # Add the module to a page of book/api by `automodule`, or the docstring to the name.
    assert not missing


def test_api_index_links_every_api_page():
    index = (ROOT / "book" / "api" / "index.md").read_text()
    pages = {path.name for path in (ROOT / "book" / "api").glob("*.md")} - {"index.md"}
    assert set(re.findall(r"\((\w+\.md)\)", index)) == pages


# The local extensions


@pytest.fixture
def extension(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    return importlib.import_module


def test_docstring_formulas_become_math(extension):
    to_rst = extension("docstrings").to_rst
    assert to_rst("the $n$th of $a_i$, ``$x$``") == r"the :math:`n`\ th of :math:`a_i`, ``$x$``"
    assert to_rst(">>> print('$x$')\n$y$") == ">>> print('$x$')\n:math:`y`"
    shown = to_rst("    $$a\n    = b .$$\n\n    next")
    assert shown == "\n    .. math::\n\n       a = b .\n\n\n    next"
    assert to_rst("costs 5 $ and 6 $") == "costs 5 $ and 6 $"


CONFIGURED = {
    "": ("", ""),
    "https://github.com/o/n/": ("https://github.com/o/n", "https://colab.research.google.com"),
    "https://git.example.org/o/n": ("https://git.example.org/o/n", ""),
}


@pytest.mark.parametrize("where", ["file", "environment"])
@pytest.mark.parametrize("url", CONFIGURED)
def test_one_setting_turns_links_on_and_off(extension, monkeypatch, url, where):
    monkeypatch.setenv("REPOSITORY_URL", url if where == "environment" else "")
    config = SimpleNamespace(html_theme_options={"repository_url": url if where == "file" else ""})
    extension("repository").configure(None, config)
    address, colab = CONFIGURED[url]
    assert config.html_theme_options == {
        "repository_url": address,
        "use_repository_button": bool(address),
        "use_issues_button": "github" in address,
        "use_edit_page_button": "github" in address,
        "launch_buttons": {"colab_url": colab},
    }


def test_an_address_without_scheme_is_refused(extension, monkeypatch):
    monkeypatch.setenv("REPOSITORY_URL", "github.com/o/n")
    with pytest.raises(ConfigError, match="https://"):
        extension("repository").address(SimpleNamespace(html_theme_options={}))


def test_the_address_is_empty_by_default():
    assert yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"] == ""


def small_book(folder: Path) -> Path:
    """Write a book of two pages with this book's configuration: a citation and a notebook."""
    (folder / "book").mkdir(parents=True)
    for name in ("_config.yml", "CITATION.cff", "book/_ext", "book/_static", "book/references.bib"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "notebooks").mkdir()
    (folder / "_toc.yml").write_text(
        "format: jb-book\nroot: index\nchapters:\n  - file: notebooks/chapter\n", encoding="utf-8"
    )
    (folder / "index.md").write_text("# Index\n\n```{how-to-cite}\n```\n", encoding="utf-8")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cell = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Chapter"]}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4}
    (folder / "notebooks" / "chapter.ipynb").write_text(
        json.dumps({**notebook, "nbformat_minor": 5}), encoding="utf-8"
    )
    return folder


@pytest.mark.parametrize("url", ["", "https://github.com/owner/name"])
def test_pages_show_links_only_with_an_address(tmp_path, url):
    built = jupyter_book(small_book(tmp_path / "source"), tmp_path / "out", REPOSITORY_URL=url)
    assert built.status == 0, built.log[-3000:]
    links = {
        name: [node.get("href") for node in soup(path).find_all("a")]
        for name, path in built.pages().items()
    }
    chapter = links["notebooks/chapter.html"]
    colab = "https://colab.research.google.com/github/owner/name/blob/main/notebooks/chapter.ipynb"
    assert (colab in chapter) == bool(url)
    assert (f"{url}/edit/main/notebooks/chapter.md" in chapter) == bool(url)
    assert (f"{url}/edit/main/index.md" in links["index.html"]) == bool(url)
    issues = [link for link in chapter if link and "/issues/new?" in link]
    assert [link.partition("?")[0] for link in issues] == ([f"{url}/issues/new"] if url else [])
    assert (url in links["index.html"]) == bool(url)
    entry = soup(built.pages()["index.html"]).find("pre").get_text()
    assert ("url" in entry) == bool(url)
    outside = [link for found in links.values() for link in found if link and EXTERNAL.match(link)]
    assert bool(outside) == bool(url), outside
    assert "" not in [link for found in links.values() for link in found]


def test_chapters_and_their_figures_carry_the_number_of_the_file(book):
    """Also where chapters in between are not written yet, and on pages below a chapter."""
    pages = {f"{name}.html": name for name in chapters_in_toc() if name.startswith("notebooks/")}
    assert pages
    for page, name in pages.items():
        html = soup(book.pages()[page])
        number = str(int(Path(name).name[:2]))
        assert html.select_one("h1 .section-number").get_text().strip() == f"{number}."
        assert html.title.get_text().startswith(f"{number}. ")  # links to neighbours read this
        captions = [c.get_text().split()[1] for c in html.find_all(class_="caption-number")]
        assert captions
        assert {c.split(".")[0] for c in captions} == {number}


def test_the_index_maps_every_chapter(book, extension):
    """Those that are written by a link, under the title they have; the others as to come."""
    gains = extension("course_map").GAINS
    assert gains.keys() == CHAPTERS.keys()
    html = soup(book.pages()["book/index.html"]).find("article")
    items = [item for item in html.find_all("li") if re.match(r"\d+: ", item.get_text())]
    assert len(items) == len(CHAPTERS)
    written = set(chapters_in_toc())
    for item, chapter in zip(items, CHAPTERS.values(), strict=True):
        link = item.find("a")
        assert item.get_text().startswith(f"{chapter.number}: {chapter.title}")
        assert (link is not None) == (chapter.notebook in written)
        assert item.get_text().replace("\u2019", "'").endswith(gains[chapter.slug])
        if link is None:
            assert item.get_text().startswith(f"{chapter.number}: {chapter.title} (to come)")
        else:
            assert link["href"] == f"../{chapter.notebook}.html"
            text = (ROOT / f"{chapter.notebook}.md").read_text(encoding="utf-8")
            assert f"\n# {chapter.title}\n" in text


# The texts


def code_blocks(path: Path) -> list[str]:
    blocks = re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "%pip" not in block]


def test_readme_examples_run_and_the_first_is_five_lines():
    example, memory_free, continuous = code_blocks(ROOT / "README.md")
    assert len([line for line in example.splitlines() if line and "import" not in line]) <= 5
    scope: dict = {}
    exec(example, scope)
    exec(memory_free, scope)
    assert all(p.grad.abs().sum() > 0 for p in scope["block"].parameters())
    exec(continuous, scope)
    blocks = [(net.blocks[0].weights.basis.cells, net.blocks[0].steps)
              for net in (scope["net"], scope["shallow"])]  # fmt: skip
    assert blocks == [(4, 4), (4, 1)]
    expected = torch.exp(torch.tensor([-1.0]))
    torch.testing.assert_close(scope["ys"][-1], expected)
    torch.testing.assert_close(scope["y0"].grad, expected)


@pytest.mark.parametrize("name", ["index", "for_instructors", "torchdiffeq"])
def test_examples_on_pages_run(name):
    torch.manual_seed(0)
    scope = {
        "residual": torch.nn.Linear(2, 2),
        "x": torch.randn(3, 2),
        "func": lambda t, y: -y,
        "y0": torch.ones(2),
        "t": torch.linspace(0, 1, 3),
    }
    blocks = code_blocks(ROOT / "book" / f"{name}.md")
    assert blocks
    for block in blocks:
        exec(block, scope)


def test_readme_table_lists_the_chapters():
    table = re.findall(
        r"^\| (\d+) \| (.+?) \| \[`(notebooks/\S+)\.md`\]\((\S+)\) \|$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    assert [chapter for _, _, chapter, _ in table] == [
        name for name in chapters_in_toc() if name.startswith("notebooks/")
    ]
    for number, title, chapter, link in table:
        text = (ROOT / link).read_text()
        assert link == f"{chapter}.md"
        assert Path(chapter).name.startswith(f"{int(number):02}_")
        assert re.search(r"^# (.+)$", text, re.MULTILINE)[1] == title


def test_tests_that_pages_name_exist():
    named = {name for path in TEXTS for name in TEST.findall(path.read_text(encoding="utf-8"))}
    named -= {"tests/test_x.py::test_y"}
    assert len(named) > 100
    assert [name for name in sorted(named) if not is_test(name, ROOT)] == []


def prose(path: Path) -> str:
    """Return a text without code, addresses and names in capitals."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        nodes = ast.walk(ast.parse(text))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        comments = re.findall(r"^\s*# .*$", text, re.MULTILINE)
        text = "\n".join(
            [ast.get_docstring(n) or "" for n in nodes if isinstance(n, kinds)] + comments
        )
        text = re.sub(r"^\s*(>>>|\.\.\.) .*$", "", text, flags=re.MULTILINE)
    text = re.sub(
        r"^( *)(```+|~~~+)(?!\{(?!code)).*?^\1\2$", "", text, flags=re.MULTILINE | re.DOTALL
    )
    text = re.sub(r"<[^>]+>|`[^`]*`|https?://\S+|\[[^\]]*\]\([^)]*\)", " ", text)
    return re.sub(r"\b[A-Z]{2,}\b|MIT License", " ", text)


def american_words() -> set[str]:
    """Return codespell's American forms, less those that are British words too."""
    pairs = (files("codespell_lib") / "data" / "dictionary_en-GB_to_en-US.txt").read_text()
    words = {word.strip() for line in pairs.splitlines() for word in line.split("->")[1].split(",")}
    return words - {
        "",
        "draft",
        "licenses",
        "math",
        "practice",
        "practices",
        "program",
        "meter",
        "meters",
    }


def test_british_spelling():
    american = american_words()
    ending = re.compile(r"\w{3,}i[sz](?<=z)(e|es|ed|er|ers|ing|ation|ations)$")
    common = {"size", "sizes", "sized", "resize", "seize", "prize", "prizes", "capsize", "horizon"}
    found = {}
    for path in (*TEXTS, *CODE):
        words = set(re.findall(r"[a-z]+", prose(path).lower()))
        ized = {word for word in words if ending.match(word)} - common
        if wrong := sorted((words & american) | ized):
            found[str(path.relative_to(ROOT))] = wrong
    assert found == {}
    assert len(CODE) > 100


def test_nothing_names_this_machine(book):
    here = re.compile(re.escape(str(ROOT)) + r"\b|/(home|root|Users)/\w|/tmp/\w|file:///\w")
    sources = [*TEXTS, *(ROOT / "notebooks").glob("*.ipynb"), ROOT / "constraints.txt"]
    sources += [*(ROOT / "companion").rglob("*.py"), *(ROOT / "book" / "results").glob("*.json")]
    sources += book.pages().values()
    for path in sources:
        found = here.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path}: {found}"


def test_registries_are_not_named():
    # An index that one machine uses would break the install on another.
    for name in ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"index-url|find-links|trusted-host|https?://(?!localhost)", text), (
            name
        )
