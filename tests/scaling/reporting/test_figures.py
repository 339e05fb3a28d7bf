"""The drawing of the figures, each once, of a few points."""

import dataclasses

import numpy as np
import pytest

from videoscaling.scaling.reporting import all_figures
from videoscaling.scaling.reporting.figure_data import Sources
from videoscaling.scaling.reporting.pair_figures import _position
from videoscaling.scaling.reporting.style import flops, rate, short


@pytest.fixture(scope="module")
def computed(swept, few, cost):
    """The data of every figure of a few runs and a planned one."""
    planned = {"N": 1e9, "C": 1e20, "milestones": [{"T": 3e10, "loss": 0.52, "se": 1e-3}]}
    return all_figures.compute(Sources.of(few, swept[1], cost, planned=planned))[0]


@pytest.mark.parametrize("name", list(all_figures.FIGURES))
def test_a_figure_is_drawn_with_named_axes(computed, name):
    figure = all_figures.draw(computed[name])
    panels = [axis for axis in figure.axes if axis.get_visible() and axis.get_label() != "<colorbar>"]
    assert panels
    assert all(axis.get_xlabel() and axis.get_ylabel() for axis in panels)


def test_held_out_points_are_squares_on_the_curves(computed):
    markers = [line.get_marker() for line in all_figures.draw(computed["training_curves"]).axes[0].lines]
    assert markers.count("s") == 4  # one for each size, of which one has points


def test_many_grids_are_not_laid_out_in_a_wide_table(computed):
    """Every size with milestones of its own, as dense public grids are: four panels abreast, none empty."""
    data = computed["heat_maps"]
    size = np.searchsorted(np.unique(data.table["N"]), data.table["N"])
    apart = dataclasses.replace(data, table=data.table | {"T": data.table["T"] * (1 + 0.1 * size)})
    figure = all_figures.draw(apart)
    panels = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    assert (len(panels), sum(axis.get_visible() for axis in panels)) == (12, 12)
    assert figure.get_size_inches()[0] < 12


def test_positions_between_cells_follow_their_logarithms():
    known = np.array([1.0, 10.0, 1000.0])
    np.testing.assert_allclose(_position(known, np.array([1.0, 10.0, 100.0, 0.1, 1e5])), [0.5, 1.5, 2.0, -0.5, 3.5])
    np.testing.assert_allclose(_position(known[:1], np.array([1.0, 2.0])), [0.5, 1.5])


def test_counts_are_short():
    assert [short(v) for v in (950, 131072, 1.05e6, 2.4e9, 1e12)] == ["950", "131k", "1.05M", "2.4B", "1T"]
    assert (flops(3.1e12), rate(1.4e-3), rate(1e-3)) == ("3e12", "1.4e-3", "1e-3")
