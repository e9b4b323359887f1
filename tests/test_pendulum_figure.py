"""The slider of chapter 9: its nets are trained ones, and its script computes what Python does."""

import json
import sys
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from test_browser import SERIOUS

from companion.data import pendulum

ROOT = Path(__file__).parents[1]
STATIC = ROOT / "book" / "_static"
FILES = ("pendulum_data.js", "pendulum.js", "pendulum.css", "pendulum.svg")


@pytest.fixture(scope="module")
def module():
    sys.path.insert(0, str(ROOT / "book"))
    import pendulum_figure

    yield pendulum_figure
    sys.path.remove(str(ROOT / "book"))


@pytest.fixture(scope="module")
def committed():
    text = (STATIC / "pendulum_data.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix("window.pendulumData = ").rstrip().removesuffix(";"))


@pytest.fixture(scope="module")
def errors(module, committed):
    nets = module.load(committed)
    return {(f, m): module.errors(nets[f], m) for f in module.METHODS for m in module.METHODS}


def test_data_are_what_the_code_makes_of_these_nets(module, committed):
    fresh = json.loads(json.dumps(module.data(module.load(committed))))
    assert fresh == committed


def test_the_nets_are_trained(module, committed):
    now, later = pendulum.pairs(module.STEP, module.SHOWN)
    for net in module.load(committed).values():
        assert (net(now) - later).square().sum(-1).mean().sqrt() < 1e-3


def test_the_nets_show_what_the_page_says(module, errors):
    own = module.COUNTS.index(32)
    assert errors["euler", "euler"][own - 5] > 1e3 * errors["euler", "euler"][own]
    assert min(errors["euler", "rk4"]) > 1e3 * errors["euler", "euler"][own]
    assert max(errors["rk4", "rk4"][: own + 1]) < 10 * errors["rk4", "rk4"][own]
    assert errors["midpoint", "midpoint"][0] > 30 * errors["midpoint", "midpoint"][own]


def test_to_the_right_the_step_grows_as_in_the_plot(module):
    assert list(module.COUNTS) == sorted(set(module.COUNTS), reverse=True)


def test_it_is_small():
    assert sum((STATIC / name).stat().st_size for name in FILES) < 200_000


PAGE = """<!doctype html><html lang="en" data-theme="{theme}"><head><title>Slider</title>
<link rel="stylesheet" href="{static}/pendulum.css">
<script defer src="{static}/pendulum_data.js"></script>
<script defer src="{static}/pendulum.js"></script></head>
<body style="{colours}"><main><h1>Slider</h1>
<figure id="pendulum-fig-slider"><img src="{static}/pendulum.svg" alt="Three motions">
<figcaption>Caption</figcaption></figure></main></body></html>"""
COLOURS = {"light": "color:#222832;background:#fff", "dark": "color:#ced6dd;background:#14181e"}


@pytest.fixture
def page(request, browser, tmp_path):
    theme = getattr(request, "param", "light")
    path = tmp_path / "slider.html"
    path.write_text(PAGE.format(theme=theme, static=STATIC.as_uri(), colours=COLOURS[theme]))
    page = browser.new_page(viewport={"width": 390, "height": 1200})
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(path.as_uri())
    yield page
    page.close()
    assert not problems


def shown_error(page):
    text = page.locator(".pendulum-error").text_content()
    return float(text.rpartition(" ")[2].replace("\u2212", "-"))


@pytest.mark.browser
def test_the_script_computes_the_errors_that_python_does(page, errors, module):
    slider = page.get_by_role("slider", name="Step")
    for field, method in errors:
        page.get_by_role("group", name="Trained with").get_by_label(
            module.METHODS[field], exact=True
        ).check()
        page.get_by_role("group", name="Rolled out with").get_by_label(
            module.METHODS[method], exact=True
        ).check()
        for at in (0, 9, 14, len(module.COUNTS) - 1):
            slider.fill(str(at))
            assert shown_error(page) == pytest.approx(errors[field, method][at], rel=0.06)


@pytest.mark.browser
def test_the_true_equation_has_the_errors_of_its_scheme(page, module):
    page.get_by_label("none: the true equation").check()
    page.get_by_role("slider", name="Step").fill("14")
    x, h = pendulum.exact(0.0), module.TIME / module.COUNTS[14]
    for _ in range(module.COUNTS[14]):
        x = x + h * pendulum.field(x)
    wanted = float((x - pendulum.exact(module.TIME)).norm())
    assert shown_error(page) == pytest.approx(wanted, rel=0.06)


@pytest.mark.browser
def test_the_keyboard_moves_the_step_and_changes_the_scheme(page, module):
    slider = page.get_by_role("slider", name="Step")
    slider.focus()
    for key, count in (("Home", 512), ("ArrowRight", 256), ("End", 8)):
        page.keyboard.press(key)
        text = f"{float(f'{module.TIME / count:.3g}'):g} s, {count} steps"
        seen = page.locator(".pendulum output").text_content()
        step, rest = seen.split(" ", 1)
        assert f"{float(step):g} {rest}" == text
        expect(slider).to_have_attribute("aria-valuetext", seen)
        points = page.locator(".pendulum-net").first.get_attribute("points")
        assert len(points.split()) == 2 * count + 1
    page.get_by_role("group", name="Rolled out with").get_by_label("Euler").focus()
    page.keyboard.press("ArrowRight")
    label = page.locator(".pendulum > svg").first.get_attribute("aria-label")
    assert "Rolled out with midpoint" in label


@pytest.mark.browser
def test_the_picture_gives_way_and_nothing_is_too_wide(page):
    expect(page.get_by_alt_text("Three motions")).to_be_hidden()
    for at in ("0", "9", "19"):
        page.get_by_role("slider", name="Step").fill(at)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for drawing in page.locator(".pendulum > svg").all():
            box = drawing.bounding_box()
            for line in drawing.locator("polyline, text").all():
                part = line.bounding_box()
                assert part["x"] >= box["x"] - 1
                assert part["x"] + part["width"] <= box["x"] + box["width"] + 1
                assert part["y"] >= box["y"] - 1
                assert part["y"] + part["height"] <= box["y"] + box["height"] + 1


@pytest.mark.browser
@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
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
    expect(page.get_by_alt_text("Three motions")).to_be_visible()
    context.close()
