import dataclasses
import json

import numpy as np
import pytest

from scaling import figures, fit, laws, report, simulate
from scaling.planning import allocation
from scaling.points import grid_optima
from scaling.runs import concatenate
from utils.errors import UserError

TOKENS = [2e9, 5e9, 12e9]


draw = report._image


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """What a page says is tested without its pictures, which are 60 % of its time; one test draws them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_image", lambda figure: "<img>")
        yield


@pytest.fixture
def no_figures(monkeypatch):
    """For what a page says apart from its figures, of which each report takes half a second."""
    for name in ("losses", "surfaces", "hyperparameters", "sizes_for_budget", "residuals"):
        monkeypatch.setattr(figures, name, lambda *arguments: None)


@pytest.fixture(scope="module")
def swept(paper, cost):
    cells = simulate.grid(paper, np.geomspace(0.0168e9, 0.268e9, 4), TOKENS, 5, 5, 2.0)
    ledger = simulate.ledger(paper, cells, TOKENS, 1e-4, n_ctx=1280)
    largest = ledger.N.max()
    ledger.heldout[:] = np.isclose(ledger.N, largest)
    return ledger, fit.fit(ledger, "all", fit.Options(), cost, {"name": "simulated <law>"}).law


@pytest.fixture(scope="module")
def built(no_pictures, swept, cost):
    """The report of ``swept``: its page, its figures by name."""
    return report.build(*swept, cost)


def result(loss, N=1e9, T=3e10):
    milestone = {"tokens": T, "flops": 1e20, "val_loss": 9.9, "ema_val_loss": loss, "ema_val_se": 1e-4}
    return {"N": N, "milestones": [milestone]}


def test_prediction_against_measurement(paper, swept):
    _, law = swept
    truth = float(paper.loss(1e9, 3e10))
    (inside,) = report.compare(law, result(truth))["milestones"]
    assert inside["low"] < truth < inside["high"]
    assert inside["predicted"] == pytest.approx(float(law.loss(1e9, 3e10)))
    (outside,) = report.compare(law, result(1.05 * truth))["milestones"]
    assert outside["error"] == pytest.approx(1.05 * truth / outside["predicted"] - 1)
    assert outside["loss"] > outside["high"]


def test_page_is_whole_and_self_contained(paper, cost, swept, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_image", draw)
    ledger, law = swept
    (tmp_path / "0.gif").write_bytes(b"GIF89a")
    (tmp_path / "samples.json").write_text(json.dumps([{"file": "0.gif", "prompt": "a red circle & a square"}]))
    page, drawn = report.build(ledger, law, cost, result(0.52), tmp_path)
    assert set(drawn) == {"losses", "surfaces", "hyperparameters", "sizes", "residuals"}
    assert "a red circle &amp; a square" in page
    assert "simulated &lt;law&gt;" in page
    assert "outside the law" in page
    assert 'src="http' not in page
    assert page.count("data:image/png;base64,iVBORw0KGgo") == len(drawn)  # each begins as a PNG does
    for figure in drawn.values():
        labelled = [axis for axis in figure.axes if axis.get_visible() and axis.get_label() != "<colorbar>"]
        # Axes with units: every panel says what both its axes are.
        assert all(axis.get_xlabel() and axis.get_ylabel() for axis in labelled)


def test_held_out_grids_are_drawn_and_not_fitted(swept, built):
    ledger, law = swept
    _, drawn = built
    markers = [line.get_marker() for line in drawn["losses"].axes[0].lines]
    assert markers.count("s") == 3
    assert law.domain["N"][1] < ledger.N.max()


@pytest.mark.parametrize(
    "wrong",
    [
        {"N": 1e9, "milestones": []}, {"N": 1e9}, {"milestones": [{}]}, [], [1], "x", None, 3,
        result(0.52) | {"N": "x"}, result(0.52) | {"N": 0}, result("x"), result(-1.0), result(0.52, T=None),
        result(0.52, T="x"), {"N": 1e9, "milestones": 3}, {"N": 1e9, "milestones": [3]},
        {"N": 1e9, "milestones": [{"tokens": 1e9, "val_loss": 0.5, "val_se": "x"}]},
    ],
)  # fmt: skip
def test_a_run_without_milestones_is_refused(swept, wrong):
    with pytest.raises(UserError, match="planned run"):
        report.compare(swept[1], wrong)


NOWHERE = {"N": None, "T": None, "B": None, "C": None}


@pytest.mark.parametrize(
    ("lacking", "drawn"),
    [
        ({"domain": NOWHERE, "n_ctx": None}, {"losses", "surfaces", "hyperparameters", "sizes", "residuals"}),
        ({"curvature": None, "lr_given_batch": None, "draws": None, "allocation": None, "fit": {}, "recipe": {}},
         {"losses", "surfaces", "hyperparameters", "sizes", "residuals"}),
        ({"loss": None, "allocation": None}, {"surfaces", "hyperparameters"}),
        ({"batch": None, "lr": None, "fit": {"window": None, "intervals": None, "warnings": None, "method": None}},
         {"losses", "surfaces", "sizes", "residuals"}),
    ],
)  # fmt: skip
def test_a_law_that_lacks_parts_is_drawn_as_far_as_it_goes(cost, swept, lacking, drawn):
    ledger, law = swept
    raw = laws.to_dict(law) | lacking
    if "fit" in lacking:
        raw["draws"] = None
    _, figures = report.build(ledger, laws.from_dict(raw), cost)
    assert set(figures) == drawn


def test_diverged_rows_of_a_table_without_grids_are_not_drawn(paper, cost):
    ledger = simulate.ledger(paper, [(N, np.nan, np.nan) for N in (1e8, 2e8, 4e8)], TOKENS, 1e-4)
    ledger.loss[4] = np.inf
    _, figures = report.build(ledger, paper, cost)
    assert len(figures["residuals"].axes[0].texts) == 8


def test_an_empty_folder_of_samples_is_refused(cost, swept, no_figures, tmp_path):
    with pytest.raises(UserError, match="no gif, png or mp4"):
        report.build(*swept, cost, None, tmp_path)


def test_grids_without_an_optimum_show_what_to_run(paper, cost, swept):
    """An edge, and a grid of diverged cells: drawn with the cells to run, named in words, and no crash."""
    ledger, law = swept
    small = ledger.N.min() == ledger.N
    edge = small & (ledger.T == 2e9) & (ledger.lr < np.median(ledger.lr[small]))
    gone = small & (ledger.T == 12e9)
    kept = ~(small & (ledger.T == 2e9)) | edge
    spoilt = dataclasses.replace(ledger, loss=np.where(gone, np.inf, ledger.loss)).rows(kept)
    page, drawn = report.build(spoilt, law, cost)
    assert "What to run next" in page
    assert page.count("<li>to decide it, run at N 1.68e+07") == 2
    titles = [axis.get_title() for axis in drawn["surfaces"].axes]
    assert any("T 2B: edge\n(higher lr" in text for text in titles)
    assert any("T 12B: too few points" in text for text in titles)
    assert report.figure_png(drawn["surfaces"]).startswith(b"\x89PNG")
    # A grid that was held out asks for nothing: no law waits for it.
    held = dataclasses.replace(spoilt, heldout=spoilt.heldout | (ledger.N.min() == spoilt.N))
    assert "What to run next" not in report.build(held, law, cost)[0]


def test_losses_are_those_that_were_fitted(paper, cost, swept):
    """Runs that overshot their milestones by up to a tenth: points lie at the tokens asked for, as in the fit."""
    ledger, _ = swept
    late = ledger.nominal_T * (1 + 0.1 * ledger.B / ledger.B.max())
    moved = ledger.loss * paper.loss(ledger.N, late) / paper.loss(ledger.N, ledger.nominal_T)
    overshot = dataclasses.replace(ledger, T=late, loss=moved)

    fitted = fit.fit(overshot, "all", fit.Options(), cost, {"name": "overshot"})
    _, drawn = report.build(overshot, fitted.law, cost)
    shown = [line.get_ydata()[0] for line in drawn["losses"].axes[0].lines if line.get_marker() == "o"]
    assert shown == pytest.approx(fitted.points.loss, rel=1e-9)


def test_a_law_without_a_window_takes_the_default(cost, swept, built, paper):
    ledger, _ = swept
    published = report.build(ledger, dataclasses.replace(paper, fit={}), cost)[1]["surfaces"]
    own = built[1]["surfaces"]
    stars = [
        [line.get_xydata()[0] for axis in figure.axes for line in axis.lines if line.get_marker() == "*"]
        for figure in (published, own)
    ]
    assert len(stars[0]) == 12
    np.testing.assert_array_equal(*stars)


def test_isoflop_curves_carry_what_was_measured(cost, swept, built, paper):
    """Each size's losses, interpolated at a budget, lie on the law's curve; a budget beyond them has none."""
    points = [(N, T, float(paper.loss(N, T)), N > 2e8) for N in (1e7, 1e8, 3e8) for T in np.geomspace(1e9, 9e9, 30)]
    C = 3e9 * float(cost(np.array(1e8)))
    found = {N: (loss, held) for N, loss, held in figures._at_budget(points, cost, C)}
    assert found[1e8] == (pytest.approx(float(paper.loss(1e8, 3e9)), rel=1e-4), False)
    assert 1e7 not in found
    assert found[3e8][1]
    page, _ = built
    budget = 10 * swept[1].domain["C"][1]
    best = allocation.optimum(swept[1].loss, budget, cost)
    assert f"the loss law is lowest at {figures.short(float(best))} parameters (95 % interval" in page


def test_many_grids_are_not_laid_out_in_a_wide_table(paper, cost):
    """Every size with milestones of its own, as dense public grids are: four panels abreast, none empty."""
    cells = [(N, [T, 2 * T]) for N, T in ((1e7, 1e9), (2e7, 3e9), (4e7, 7e9))]
    parts = [simulate.ledger(paper, simulate.grid(paper, [N], T, 4, 4, 2.0), T, 1e-4, n_ctx=1280) for N, T in cells]
    for number, part in enumerate(parts):
        part.run_id[:] = np.char.replace(part.run_id, "simulated-", f"{number}-")
    ledger = concatenate(parts)
    drawn = figures.surfaces(ledger, tuple(grid_optima(ledger, 0.02)))
    panels = [axis for axis in drawn.axes if axis.get_label() != "<colorbar>"]
    assert (len(panels), sum(axis.get_visible() for axis in panels)) == (8, 6)
    assert drawn.get_size_inches()[0] < 14


def test_best_cells_that_stood_in_are_said_to_have(paper, cost):
    """Fitted by force: what is drawn hollow entered the law, and no text says the contrary."""
    cells = simulate.grid(paper, np.geomspace(1e7, 1e8, 5), TOKENS, 4, 4, 2.0, 4.0)
    ledger = simulate.ledger(paper, cells, TOKENS, 1e-4, n_ctx=1280)
    law = fit.fit(ledger, "all", fit.Options(force=True), cost, {"name": "forced"}).law
    page, drawn = report.build(ledger, law, cost)
    for untrue in ("enters no law", "enter no law"):
        assert untrue not in page
    assert "best cells stand in" in page
    labels = [text.get_text() for text in drawn["hyperparameters"].legends[0].get_texts()]
    assert "no optimum inside: the best cell stands in" in labels
    # The points of the loss law are those that were fitted.
    assert sum(line.get_marker() == "o" for line in drawn["losses"].axes[0].lines) == 15


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"domain": {"N": [1e9, 5e9], "T": [2e9, 1.2e10], "B": None, "C": None}}, "it was fitted on N 1e+09 to 5e+09"),
        ({"recipe": {"data": "ours", "vae": None, "beta": 1}}, "its recipe differs in data"),
        ({"n_ctx": 80}, "has clips of 80 tokens"),
        ({}, None),
    ],
)
def test_a_law_of_other_runs_is_told(cost, swept, no_figures, change, said):
    ledger, law = swept
    ledger = dataclasses.replace(ledger, recipe={"data": "theirs", "vae": "theirs", "beta": 1})
    page = report.build(ledger, dataclasses.replace(law, **change), cost)[0]
    assert page.count("other runs") == (said is not None)
    assert said is None or said in page
