"""The slider of chapter 11: its data are current, and it works by mouse and by keyboard."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from test_browser import SERIOUS

ROOT = Path(__file__).parents[1]
STATIC = ROOT / "book" / "_static"
FILES = ("refinement_data.js", "refinement.js", "refinement.css", "refinement.svg")


@pytest.fixture(scope="module")
def module():
    sys.path.insert(0, str(ROOT / "book"))
    import refinement_figure

    yield refinement_figure
    sys.path.remove(str(ROOT / "book"))


@pytest.fixture(scope="module")
def committed():
    text = (STATIC / "refinement_data.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix("window.refinementData = ").rstrip().removesuffix(";"))


def test_data_are_what_the_code_computes(module, committed):
    """The first refinement and an epoch after it; to the end it takes much longer."""
    for name, epochs in (("grown", 7), ("deep", 1)):
        fresh = module.record(module.NETS[name], epochs)
        assert len(fresh) == epochs + (2 if name == "grown" else 1)
        for entry, old in zip(fresh, committed["nets"][name], strict=False):
            new = module.shown(entry, committed["weights"])
            assert {k: new[k] for k in ("epoch", "cells")} == {
                k: old[k] for k in ("epoch", "cells")
            }
            assert new["error"] == pytest.approx(old["error"], abs=0.005)
            assert new["variation"] == pytest.approx(old["variation"], rel=0.01)
            torch.testing.assert_close(
                torch.tensor(new["rows"]), torch.tensor(old["rows"]), rtol=0, atol=1e-3
            )


def test_a_split_is_shown_before_the_copies_part(committed):
    grown = committed["nets"]["grown"]
    splits = [(a, b) for a, b in pairwise(grown) if a["cells"] < b["cells"]]
    assert [b["epoch"] for _, b in splits] == [6, 12, 18]
    for coarse, fine in splits:
        assert fine["epoch"] == coarse["epoch"]
        assert fine["rows"] == [[v for v in row for _ in range(2)] for row in coarse["rows"]]
    assert grown[-1]["epoch"] == committed["nets"]["deep"][-1]["epoch"] == 30


def test_variation_is_the_jumps_over_the_largest_row(module):
    class Net:
        class block:
            weights = torch.nn.ParameterList([torch.tensor([[[3.0, 4.0]], [[3.0, 0.0]]])])

    found = module.look(Net, 0.5)
    assert found["variation"] == pytest.approx(4 / 5)
    assert found["cells"] == 2


def test_it_is_small():
    assert sum((STATIC / name).stat().st_size for name in FILES) < 200_000


PAGE = """<!doctype html><html lang="en" data-theme="{theme}"><head><title>Slider</title>
<link rel="stylesheet" href="{static}/refinement.css">
<script defer src="{static}/refinement_data.js"></script>
<script defer src="{static}/refinement.js"></script></head>
<body style="{colours}"><main><h1>Slider</h1>
<figure id="refinement-fig-slider"><img src="{static}/refinement.svg" alt="All levels">
<figcaption>Caption</figcaption></figure></main></body></html>"""
COLOURS = {"light": "color:#222832;background:#fff", "dark": "color:#ced6dd;background:#14181e"}


@pytest.fixture(params=["light", "dark"])
def page(request, browser, tmp_path):
    theme = request.param
    path = tmp_path / "slider.html"
    path.write_text(PAGE.format(theme=theme, static=STATIC.as_uri(), colours=COLOURS[theme]))
    page = browser.new_page(viewport={"width": 390, "height": 900})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    yield page
    page.close()
    assert not errors


@pytest.mark.browser
def test_the_keyboard_moves_through_the_training(page, committed):
    slider = page.get_by_role("slider", name="Training")
    slider.focus()
    cells = page.locator(".refinement tbody tr").first.locator("td")
    lines = page.locator(".refinement > svg polyline")
    steps = [("Home", 0, "0 epochs, 1 cell"), ("End", -1, "30 epochs, 8 cells")]
    steps += [("Home", 0, "0 epochs, 1 cell")]
    steps += [("ArrowRight", k, f"{k} epoch{'s' * (k > 1)}, 1 cell") for k in range(1, 7)]
    steps += [("ArrowRight", 7, "6 epochs, 2 cells, just split")]
    steps += [("ArrowRight", 8, "7 epochs, 2 cells")]
    for key, position, text in steps:
        page.keyboard.press(key)
        entry = committed["nets"]["grown"][position]
        expect(page.locator(".refinement output")).to_have_text(text)
        expect(slider).to_have_attribute("aria-valuetext", text)
        expect(cells.first).to_have_text(str(entry["cells"]))
        expect(cells.last).to_have_text(f"{entry['variation']:g}")
        points = lines.first.get_attribute("points").split()
        assert len(points) == 2 * entry["cells"]


@pytest.mark.browser
def test_differences_can_be_shown_as_they_are(page):
    def heights():
        points = page.locator(".refinement > svg polyline").first.get_attribute("points").split()
        found = [float(point.split(",")[1]) for point in points]
        return max(found) - min(found)

    enlarged = heights()
    page.get_by_role("checkbox", name="Enlarge").focus()
    page.keyboard.press("Space")
    assert enlarged == pytest.approx(10 * heights(), rel=0.05)


@pytest.mark.browser
def test_the_picture_gives_way_and_nothing_is_too_wide(page):
    expect(page.get_by_alt_text("All levels")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator(".refinement > svg").bounding_box()
    lines = page.locator(".refinement > svg polyline")
    expect(lines).to_have_count(12)
    for line in lines.all():
        part = line.bounding_box()
        assert part["x"] >= box["x"] - 1
        assert part["x"] + part["width"] <= box["x"] + box["width"] + 1
        assert part["y"] >= box["y"] - 1
        assert part["y"] + part["height"] <= box["y"] + box["height"] + 1


@pytest.mark.browser
def test_it_is_accessible(page):
    found = [v for v in Axe().run(page).response["violations"] if v["impact"] in SERIOUS]
    assert not found


@pytest.mark.browser
def test_the_picture_stays_without_scripts(browser, tmp_path):
    path = tmp_path / "slider.html"
    path.write_text(PAGE.format(theme="light", static=STATIC.as_uri(), colours=""))
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    expect(page.get_by_alt_text("All levels")).to_be_visible()
    context.close()
