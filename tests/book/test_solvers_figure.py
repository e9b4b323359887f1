"""The slider of chapter 2: its script takes the steps that the companion takes."""

import json

import pytest
import sliders
from figures.solvers import slider as figure
from playwright.sync_api import expect


def test_data_are_what_the_code_makes():
    assert json.loads(json.dumps(figure.data())) == sliders.committed_data("solvers")


def test_the_figure_shows_what_the_page_says():
    """Euler leaves the pendulum first; the follower blows up as the step passes 2/20."""
    worst = {m: figure.error("swing", m, 64) for m in figure.METHODS}
    assert worst["euler"] > 10 * worst["midpoint"] > 100 * worst["rk4"]
    steps = {n: figure.TIMES["follow"] / n for n in figure.COUNTS}
    for method in ("euler", "midpoint", "heun"):
        for n, h in steps.items():
            assert (figure.error("follow", method, n) > 1.1) == (h > 2 / figure.RATE)


def test_to_the_right_the_step_grows():
    assert list(figure.COUNTS) == sorted(set(figure.COUNTS), reverse=True)


def test_it_is_small():
    assert sliders.bytes_to_load("solvers") < 120_000


@pytest.fixture
def page(request, browser, tmp_path):
    theme = getattr(request, "param", "light")
    with sliders.opened(browser, tmp_path, "solvers", theme, height=1200) as page:
        yield page


@pytest.mark.browser
def test_the_script_computes_the_errors_that_python_does(page):
    slider = page.get_by_role("slider", name="Step")
    for equation, label in figure.EQUATIONS.items():
        page.get_by_label(label, exact=True).check()
        for method, name in figure.METHODS.items():
            page.get_by_role("group", name="Method").get_by_label(name, exact=True).check()
            for at in (0, 9, 14, len(figure.COUNTS) - 1):
                slider.fill(str(at))
                text = page.locator(".solvers-error").text_content()
                spent, seen = text.split(" ")[0], text.rpartition(" ")[2].replace("\u2212", "-")
                wanted = figure.error(equation, method, figure.COUNTS[at])
                assert float(seen) == pytest.approx(wanted, rel=0.06)
                stages = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}[method]
                assert int(spent) == stages * figure.COUNTS[at]
                sliders.assert_inside(page, page.locator(".solvers > svg"), "polyline, text")


@pytest.mark.browser
def test_the_keyboard_moves_the_step_and_changes_the_method(page):
    slider = page.get_by_role("slider", name="Step")
    slider.focus()
    for key, count in (("Home", 512), ("ArrowRight", 384), ("End", 12)):
        page.keyboard.press(key)
        seen = page.locator(".solvers output").text_content()
        assert seen.endswith(f", {count} steps")
        expect(slider).to_have_attribute("aria-valuetext", seen)
        points = page.locator(".solvers-path").first.get_attribute("points")
        angles = figure.path("swing", "euler", count)[:, 0].abs()
        inside = int((angles > 4).int().argmax()) if (angles > 4).any() else count
        assert len(points.split()) == inside + 1  # the curve ends where it leaves the picture
    page.get_by_role("group", name="Method").get_by_label("Euler").focus()
    page.keyboard.press("ArrowRight")
    label = page.locator(".solvers > svg").first.get_attribute("aria-label")
    assert "Method: midpoint" in label


@pytest.mark.browser
@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_it_is_accessible_and_takes_the_place_of_the_picture(page):
    sliders.assert_picture_gives_way(page)
    sliders.assert_accessible(page)


@pytest.mark.browser
def test_the_picture_stays_without_scripts(browser, tmp_path):
    sliders.assert_picture_stays_without_scripts(browser, tmp_path, "solvers")
