"""The report on how pages read counts what it says it counts."""

from pathlib import Path

import page_style
import pytest
from page_style import Page

ROOT = Path(__file__).parents[2]


def counted(text):
    page = Page()
    page_style.read(text, page)
    return page


def test_sentences_are_told_apart():
    text = (
        "It has $h = 0.5$ here, cf. eq. 3. Is {glue:text}`a:.1f` **small**? See [this](x.md).\nYes!"
    )
    assert list(page_style.sentences(text)) == [
        "It has X here, cf. eq. 3.",
        "Is X small?",
        "See this.",
        "Yes!",
    ]
    assert list(page_style.sentences("**A label.** No end")) == []
    assert list(page_style.sentences("Let $h = T/N,$ or $1.$ Then $x$.")) == [
        "Let X, or X.",
        "Then X.",
    ]
    assert counted("One two three four five six seven eight. One two.").short == 0.5


def test_what_is_folded_is_counted_apart():
    text = """# Not counted

Two words.

$$
x = y
$$

```{math}
a
```

:::{card} Card
**Time** · 12 min to read.
:::

```{dropdown} Proof
Three folded words.
```

```{solution-start} x
:class: dropdown
```

Two more.

```{solution-end}
```

| a | table |
|:--|:--|
| not | counted |
"""
    page = counted(text)
    assert page.words["folded"] == 5
    assert page.formulas == 2
    assert page.minutes == 12
    assert page.words["shown"] == 2 + 1 + 5  # a formula is a word
    assert page.estimate == 2


def test_every_chapter_and_page_is_in_the_report():
    lines = "\n".join(page_style.report())
    for path in [*page_style.chapters(ROOT), *(ROOT / "book").glob("*.md")]:
        assert f"\n{path.stem} " in lines


def test_a_page_weighs_what_it_names_itself(tmp_path):
    for name, size in (("_images/a.png", 300_000), ("_static/styles/theme.css", 900_000)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "book").mkdir()
    html = '<link href="../_static/styles/theme.css"><img src="../_images/a.png?digest=1">'
    (tmp_path / "book" / "index.html").write_text(html + " " * 250_000)
    line = list(page_style.sizes(tmp_path))[-1]
    assert line.split() == ["index", "0.25", "0.55*"]


@pytest.mark.parametrize("name", ["index", "how_to_use", "for_instructors", "for_maintainers"])
def test_the_first_pages_keep_to_the_aims(name):
    assert page_style.prose(ROOT / "book" / f"{name}.md").short <= page_style.LARGEST_SHARE
