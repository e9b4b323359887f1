"""The slider of chapter 10: its nets are trained ones, and its script computes what Python does."""

import json

import pytest
import sliders
from figures.pendulum import slider as pendulum_figure
from playwright.sync_api import expect

from companion.data import pendulum


@pytest.fixture(scope="module")
def committed():
    return sliders.committed_data("pendulum")


@pytest.fixture(scope="module")
def errors(committed):
    nets = pendulum_figure.load(committed)
    return {
        (f, m): pendulum_figure.errors(nets[f], m)
        for f in pendulum_figure.METHODS
        for m in pendulum_figure.METHODS
    }


def test_data_are_what_the_code_makes_of_these_nets(committed):
    fresh = json.loads(json.dumps(pendulum_figure.data(pendulum_figure.load(committed))))
    assert fresh == committed


def test_the_nets_are_trained(committed):
    now, later = pendulum.pairs(pendulum_figure.STEP, pendulum_figure.SHOWN)
    for net in pendulum_figure.load(committed).values():
        assert (net(now) - later).square().sum(-1).mean().sqrt() < 1e-3


def test_the_nets_show_what_the_page_says(errors):
    own = pendulum_figure.COUNTS.index(32)
    assert errors["euler", "euler"][own - 5] > 1e3 * errors["euler", "euler"][own]
    assert min(errors["euler", "rk4"]) > 1e3 * errors["euler", "euler"][own]
    assert max(errors["rk4", "rk4"][: own + 1]) < 10 * errors["rk4", "rk4"][own]
    assert errors["midpoint", "midpoint"][0] > 30 * errors["midpoint", "midpoint"][own]


def test_to_the_right_the_step_grows_as_in_the_plot():
    assert list(pendulum_figure.COUNTS) == sorted(set(pendulum_figure.COUNTS), reverse=True)


@pytest.fixture
def page(browser, tmp_path):
    with sliders.opened(browser, tmp_path, "pendulum", height=1200) as page:
        yield page


def shown_error(page):
    text = page.locator(".pendulum-error").text_content()
    return float(text.rpartition(" ")[2].replace("\u2212", "-"))


@pytest.mark.browser
def test_the_script_computes_the_errors_that_python_does(page, errors):
    slider = page.get_by_role("slider", name="Step")
    for field, method in errors:
        page.get_by_role("group", name="Trained with").get_by_label(
            pendulum_figure.METHODS[field], exact=True
        ).check()
        page.get_by_role("group", name="Rolled out with").get_by_label(
            pendulum_figure.METHODS[method], exact=True
        ).check()
        for at in (0, 9, 14, len(pendulum_figure.COUNTS) - 1):
            slider.fill(str(at))
            assert shown_error(page) == pytest.approx(errors[field, method][at], rel=0.06)


@pytest.mark.browser
def test_the_true_equation_has_the_errors_of_its_scheme(page):
    page.get_by_label("none: the true equation").check()
    page.get_by_role("slider", name="Step").fill("14")
    x, h = pendulum.exact(0.0), pendulum_figure.TIME / pendulum_figure.COUNTS[14]
    for _ in range(pendulum_figure.COUNTS[14]):
        x = x + h * pendulum.field(x)
    wanted = float((x - pendulum.exact(pendulum_figure.TIME)).norm())
    assert shown_error(page) == pytest.approx(wanted, rel=0.06)


@pytest.mark.browser
def test_the_keyboard_moves_the_step_and_changes_the_scheme(page):
    slider = page.get_by_role("slider", name="Step")
    slider.focus()
    for key, count in (("Home", 512), ("ArrowRight", 256), ("End", 8)):
        page.keyboard.press(key)
        text = f"{float(f'{pendulum_figure.TIME / count:.3g}'):g} s, {count} steps"
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
    sliders.assert_picture_gives_way(page)
    for at in ("0", "9", "19"):
        page.get_by_role("slider", name="Step").fill(at)
        sliders.assert_inside(page, page.locator(".pendulum > svg"), "polyline, text")
