"""Moving points: the picture holds the states, and a reader can carry them through depth."""

import pytest
import torch

from companion.animation import COLOURS, ON_DARK, moving_points

# Two points change places along a square; the scale is that of the wider side.
PATH = torch.tensor([[[0.0, 0.0], [2.0, 1.0]], [[2.0, 0.0], [0.0, 1.0]], [[2.0, 1.0], [0.0, 0.0]]])


def test_the_still_picture_shows_the_start_and_the_words():
    markup = moving_points(PATH, [0, 1], alt='Two "points"')._repr_html_()
    assert 'aria-label="Two &quot;points&quot;"' in markup
    assert markup.count("<rect") == 2
    # 400 pixels with an edge of 12: x from 12 to 388; y, upwards, around the middle.
    assert '<rect x="8" y="290" width="8"' in markup
    assert '<rect x="384" y="102" width="8"' in markup


def test_what_does_not_fit_is_refused():
    for path in (PATH[0], PATH[:1], PATH[..., :1]):
        with pytest.raises(ValueError, match="path must have shape"):
            moving_points(path, [0, 1], alt="")
    for groups in ([0], [0, 4], [0, -1]):
        with pytest.raises(ValueError, match="groups must be 2 numbers from 0 to 3"):
            moving_points(PATH, groups, alt="")


def luminance(colour):
    """The relative luminance of sRGB, from 0 to 1."""
    shares = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(w * s for w, s in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_points_stand_out_on_a_dark_page():
    """Every colour has at least the contrast 6 to the theme's dark ground, and is used there."""
    markup = moving_points(PATH, [0, 1], alt="").markup
    for kind, colour in enumerate(ON_DARK):
        assert (luminance(colour) + 0.05) / (luminance("#121212") + 0.05) > 6
        rule = f'html[data-theme="dark"] .moving-points rect.kind{kind}{{fill:{colour}}}'
        assert rule in markup
    for kind in (0, 1):
        assert f'fill="{COLOURS[kind]}" class="kind{kind}"' in markup
        assert f'stroke="{COLOURS[kind]}" class="kind{kind}"' in markup


@pytest.mark.browser
def test_the_points_move_by_slider_and_button(browser):
    page = browser.new_page(viewport={"width": 390, "height": 700})
    markup = moving_points(PATH, torch.tensor([0, 1]), alt="Two points")._repr_html_()
    page.set_content(f"<main>{markup}</main>")
    first, slider = page.locator("rect").first, page.get_by_role("slider", name="Depth")

    def place():
        return [float(first.get_attribute(side)) + 4 for side in ("x", "y")]

    for value, wanted in (("0", (12, 294)), ("0.25", (200, 294)), ("1", (388, 106))):
        slider.fill(value)
        assert place() == pytest.approx(wanted, abs=0.5)
    slider.fill("0")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('input').value == 1")
    assert place() == pytest.approx((388, 106), abs=0.5)
    page.close()
