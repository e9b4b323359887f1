"""The slider of chapter 1: its polygon is that of the network, and its two sliders reach it."""

import json

import pytest
import sliders
from figures.residual_steps import slider as residual_figure
from playwright.sync_api import expect


@pytest.fixture(scope="module")
def committed():
    return sliders.committed_data("residual_steps")


def test_data_are_what_the_code_makes(committed):
    fresh = json.loads(json.dumps(residual_figure.data()))
    assert fresh.pop("solution") == [pytest.approx(p, abs=2e-4) for p in committed["solution"]]
    assert fresh == {name: v for name, v in committed.items() if name != "solution"}


def test_with_the_factor_the_network_nears_the_solution_like_one_over_n():
    end = residual_figure.solution()[-1]
    far = [(residual_figure.network(n, 1 / n)[-1] - end).norm() for n in (256, 512)]
    assert far[0] / far[1] == pytest.approx(2, rel=0.01)
    assert (residual_figure.network(32, 1.0)[-1] - end).norm() > 5


def test_it_is_small():
    assert sliders.bytes_to_load("residual_steps") < 100_000


@pytest.fixture
def page(request, browser, tmp_path):
    theme = getattr(request, "param", "light")
    with sliders.opened(browser, tmp_path, "residual_steps", theme) as page:
        yield page


@pytest.mark.browser
def test_the_script_walks_as_python_does(page):
    end = residual_figure.solution()[-1]
    for at, position in ((0, 0), (3, 0), (3, 4), (5, 10)):
        layers = residual_figure.COUNTS[at]
        page.get_by_role("slider", name="Layers").fill(str(at))
        page.get_by_role("slider", name="Factor").fill(str(position))
        wanted = residual_figure.network(layers, layers ** (position / 10 - 1))[-1] - end
        words = page.locator(".residual-steps p").text_content().split()
        assert float(words[words.index("is") + 1]) == pytest.approx(float(wanted.norm()), rel=0.06)
        assert page.locator(".residual-step").count() == layers


@pytest.mark.browser
def test_the_keyboard_moves_both_sliders(page):
    for name, keys in {"Layers": {"Home": "1 layer", "End": "32 layers"},
                       "Factor": {"Home": "1/32", "End": "1"}}.items():  # fmt: skip
        slider = page.get_by_role("slider", name=name)
        slider.focus()
        for key, shown in keys.items():
            page.keyboard.press(key)
            expect(slider).to_have_attribute("aria-valuetext", shown)


@pytest.mark.browser
def test_the_picture_gives_way_and_nothing_is_too_wide(page):
    sliders.assert_picture_gives_way(page)
    for at in ("0", "3", "5"):
        page.get_by_role("slider", name="Layers").fill(at)
        sliders.assert_inside(page, page.locator(".residual-steps > svg"), "circle, text")


@pytest.mark.browser
@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_it_is_accessible(page):
    sliders.assert_accessible(page)


@pytest.mark.browser
def test_the_picture_stays_without_scripts(browser, tmp_path):
    sliders.assert_picture_stays_without_scripts(browser, tmp_path, "residual_steps")
