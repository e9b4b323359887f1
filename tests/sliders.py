"""What the tests of the chapters' sliders share: the committed data, a small page, its bounds."""

import json
from contextlib import contextmanager
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from test_browser import PATIENCE, SERIOUS

STATIC = Path(__file__).parents[1] / "book" / "_static"
PAGE = """<!doctype html><html lang="en" data-theme="{theme}"><head><title>Slider</title>
<link rel="stylesheet" href="{static}/slider.css">
<link rel="stylesheet" href="{static}/{stem}.css">
<script defer src="{static}/{stem}_data.js"></script>
<script defer src="{static}/slider.js"></script>
<script defer src="{static}/{stem}.js"></script></head>
<body style="{colours}"><main><h1>Slider</h1>
<figure id="{label}-fig-slider"><img src="{static}/{stem}.svg" alt="The picture">
<figcaption>Caption</figcaption></figure></main></body></html>"""
COLOURS = {"light": "color:#222832;background:#fff", "dark": "color:#ced6dd;background:#14181e"}


def committed_data(stem):
    """Return what the page's script reads."""
    text = (STATIC / f"{stem}_data.js").read_text(encoding="utf-8")
    first, *rest = stem.split("_")
    name = first + "".join(part.capitalize() for part in rest)
    return json.loads(text.removeprefix(f"window.{name}Data = ").rstrip().removesuffix(";"))


def bytes_to_load(stem):
    """Return the size of all files of a slider."""
    own = (f"{stem}_data.js", f"{stem}.js", f"{stem}.css", f"{stem}.svg")
    files = (*own, "slider.js", "slider.css")
    return sum((STATIC / name).stat().st_size for name in files)


def written(folder, stem, theme):
    """Write a page with the slider alone, and return its address."""
    path = folder / "slider.html"
    label, static = stem.replace("_", "-"), STATIC.as_uri()
    text = PAGE.format(theme=theme, static=static, stem=stem, label=label, colours=COLOURS[theme])
    path.write_text(text)
    return path.as_uri()


@contextmanager
def opened(browser, folder, stem, theme="light", height=900):
    """Open the slider as wide as a telephone, and fail on any error of its script."""
    errors = []
    page = browser.new_page(viewport={"width": 390, "height": height})
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(written(folder, stem, theme))
    yield page
    page.close()
    assert not errors


def assert_inside(page, drawings, parts="polyline"):
    """Check that the page is not too wide, and that nothing is drawn outside its drawing."""
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert drawings.count() > 0
    for drawing in drawings.all():
        box = drawing.bounding_box()
        assert drawing.locator(parts).count() > 0
        for part in (found.bounding_box() for found in drawing.locator(parts).all()):
            assert part["x"] >= box["x"] - 1
            assert part["x"] + part["width"] <= box["x"] + box["width"] + 1
            assert part["y"] >= box["y"] - 1
            assert part["y"] + part["height"] <= box["y"] + box["height"] + 1


def assert_picture_gives_way(page):
    expect(page.get_by_alt_text("The picture")).to_be_hidden()


def assert_accessible(page):
    assert not [v for v in Axe().run(page).response["violations"] if v["impact"] in SERIOUS]


def assert_picture_stays_without_scripts(browser, folder, stem):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(written(folder, stem, "light"))
    expect(page.get_by_alt_text("The picture")).to_be_visible()
    context.close()
