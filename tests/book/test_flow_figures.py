"""The pictures of flows show the numbers they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from companion.flow_figures import draw_arrows, draw_grid, draw_trajectories
from companion.models import TanhMLP


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_arrows_are_the_field_at_their_places_and_time(axes):
    draw_arrows(axes, lambda t, x: torch.stack([x[:, 1] + t, x[:, 0]], 1), 10.0, 2.0, count=3)
    arrows = axes.collections[0]
    places = np.asarray(arrows.get_offsets())
    np.testing.assert_allclose(arrows.U, places[:, 1] + 10)
    np.testing.assert_allclose(arrows.V, places[:, 0])
    assert places.min(0).tolist() == [-2, -2]
    assert places.max(0).tolist() == [2, 2]


def test_trajectories_end_where_the_path_ends(axes):
    path = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    draw_trajectories(axes, path, torch.tensor([0, 1, 0]))
    ways = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) == 4]
    np.testing.assert_allclose(ways[1], path[:, 2])
    ends = np.concatenate([line.get_xydata() for line in axes.lines if line.get_ls() == "None"])
    assert sorted(ends.round(5).tolist()) == sorted(path[-1].double().numpy().round(5).tolist())
    with pytest.raises(ValueError, match="path, groups"):
        draw_trajectories(axes, path, torch.tensor([0, 1]))
    for wrong in ([0, 1, 5], [0, -1, 1]):
        with pytest.raises(ValueError, match=r"groups: \[.*\] are not allowed; .* from 0 to 4"):
            draw_trajectories(axes, path, wrong)


def test_groups_may_be_a_list(axes):
    draw_trajectories(axes, torch.rand(4, 3, 2), [0, 4, 0])
    assert len(axes.lines) == 5


def test_fields_in_double_precision(axes):
    field = TanhMLP(2, (3, 3)).double()
    draw_arrows(axes, field, 0.5, 1.0, count=3, dtype=torch.float64)
    with torch.no_grad():
        wanted = field(torch.tensor(0.5).double(), torch.tensor([[-1.0, -1.0]]).double())
    assert [axes.collections[0].U[0], axes.collections[0].V[0]] == pytest.approx(
        wanted[0].tolist(), rel=1e-6
    )
    draw_grid(axes, lambda x: field(torch.tensor(0.5).double(), x), 1.0, 3, dtype=torch.float64)


def test_what_leaves_the_plane_is_refused(axes):
    for call in (
        lambda f: draw_arrows(axes, lambda t, x: f(x), 0.0, 1.0, count=3),
        lambda f: draw_grid(axes, f, 1.0, lines=3),
    ):
        with pytest.raises(ValueError, match=r"(field|flow): it returned shape \(\d+, 3\)"):
            call(lambda x: torch.cat([x, x[:, :1]], 1))


def test_lines_of_the_grid_are_carried_along(axes):
    draw_grid(axes, lambda x: torch.stack([-x[:, 1], x[:, 0]], 1), 1.0, lines=3, lw=2.0)
    assert len(axes.lines) == 6
    for upright, level in zip(axes.lines[::2], axes.lines[1::2], strict=True):
        assert np.ptp(upright.get_ydata()) == 0  # an upright line is level after a quarter turn
        assert np.ptp(level.get_xdata()) == 0
        assert upright.get_lw() == 2.0
    draw_grid(axes, lambda x: x, 1.0, lines=3, linewidth=3.0)
    assert axes.lines[-1].get_lw() == 3.0
