"""The figures: their numbers, of runs whose law is planted, and what is drawn of them."""

import csv
import dataclasses

import numpy as np
import pytest

from tests.scaling import simulate
from tests.scaling.reporting.conftest import TOKENS
from videoscaling.scaling.checks import pair_prices
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.scaling.laws import EDGE
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.reporting import error_figures, loss_figures, pair_figures, report
from videoscaling.scaling.reporting.chart import Chart, groups
from videoscaling.scaling.reporting.measured_run import MeasuredRun, Milestone
from videoscaling.scaling.reporting.sources import Sources
from videoscaling.scaling.reporting.style import flops, rate_text, short
from videoscaling.utils.errors import UserError

SMALL = (2e7, 4e7, 8e7)
MILESTONE = Milestone(T=3e10, loss=0.52, se=1e-3, predicted=0.52, low=0.5, high=0.54, error=0.0, flops=1e20)
PLANNED = MeasuredRun(1e9, (MILESTONE,))


@pytest.fixture(scope="module")
def surface_sources(swept, cost):
    """A law that is a surface through the same runs."""
    table, law = swept
    cells = Cells.of_table(table.rows(~table.heldout))
    surface = fit_surface(cells, "additive", "two_sided", False)
    parts = dict.fromkeys(("batch", "lr", "loss", "allocation", "curvature", "lr_given_batch", "draws"))
    return Sources.of(table, dataclasses.replace(law, **parts, surface=surface), cost)


def test_the_frontier_is_the_lowest_loss_so_far(sources, paper, cost):
    data = loss_figures.loss_over_flops(sources)
    runs, frontier, law = (data.of(name) for name in ("run", "frontier", "law"))
    assert len(runs["C"]) == len(sources.runs)
    assert sum(runs["heldout"]) == sources.runs.heldout.sum()
    for C, loss in zip(frontier["C"], frontier["loss"]):
        assert loss == runs["loss"][runs["C"] <= C * (1 + 1e-9)].min()
    assert np.all(np.diff(frontier["loss"]) < 0)
    # The law's frontier is its loss at its best sizes; the planted one runs along it.
    np.testing.assert_allclose(law["N"], allocation.optimum(sources.law.loss, law["C"], cost))
    truth = paper.loss(N := allocation.optimum(paper.loss, law["C"], cost), law["C"] / cost(N))
    np.testing.assert_allclose(law["loss"], truth, rtol=2e-3)
    assert np.all((law["low"] <= law["loss"]) & (law["loss"] <= law["high"]))


def test_isoflop_curves_go_through_measured_losses(sources, paper, cost):
    data = loss_figures.isoflop(sources)
    measured = data.of("measured")
    # Between milestones 2.5 apart a straight line stands for the curve.
    truth = paper.loss(measured["N"], measured["C"] / cost(measured["N"]))
    np.testing.assert_allclose(measured["loss"], truth, rtol=3e-3)
    assert sources.runs.N.max() in measured["N"]  # held-out sizes too
    minimum = data.of("minimum")
    assert len(minimum["C"])
    assert np.all((minimum["low"] < minimum["N"]) | np.isnan(minimum["low"]))


def test_the_size_for_a_budget_has_its_interval(sources, cost):
    data = loss_figures.size_interval(sources)
    budget = 10 * sources.law.domain["C"][1]
    best, near = data.of("best at the budget"), data.of("little loss at the budget")
    assert best["N"][0] == pytest.approx(float(allocation.optimum(sources.law.loss, budget, cost)))
    assert best["low"][0] < best["N"][0] < best["high"][0]
    assert (near["low"][0], near["high"][0]) == pytest.approx(allocation.within(sources.law.loss, budget, cost, 1e-3))
    curve = data.of("loss at the budget")
    assert curve["excess"].min() == pytest.approx(0, abs=0.02)
    assert "the loss law is lowest at" in data.caption


