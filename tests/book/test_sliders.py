"""What every chapter's slider has to do; what one shows is tested beside its chapter."""

import pytest
import sliders

STEMS = ("pendulum", "refinement", "free_order")


@pytest.mark.parametrize("stem", STEMS)
def test_it_is_small(stem):
    assert sliders.bytes_to_load(stem) < 200_000


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("stem", STEMS)
def test_it_is_accessible(stem, theme, browser, tmp_path):
    with sliders.opened(browser, tmp_path, stem, theme) as page:
        sliders.assert_accessible(page)


@pytest.mark.browser
@pytest.mark.parametrize("stem", STEMS)
def test_the_picture_stays_without_scripts(stem, browser, tmp_path):
    sliders.assert_picture_stays_without_scripts(browser, tmp_path, stem)
