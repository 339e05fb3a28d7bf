"""The page of the report: what it says, without its pictures."""

import dataclasses
import json

import numpy as np
import pytest

from tests.scaling import simulate
from tests.scaling.reporting.conftest import TOKENS
from videoscaling.scaling import law_file
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.reporting import all_figures, report
from videoscaling.scaling.reporting.figure_data import Sources
from videoscaling.utils.errors import UserError

draw = report._draw


class NoFigure:
    """Stands for a figure, of which each takes a quarter of a second; test_figures draws them."""

    def get_figwidth(self):
        return 9.6


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda data: report.Drawn(data, NoFigure(), b"picture"))


@pytest.fixture
def no_figures(monkeypatch):
    """For what a page says apart from its figures."""
    monkeypatch.setattr(all_figures, "compute", lambda sources: ({}, {}))


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


def test_page_is_whole_and_self_contained(sources, tmp_path, monkeypatch):
    names = ("fixed_pair",)
    found = {name: all_figures.FIGURES[name][0](sources) for name in names}
    monkeypatch.setattr(all_figures, "compute", lambda sources: (found, {"isoflop": "no <budget>"}))
    monkeypatch.setattr(report, "_draw", draw)
    (tmp_path / "0.gif").write_bytes(b"GIF89a")
    (tmp_path / "samples.json").write_text(json.dumps([{"file": "0.gif", "prompt": "a red circle & a square"}]))
    planned = report.compare(sources.law, result(0.52))
    page, drawn = report.build(dataclasses.replace(sources, planned=planned), tmp_path)
    assert "a red circle &amp; a square" in page
    assert "simulated &lt;law&gt;" in page
    assert "outside the law" in page
    assert "isoflop: no &lt;budget&gt;" in page
    assert 'src="http' not in page
    assert page.count("data:image/png;base64,iVBORw0KGgo") == len(drawn) == 1  # each begins as a PNG does
    report.write_figures(drawn, tmp_path / "figures")
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written == {f"{name}.{form}" for name in names for form in ("csv", "png", "svg", "txt")}
    assert b"<svg" in (tmp_path / "figures" / "fixed_pair.svg").read_bytes()[:1000]
    assert "commit" in (tmp_path / "figures" / "fixed_pair.txt").read_text()


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
ALL = set(all_figures.FIGURES)


@pytest.mark.parametrize(
    ("lacking", "left_out"),
    [
        ({"domain": NOWHERE, "n_ctx": None}, set()),
        ({"curvature": None, "lr_given_batch": None, "draws": None, "allocation": None, "fit": {}}, set()),
        ({"loss": None, "allocation": None}, {"size_interval", "predicted_measured", "residuals"}),
        ({"batch": None, "lr": None, "fit": {"window": None, "intervals": None, "warnings": None, "method": None}},
         {"hyperparameters"}),
    ],
)  # fmt: skip
def test_a_law_that_lacks_parts_is_drawn_as_far_as_it_goes(cost, swept, few, lacking, left_out):
    raw = law_file.to_dict(swept[1]) | lacking
    if "fit" in lacking:
        raw["draws"] = None
    page, drawn = report.build(Sources.of(few, law_file.from_dict(raw), cost))
    assert {one.data.name for one in drawn} == ALL - left_out
    assert ("Figures left out" in page) == bool(left_out)


def test_an_empty_folder_of_samples_is_refused(sources, no_figures, tmp_path):
    with pytest.raises(UserError, match="no gif, png or mp4"):
        report.build(sources, tmp_path)


def test_a_law_without_a_window_takes_the_default(cost, swept, sources, paper):
    published = Sources.of(swept[0], dataclasses.replace(paper, fit={}), cost)
    assert [o.lr for o in published.optima] == [o.lr for o in sources.optima]


def test_best_cells_that_stand_in_are_named(paper, cost, monkeypatch):
    """Fitted by force: what is drawn hollow entered the law, and no text says the contrary."""
    cells = simulate.grid(paper, np.geomspace(1e7, 1e8, 5), TOKENS, 4, 4, 2.0, 4.0)
    table = simulate.run_table(paper, cells, TOKENS, 1e-4, n_ctx=1280)
    law = fit.fit(table, "all", fit.Options(force=True), cost, {"name": "forced"}).law
    chosen = {name: all_figures.FIGURES[name] for name in ("hyperparameters", "predicted_measured")}
    monkeypatch.setattr(all_figures, "FIGURES", chosen)
    page, drawn = report.build(Sources.of(table, law, cost))
    assert "enter no law" not in page
    assert "best cells stand in" in page
    assert "were fitted all the same" in page
    points = next(one.data for one in drawn if one.data.name == "predicted_measured")
    assert len(points.of("fitted")["N"]) == 15


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"domain": {"N": [1e9, 5e9], "T": [2e9, 1.2e10], "B": None, "C": None}}, "it was fitted on N 1e+09 to 5e+09"),
        ({"recipe": {"data": "ours", "vae": None, "beta": 1}}, "its recipe differs in data"),
        ({"n_ctx": 80}, "has clips of 80 tokens"),
        ({}, None),
    ],
)
def test_a_law_of_other_runs_is_named(cost, swept, no_figures, change, said):
    table, law = swept
    table = dataclasses.replace(table, recipe={"data": "theirs", "vae": "theirs", "beta": 1})
    page = report.build(Sources.of(table, dataclasses.replace(law, **change), cost))[0]
    assert page.count("other runs") == (said is not None)
    assert said is None or said in page
