"""What a reader sees of the figures: grids in their place, marks that are named, numbers that agree, nothing cut."""

import dataclasses
import re

import numpy as np
import pytest

from tests.scaling import simulate
from tests.scaling.reporting.conftest import TOKENS
from videoscaling.scaling.reporting import error_figures, loss_figures, pair_figures
from videoscaling.scaling.reporting.sources import Sources, tokens_asked
from videoscaling.scaling.reporting.style import bars, figure, flops, limits, short

SIZES = np.geomspace(0.0168e9, 0.268e9, 3)
OTHERS = {"runs": ["another run"]}


def late(table, recorded):
    """The largest size's runs overshot each milestone by half of a batch, all to the same tokens."""
    largest = table.N.max() == table.N
    T = np.where(largest, table.nominal_T + 0.5 * table.B[largest].min(), table.T)
    return dataclasses.replace(table, T=T, nominal_T=table.nominal_T if recorded else T)


@pytest.mark.parametrize("recorded", [True, False])
def test_grids_of_one_milestone_share_a_column_and_a_name(few, swept, cost, recorded):
    """Sizes whose batches end a milestone at other whole steps; a table (not recorded) has only the tokens seen."""
    sources = Sources.of(late(few, recorded), swept[1], cost)
    assert len({o.T for o in sources.optima}) == 2 * len(TOKENS)  # losses stay at the tokens seen
    heat = pair_figures.heat_maps(sources)
    assert heat.axes.shape == (4, len(TOKENS))
    assert all(axis.get_visible() for axis in heat.axes.flat)
    for column, T in zip(heat.axes.T, TOKENS):
        assert all(f"T {short(T)}:" in axis.get_title() for axis in column)
    pairs = pair_figures.hyperparameters(sources)
    named = [text.get_text() for text in pairs.axes[0, 1].get_legend().get_texts()]
    assert named == [f"T {short(T)}" for T in TOKENS]
    along_N = pairs.of("lr")
    assert set(along_N["T"][along_N["along"] == "N"]) == set(TOKENS)
    # A mark has the colour of its milestone's line, whatever its size saw.
    lines = {line.get_label(): line.get_color() for line in pairs.axes[0, 1].get_legend().get_lines()}
    marks = [m for m in pairs.axes[0, 1].lines if m.get_linestyle() == "None" and len(m.get_xdata()) == 1]
    largest = [m for m in marks if m.get_marker() in "ov" and m.get_xdata()[0] == few.N.max()]
    assert {m.get_color() for m in largest} == set(lines.values())


def test_close_milestones_of_one_size_stay_apart(few):
    near = few.rows(np.isclose(few.N, few.N.min()))
    near = dataclasses.replace(near, nominal_T=np.where(near.nominal_T == TOKENS[1], TOKENS[0] + 1, near.nominal_T))
    near = dataclasses.replace(near, T=near.nominal_T)
    assert sorted(tokens_asked(near).values()) == [TOKENS[0], TOKENS[0] + 1, TOKENS[2]]


def test_a_budget_has_the_same_digits_on_axis_legend_and_caption(sources):
    chart = loss_figures.size_interval(sources)
    left, right = chart.axes[0]
    labels = [left.get_ylabel(), chart.caption, *(text.get_text() for text in right.get_legend().get_texts())]
    said = [number for label in labels for number in re.findall(r"(\S+) FLOPs", label)]
    assert len(said) == 3
    assert len(set(said)) == 1
    assert float(said[0]) == pytest.approx(chart.of("best at the budget")["C"][0], rel=5e-3)  # three digits


def test_rounding_up_to_the_next_unit_changes_the_unit():
    assert (short(999_999), short(999.6), flops(9.999e12)) == ("1M", "1k", "1e13")


def test_points_of_other_runs_are_not_called_fitted(sources, few, swept, cost):
    law = dataclasses.replace(swept[1], provenance=swept[1].provenance | OTHERS)
    for make in (error_figures.predicted_measured, error_figures.residuals):
        chart = make(dataclasses.replace(sources, law=law))
        assert not chart.of("fitted")
        assert len(chart.of("other runs")["N"]) == 9  # three sizes at three milestones
        assert "Diamonds are other runs" in chart.caption
        assert "to other runs" in chart.caption
    # Of a sweep that went on after its fit, the law knows some.
    known = sorted({*few.run_id[np.isclose(few.N, few.N.min())]})
    law = dataclasses.replace(swept[1], provenance=swept[1].provenance | {"runs": known})
    chart = error_figures.predicted_measured(Sources.of(few, law, cost))
    assert set(chart.of("fitted")["N"]) == {few.N.min()}
    assert few.N.min() not in chart.of("other runs")["N"]


def drawn(chart):
    """The chart's renderer, after its layout is made."""
    chart.figure.draw_without_rendering()
    return chart.figure.canvas.get_renderer()


@pytest.mark.parametrize(
    "make", [error_figures.predicted_measured, loss_figures.size_interval, pair_figures.fixed_pair]
)
def test_legends_cover_no_points(sources, make):
    chart = make(sources)
    drawn(chart)
    legends = [(axis, axis.get_legend()) for axis in chart.axes.flat if axis.get_legend()]
    assert legends
    for axis, legend in legends:
        assert legend.get_window_extent().y0 >= axis.get_window_extent().y1 - 1  # rounding of a pixel