def test_a_range_of_sizes_without_an_end_is_drawn_and_said_to_have_none(sources, monkeypatch):
    monkeypatch.setattr(loss_figures, "TOLERANCE", 0.01)
    flat = dataclasses.replace(sources.law.loss, aN=0.1, aT=0.12, Linf=5.0)
    chart = loss_figures.size_interval(dataclasses.replace(sources, law=dataclasses.replace(sources.law, loss=flat)))
    near, curve = chart.of("little loss at the budget"), chart.of("loss at the budget")
    assert np.isnan(near["low"][0])
    assert curve["N"][0] < curve["N"][-1] / 1e3
    assert "from below 100 to" in chart.caption
    chart.figure.draw_without_rendering()


def test_batches_are_drawn_with_the_noise_scales_that_runs_measured(few, swept, cost):
    table = dataclasses.replace(few, noise_scale=np.where(few.N.min() == few.N, 1e5, np.nan))
    plain, measured = (pair_figures.hyperparameters(Sources.of(runs, swept[1], cost)) for runs in (few, table))
    assert not plain.of("noise scale")
    points = measured.of("noise scale")
    assert (points["T"].tolist(), set(points["value"])) == (TOKENS, {1e5})
    assert "noise scale" in measured.caption
    assert "noise scale" not in plain.caption


def test_heat_maps_hold_every_cell_and_the_quadratic(sources):
    data = pair_figures.heat_maps(sources)
    cells = data.of("cell")
    assert len(cells["N"]) == 4 * 3 * 25
    for _, own in groups(data.of("cell"), "T"):
        assert np.sum(own["excess"] == 0) == 4  # the best cell of each size
    optimum = next(o for o in sources.optima if o.interior)
    best = data.of("best")
    at = (best["N"] == optimum.N) & (best["T"] == optimum.T)
    assert (best["lr"][at][0], best["B"][at][0]) == (optimum.lr, optimum.B)
    contour = data.of("contour")
    own = (contour["N"] == optimum.N) & (contour["T"] == optimum.T)
    assert 0 <= contour["excess"][own].min() < 0.05
    assert np.all(np.isfinite(contour["excess"]))


def test_a_diverged_cell_is_in_the_heat_map(swept, cost):
    table, law = swept
    small = table.N.min() == table.N
    kept = ~(small & (table.T == 2e9)) | (table.lr < np.median(table.lr[small]))
    gone = small & (table.T == 12e9)
    spoilt = dataclasses.replace(table, loss=np.where(gone, np.inf, table.loss)).rows(kept)
    data = pair_figures.heat_maps(Sources.of(spoilt, law, cost))
    cells = data.of("cell")
    assert np.isinf(cells["excess"]).sum() == 25
    verdicts = {(N, T): v for N, T, v in zip(cells["N"], cells["T"], cells["verdict"])}
    assert verdicts[table.N.min(), 2e9] == "edge"
    assert verdicts[table.N.min(), 12e9] == "too few points"


def test_a_surface_gives_contours_the_best_rate_and_every_cell_its_prediction(surface_sources):
    surface = surface_sources.law.surface
    heat = pair_figures.heat_maps(surface_sources)
    ridge, contour = heat.of("ridge"), heat.of("contour")
    np.testing.assert_allclose(ridge["lr"], surface.lr_opt(ridge["B"], ridge["T"], ridge["N"]).value)
    assert -0.01 < contour["excess"].min() < 0.05
    points = error_figures.predicted_measured(surface_sources)
    held = points.of("held out")
    assert len(held["N"]) == surface_sources.runs.heldout.sum()
    said = surface.predict(held["N"], held["T"], held["B"], held["lr"])
    np.testing.assert_allclose(held["predicted"], said.mean)
    pairs = pair_figures.hyperparameters(surface_sources)
    batch = pairs.of("batch")
    np.testing.assert_allclose(batch["value"], surface.edge(batch["T"], batch["N"], EDGE).value)


@pytest.mark.slow
def test_a_surface_leaves_no_figure_out(surface_sources):
    assert report.draw(surface_sources)[1] == {}


