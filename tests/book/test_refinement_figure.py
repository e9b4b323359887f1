"""The slider of chapter 13: its data are current, and it works by mouse and by keyboard."""

from itertools import pairwise

import pytest
import sliders
import torch
from figures.refinement import slider as refinement_figure
from playwright.sync_api import expect


@pytest.fixture(scope="module")
def committed():
    return sliders.committed_data("refinement")


def test_data_are_what_the_code_computes(committed):
    """The first refinement and an epoch after it; to the end it takes much longer."""
    for name, epochs in (("grown", 7), ("deep", 1)):
        fresh = refinement_figure.record(refinement_figure.NETS[name], epochs)
        assert len(fresh) == epochs + (2 if name == "grown" else 1)
        for entry, old in zip(fresh, committed["nets"][name], strict=False):
            new = refinement_figure.shown(entry, committed["weights"])
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


def test_variation_is_the_jumps_over_the_largest_row():
    class Net:
        class block:
            weights = torch.nn.ParameterList([torch.tensor([[[3.0, 4.0]], [[3.0, 0.0]]])])

    found = refinement_figure.look(Net, 0.5)
    assert found["variation"] == pytest.approx(4 / 5)
    assert found["cells"] == 2


@pytest.fixture
def page(browser, tmp_path):
    with sliders.opened(browser, tmp_path, "refinement") as page:
        yield page


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
    sliders.assert_picture_gives_way(page)
    expect(page.locator(".refinement > svg polyline")).to_have_count(12)
    sliders.assert_inside(page, page.locator(".refinement > svg"))
