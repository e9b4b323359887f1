"""The picture of the ContinuousNet: committed as drawn, and legible on a phone."""

import re

import matplotlib as mpl
from figures.continuous_net import network

PHONE = 340  # pixels of a figure's width on a phone that is 390 wide


def test_the_committed_picture_is_the_one_that_is_drawn(tmp_path, monkeypatch):
    committed = network.TARGET.read_text()
    monkeypatch.setattr(network, "TARGET", tmp_path / "drawn.svg")
    with mpl.rc_context():
        network.main()

    def commands(svg):  # of all paths, without numbers: those of another font engine differ a bit
        return [re.sub(r"[^A-Za-z]", "", d) for d in re.findall(r' d="([^"]*)"', svg)]

    assert commands((tmp_path / "drawn.svg").read_text()) == commands(committed)


def test_lettering_is_legible_on_a_phone():
    with mpl.rc_context({"font.size": 10}):
        figure = network.picture()
    shrunk = PHONE / (72 * figure.get_figwidth())
    texts = figure.axes[0].texts
    assert len(texts) > 20
    assert min(text.get_fontsize() * shrunk for text in texts) >= 9