def test_errors_are_measured_over_predicted_and_all_held_out_grids_are_there(swept, cost):
    table, law = swept
    # The held-out grids with too few cells for an optimum, and 3 % worse than the law says.
    thin = table.rows(~table.heldout | (np.isclose(table.lr, np.unique(table.lr[table.heldout])[2])))
    thin = dataclasses.replace(thin, loss=np.where(thin.heldout, 1.03 * thin.loss, thin.loss))
    data = error_figures.predicted_measured(Sources.of(thin, law, cost))
    held = data.of("held out")
    assert held["T"].tolist() == TOKENS
    assert not held["optimum"].any()
    assert np.all(held["error"] > 2)
    np.testing.assert_allclose(held["error"], 100 * (held["loss"] / held["predicted"] - 1))
    assert "0 of 3 held-out losses lie in their interval" in data.caption


def test_points_are_those_that_were_fitted(paper, cost, swept):
    """Runs that overshot their milestones by up to a tenth: points lie at the tokens asked for, as in the fit."""
    table, _ = swept
    late = table.nominal_T * (1 + 0.1 * table.B / table.B.max())
    moved = table.loss * paper.loss(table.N, late) / paper.loss(table.N, table.nominal_T)
    overshot = dataclasses.replace(table, T=late, loss=moved)
    fitted = fit.fit(overshot, "all", fit.Options(), cost, {"name": "overshot"})
    points = error_figures.predicted_measured(Sources.of(overshot, fitted.law, cost)).of("fitted")
    assert points["loss"] == pytest.approx(fitted.points.loss, rel=1e-9)


def test_residuals_have_a_mean_for_each_grid(sources):
    data = error_figures.residuals(sources)
    grids = data.of("grid")
    assert len(grids["N"]) == 12
    assert grids["heldout"].sum() == 3
    points = np.concatenate([data.of(name)["error"] for name in ("fitted", "held out")])
    assert grids["error"].mean() == pytest.approx(points.mean())


def test_laws_of_the_pair_lie_next_to_the_published_one(sources, paper):
    data = pair_figures.hyperparameters(dataclasses.replace(sources, published=paper))
    for name, law in (("batch", sources.law.batch), ("lr", sources.law.lr)):
        own, published = data.of(name), data.of(f"published {name}")
        np.testing.assert_allclose(own["value"], law(own["N"], own["T"]))
        np.testing.assert_allclose(published["value"], getattr(paper, name)(published["N"], published["T"]))
        assert np.all((own["low"] <= own["value"]) & (own["value"] <= own["high"]))
        assert set(own["along"]) == {"N", "T"}
    assert len(data.of("grid lr")["N"]) == 12
    assert "Dashed: " in data.caption


def test_training_curves_have_all_runs_and_the_planned_one(sources):
    data = loss_figures.training_curves(dataclasses.replace(sources, planned=PLANNED))
    assert len(np.unique(data.of("run")["run"])) == len(np.unique(sources.runs.run_id))
    run = data.of("planned run")
    assert (run["N"][0], run["high"][0]) == (1e9, pytest.approx(0.52 + 1.96e-3))
    assert set(np.unique(data.of("law")["N"])) == {*np.unique(sources.runs.N), 1e9}


def test_the_price_of_one_pair_is_that_of_compare(sources):
    data = pair_figures.fixed_pair(sources)
    (lr, _), rows = pair_prices.prices(sources.runs)
    known = [100 * row["price"]["value"] for row in rows if row["price"] is not None]
    assert data.of("price")["price"].tolist() == pytest.approx(known)
    assert f"Rate {lr:.3g}," in data.caption
    optimal, fixed = data.of("optimal pair"), data.of("fixed pair")
    assert fixed["N"][-1] > optimal["N"][-1]  # the paper's claim: a fixed pair overestimates the best size