@pytest.mark.parametrize(("panel", "low", "high"), [(0, 0.9, 1.12), (1, 0.9985, 1.0015)])
def test_bars_of_predictions_are_whole(sources, monkeypatch, panel, low, high):
    points = error_figures.predictions(sources)
    wide = points | {"low": low * points["predicted"], "high": high * points["predicted"]}
    monkeypatch.setattr(error_figures, "predictions", lambda _: wide)
    axis = error_figures.predicted_measured(sources).axes[0, panel]
    shown = (axis.get_xlim, axis.get_ylim)[panel]()
    ends = np.concatenate([np.concatenate(bars.get_segments())[:, panel] for bars in axis.collections])
    assert len(ends) == 24  # nine fitted and three held-out grids
    assert shown[0] < ends.min()
    assert ends.max() < shown[1]


@pytest.mark.parametrize("make", [loss_figures.loss_over_flops, loss_figures.training_curves])
def test_bands_are_whole_where_they_do_not_flatten_the_losses(sources, make, monkeypatch):
    curve = Sources.curve

    def wide(self, N, T):
        found = curve(self, N, T)
        return found | {"low": 0.96 * found["loss"], "high": 1.03 * found["loss"]}

    monkeypatch.setattr(Sources, "curve", wide)
    chart = make(sources)
    law, (low, high) = chart.of("law"), chart.axes[0, 0].get_ylim()
    assert low < law["low"].min()
    assert law["high"].max() < high
    assert "cut" not in chart.caption


def test_curves_of_equal_flops_are_whole(sources):
    chart = loss_figures.isoflop(sources)
    assert chart.of("law")["loss"].max() < chart.axes[0, 0].get_ylim()[1]
    assert "cut" not in chart.caption


def test_a_wide_interval_is_cut_and_an_axis_never_empty():
    assert limits([1, 2], [0.5, 2.5], 1) == (pytest.approx(0.4), pytest.approx(2.6), False)
    assert limits([1, 2], [-50, 2.5], 1) == (pytest.approx(-0.125), pytest.approx(2.625), True)
    assert limits([1, 2], [np.nan, np.inf], 1)[2]
    assert limits([1, 10], [0.01, 10], 0.5, log=True)[2]
    low, high, cut = limits([3, 3], [np.nan], 1)
    assert low < 3 < high
    assert not cut
    assert limits([3], [1, 5], 1)[2] is False  # of one value every end is shown


def test_no_number_lies_under_the_star(sources):
    chart = pair_figures.heat_maps(sources)
    renderer, found = drawn(chart), 0
    for axis in chart.axes.flat:
        for star in (line for line in axis.lines if line.get_marker() == "*"):
            (x, y), half = axis.transData.transform(star.get_xydata())[0], star.get_markersize() / 2
            half *= chart.figure.dpi / 72
            for text in axis.texts:
                box = text.get_window_extent(renderer)
                # The star's arms are thin: its body is half as wide.
                apart = max(box.x0 - x, x - box.x1, box.y0 - y, y - box.y1)
                assert apart > 0.3 * half, (axis.get_title(), text.get_text())
                found += 1
    assert found >= 12 * 25


def test_captions_explain_the_titles_of_grids(few, swept, cost):
    """Grids cut to their smaller rates have their best cell on the edge."""
    chart = pair_figures.heat_maps(Sources.of(few.rows(few.lr <= np.median(few.lr)), swept[1], cost))
    assert any(axis.get_title().endswith(": edge") for axis in chart.axes.flat)
    assert "edge: the best cell is at the grid's edge" in chart.caption


def test_marks_at_one_clip_are_explained_and_no_published_batch_is_less(swept, cost, paper):
    clip = round(1.5 * float(paper.batch(SIZES[2], TOKENS[-1])))
    cells = [
        (N, clip * 2.0**b, float(paper.lr(N, TOKENS[1])) * 2.0**r)
        for N in SIZES
        for b in range(4)
        for r in range(-3, 4)
    ]
    table = simulate.run_table(paper, cells, TOKENS, 1e-6, n_ctx=clip)
    sources = Sources.of(table, swept[1], cost, published=paper)
    assert any(o.verdict == "floor" for o in sources.optima)
    heat, pairs = pair_figures.heat_maps(sources), pair_figures.hyperparameters(sources)
    assert "floor: the best batch is one clip" in heat.caption
    assert "Hollow triangles: the best batch is one clip" in pairs.caption
    dashed = [line for axis in pairs.axes[0] for line in axis.lines if line.get_linestyle() == "--"]
    values = np.concatenate([line.get_ydata() for line in dashed])
    assert pairs.of("published batch")["value"].min() < clip <= values.min()
    assert "batches below one clip" in pairs.caption


def test_two_lines_that_are_one_are_both_seen(sources):
    below, above = pair_figures.fixed_pair(sources).axes[0, 1].lines
    assert below.get_linestyle() == "-"
    assert above.get_linestyle() == "--"
    assert above.get_linewidth() < below.get_linewidth()


def test_an_unknown_interval_has_no_bar():
    _, axes = figure(1, 1, (2, 2))
    points = {name: np.array([value]) for name, value in {"N": 2.0, "B": 3.0, "low": np.nan, "high": np.nan}.items()}
    bars(axes[0, 0], points, "N", "B", fmt="o")
    caps = [line.get_ydata() for line in axes[0, 0].lines if line.get_marker() != "o"]
    ends = [segment for one in axes[0, 0].collections for segment in one.get_segments()]
    assert not np.isfinite(np.concatenate([np.ravel(caps), *map(np.ravel, ends)])).all()
    assert np.ravel(caps).size == 2
    assert np.isnan(caps).all()
