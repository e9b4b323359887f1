import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from companion.figures import PALETTE, spread, use_style


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_the_settings_come_back_even_after_an_error():
    before = dict(mpl.rcParams)

    def fail():
        with use_style():
            assert mpl.rcParams["axes.spines.top"] is False
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert dict(mpl.rcParams) == before


def test_a_backend_that_turns_interactive_on_inside_leaves_it_on():
    assert not mpl.is_interactive()
    try:
        with use_style():
            mpl.interactive(True)
        assert mpl.is_interactive()
    finally:
        mpl.interactive(False)


def test_importing_changes_no_setting():
    code = (
        "import matplotlib as mpl; before = dict(mpl.rcParams); import companion.figures; "
        "assert dict(mpl.rcParams) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def luminance(colour):
    """Relative luminance as the web's accessibility guidelines define it."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("colour", PALETTE)
def test_lines_stand_out_from_the_card(colour):
    assert 1.05 / (luminance(colour) + 0.05) >= 2.3


def test_lines_differ_without_colour():
    with use_style():
        _, axes = plt.subplots()
        lines = [axes.plot([0, 1], [0, 1])[0] for _ in PALETTE]
    looks = {
        (line.get_linestyle(), line.get_marker(), line._unscaled_dash_pattern) for line in lines
    }
    assert len({line.get_marker() for line in lines}) == len(looks) == len(PALETTE)
    assert [line.get_color() for line in lines] == list(PALETTE)


def test_a_figure_keeps_its_card_when_shown_outside_the_block(tmp_path):
    with use_style():
        figure, _ = plt.subplots()
    figure.savefig(tmp_path / "f.png")
    corner = plt.imread(tmp_path / "f.png")[0, 0]
    assert corner.tolist() == [1.0, 1.0, 1.0, 1.0]


def test_spread_draws_median_and_range():
    _, axes = plt.subplots()
    spread(axes, [1, 2, 3], [[1, 2, 9], [4, 5, 6], [0, 0, 0]], label="error", color="#0072B2")
    assert axes.lines[0].get_ydata().tolist() == [2.0, 5.0, 0.0]
    assert axes.lines[0].get_label() == "error"
    corners = axes.collections[0].get_paths()[0].vertices
    assert [1.0, 9.0] in corners.tolist()
    assert [1.0, 1.0] in corners.tolist()
    assert axes.collections[0].get_facecolor()[0, :3] == pytest.approx(to_rgb("#0072B2"))


@pytest.mark.parametrize("runs", [[1, 2, 3], [[1, 2, 3]], np.zeros((3, 2, 2))])
def test_spread_wants_one_row_a_point(runs):
    _, axes = plt.subplots()
    with pytest.raises(ValueError, match=r"\(len\(x\), runs\) = \(3, \.\.\.\)"):
        spread(axes, [1, 2, 3], runs)