def test_captions_name_formula_runs_commit_and_date(sources):
    law = dataclasses.replace(sources.law, provenance={"git_revision": "0123456789abcdef"})
    made = "; figure by commit abc on 2026-11-29"
    caption = loss_figures.isoflop(dataclasses.replace(sources, law=law, made=made)).caption
    for text in ("L = ", "100 runs", "commit 0123456789;", "commit abc on 2026-11-29"):
        assert text in caption


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("heat_maps", "no grids over (lr, B)"),
        ("hyperparameters", "no grids over (lr, B)"),
        ("fixed_pair", "grids"),
    ],
)
def test_rows_without_grids_leave_figures_out_by_name(paper, cost, name, reason):
    table = simulate.run_table(paper, [(N, np.nan, np.nan) for N in SMALL], TOKENS, 1e-4)
    table.loss[4] = np.inf
    charts, left_out = report.draw(Sources.of(table, paper, cost))
    found = {chart.name: chart for chart in charts}
    assert reason in left_out[name]
    assert len(found["predicted_measured"].of("fitted")["N"]) == 8  # the diverged row is no point
    assert {"loss_over_flops", "isoflop", "size_interval", "residuals", "training_curves"} <= set(found)


def test_a_law_without_a_loss_leaves_out_what_needs_one(swept, cost):
    table, law = swept
    sources = Sources.of(table, dataclasses.replace(law, loss=None, allocation=None), cost)
    assert "The law's frontier is left out" in loss_figures.loss_over_flops(sources).caption
    for figure in (loss_figures.size_interval, error_figures.predicted_measured, error_figures.residuals):
        with pytest.raises(UserError, match="no loss"):
            figure(sources)


def test_the_csv_holds_the_plotted_points(tmp_path):
    chart = Chart("name", "", size=(1, 1))
    chart.add("a", N=[1.0, 2.0], word=np.array(["x", "y"]))
    chart.add("b", T=0.1234567891234)
    chart.write_csv(tmp_path / "points.csv")
    with (tmp_path / "points.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["series"] for row in rows] == ["a", "a", "b"]
    assert [row["N"] for row in rows] == ["1.0", "2.0", ""]
    assert [row["word"] for row in rows] == ["x", "y", ""]
    assert rows[2]["T"] == "0.123456789"


@pytest.fixture(scope="module")
def drawn(swept, few, cost):
    """Every figure of a few runs and a planned one, by name."""
    return {chart.name: chart for chart in report.draw(Sources.of(few, swept[1], cost, planned=PLANNED))[0]}


@pytest.mark.parametrize("name", [figure.__name__ for figure in report.FIGURES])
def test_a_figure_is_drawn_with_named_axes(drawn, name):
    figure = drawn[name].figure
    panels = [axis for axis in figure.axes if axis.get_visible() and axis.get_label() != "<colorbar>"]
    assert panels
    assert figure.get_supxlabel() or all(axis.get_xlabel() for axis in panels)
    assert figure.get_supylabel() or all(axis.get_ylabel() for axis in panels)


def test_held_out_points_are_squares_on_the_curves(drawn):
    squares = [one for one in drawn["training_curves"].axes[0, 0].lines if one.get_marker() == "s"]
    assert sum(len(one.get_xdata()) for one in squares) == 3  # the grids of the held-out size


def test_many_grids_are_not_laid_out_in_a_wide_table(swept, few, cost):
    """Every size with milestones of its own, as dense public grids are: four panels abreast, none empty."""
    later = 1 + 0.1 * np.searchsorted(np.unique(few.N), few.N)
    apart = dataclasses.replace(few, T=few.T * later, nominal_T=few.nominal_T * later)
    figure = pair_figures.heat_maps(Sources.of(apart, swept[1], cost)).figure
    panels = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    assert (len(panels), sum(axis.get_visible() for axis in panels)) == (12, 12)
    assert figure.get_size_inches()[0] < 12


def test_rates_and_batches_stand_at_equal_distances_others_by_their_logarithms():
    to_place, from_place = pair_figures._equal_widths(np.array([1.0, 10.0, 1000.0]))
    values = np.array([1.0, 10.0, 100.0, 0.1, 1e5])
    np.testing.assert_allclose(to_place(values), [0, 1, 1.5, -1, 3])
    np.testing.assert_allclose(from_place(to_place(values)), values)


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (short, 131072, "131k"),
        (short, 2.4e9, "2.4B"),
        (short, 80, "80"),
        (flops, 3e12, "3e12"),
        (rate_text, 1.4e-3, "1.4e-3"),
    ],
)
def test_numbers_on_axes(form, value, text):
    assert form(value) == text
