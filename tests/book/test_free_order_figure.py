"""The slider of chapter 17: its data are current, and it works by mouse and by keyboard."""

import json

import pytest
import sliders
import torch
from figures.free_order import slider as free_order_figure
from playwright.sync_api import expect


@pytest.fixture(scope="module")
def committed():
    return sliders.committed_data("free_order")


def test_data_are_what_the_code_computes(committed):
    fresh = json.loads(json.dumps(free_order_figure.data()))
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


def test_true_trajectories_are_those_of_a_plain_loop(committed):
    depth = 12
    x = torch.tensor(free_order_figure.START, dtype=torch.float64)
    block = free_order_figure.network(depth)
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


@pytest.fixture
def page(browser, tmp_path):
    with sliders.opened(browser, tmp_path, "free_order") as page:
        yield page


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
    sliders.assert_picture_gives_way(page)
    sliders.assert_inside(page, page.locator(".free-order > svg"))
