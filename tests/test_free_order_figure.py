"""The slider of chapter 15: its data are current, and it works by mouse and by keyboard."""

import json
import sys
from pathlib import Path

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from test_browser import SERIOUS

ROOT = Path(__file__).parents[1]
STATIC = ROOT / "book" / "_static"
FILES = ("free_order_data.js", "free_order.js", "free_order.css", "free_order.svg")


@pytest.fixture(scope="module")
def module():
    sys.path.insert(0, str(ROOT / "book"))
    import free_order_figure

    yield free_order_figure
    sys.path.remove(str(ROOT / "book"))


@pytest.fixture(scope="module")
def committed():
    text = (STATIC / "free_order_data.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix("window.freeOrderData = ").rstrip().removesuffix(";"))


def test_data_are_what_the_code_computes(module, committed):
    fresh = json.loads(json.dumps(module.data()))
    assert {k: fresh[k] for k in ("depths", "labels")} == {
        k: committed[k] for k in ("depths", "labels")
    }
    for depth, found in fresh["paths"].items():
        old = committed["paths"][depth]
        torch.testing.assert_close(
            torch.tensor(found["true"]), torch.tensor(old["true"]), rtol=0, atol=2e-3
        )
        for name, rule in found["rules"].items():
            was = old["rules"][name]
            torch.testing.assert_close(
                torch.tensor(rule["path"]), torch.tensor(was["path"]), rtol=0, atol=2e-3
            )
            assert (rule["start"], rule["gradient"]) == pytest.approx(
                (was["start"], was["gradient"]), rel=0.06
            )


def test_true_trajectories_are_those_of_a_plain_loop(module, committed):
    depth = 12
    x = torch.tensor(module.START, dtype=torch.float64)
    block = module.network(depth)
    turn, speed = (p.detach() for p in block.weights.parameters())
    for n, shown in enumerate(committed["paths"][str(depth)]["true"][1:]):
        x = x + speed[n] @ torch.tanh(turn[n] @ x) / depth
        torch.testing.assert_close(x, torch.tensor(shown, dtype=x.dtype), rtol=0, atol=1e-3)


def test_order_2_is_ahead_from_the_depth_that_the_page_names(committed):
    ahead = {
        n: all(rules["predicted_2"][m] < rules["predicted"][m] for m in ("start", "gradient"))
        for n in committed["depths"]
        if (rules := committed["paths"][str(n)]["rules"])
    }
    assert not ahead[12]
    assert all(ahead[n] for n in committed["depths"] if n >= 16)


def test_it_is_small():
    assert sum((STATIC / name).stat().st_size for name in FILES) < 200_000


PAGE = """<!doctype html><html lang="en" data-theme="{theme}"><head><title>Slider</title>
<link rel="stylesheet" href="{static}/free_order.css">
<script defer src="{static}/free_order_data.js"></script>
<script defer src="{static}/free_order.js"></script></head>
<body style="{colours}"><main><h1>Slider</h1>
<figure id="free-order-fig-slider"><img src="{static}/free_order.svg" alt="Three depths">
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
def test_the_keyboard_moves_the_depth(page, committed):
    slider = page.get_by_role("slider", name="Number of layers")
    slider.focus()
    start = page.locator(".free-order tbody tr").first.locator("td").first
    for key, depth in (("Home", 4), ("ArrowRight", 5), ("End", 64)):
        page.keyboard.press(key)
        expect(page.locator(".free-order output")).to_have_text(f"{depth} layers")
        expect(slider).to_have_attribute("aria-valuetext", f"{depth} layers")
        shown = committed["paths"][str(depth)]["rules"]["reverse"]["start"]
        expect(start).to_have_text(f"{shown:g}")
        true = page.locator(".free-order-true").get_attribute("points")
        assert len(true.split()) == depth + 1


@pytest.mark.browser
def test_a_rule_can_be_left_out(page):
    lines = page.locator(".free-order > svg polyline")
    expect(lines).to_have_count(5)
    box = page.get_by_role("checkbox", name="reverse (the paper's)")
    box.focus()
    page.keyboard.press("Space")
    expect(lines).to_have_count(4)
    assert "the paper's" not in page.locator(".free-order > svg").get_attribute("aria-label")


@pytest.mark.browser
def test_the_picture_gives_way_and_nothing_is_too_wide(page):
    expect(page.get_by_alt_text("Three depths")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator(".free-order > svg").bounding_box()
    for line in page.locator(".free-order > svg polyline").all():
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
    expect(page.get_by_alt_text("Three depths")).to_be_visible()
    context.close()
