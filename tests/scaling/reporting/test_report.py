"""The page of the report: what it says, without its pictures."""

import dataclasses
import json

import numpy as np
import pytest

from tests.scaling import simulate
from tests.scaling.reporting.conftest import TOKENS
from videoscaling.scaling import law_file
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.fitting.method import LOSSES, fit_law
from videoscaling.scaling.fitting.options import Options
from videoscaling.scaling.reporting import error_figures, pair_figures, report
from videoscaling.scaling.reporting.chart import Chart
from videoscaling.scaling.reporting.measured_run import compare
from videoscaling.scaling.reporting.sources import Sources
from videoscaling.scaling.reporting.style import short
from videoscaling.utils.errors import UserError


@pytest.fixture
def no_figures(monkeypatch):
    """For what a page says apart from its figures."""
    monkeypatch.setattr(report, "FIGURES", ())


@pytest.fixture
def pictures(monkeypatch):
    """No picture is encoded, which takes a quarter of a second each."""
    monkeypatch.setattr(Chart, "encoded", lambda chart, form: b"picture")


def page_of(sources, folder, **more):
    """(The page, its figures' names)."""
    charts = report.write(sources, folder / "page.html", **more)
    return (folder / "page.html").read_text(), [chart.name for chart in charts]


def result(loss, N=1e9, T=3e10):
    milestone = {"tokens": T, "flops": 1e20, "val_loss": 9.9, "ema_val_loss": loss, "ema_val_se": 1e-4}
    return {"N": N, "milestones": [milestone]}


def test_prediction_against_measurement(paper, swept):
    _, law = swept
    truth = float(paper.loss(1e9, 3e10))
    (inside,) = compare(law, result(truth)).milestones
    assert inside.low < truth < inside.high
    assert inside.predicted == pytest.approx(float(law.loss(1e9, 3e10)))
    (outside,) = compare(law, result(1.05 * truth)).milestones
    assert outside.error == pytest.approx(1.05 * truth / outside.predicted - 1)
    assert outside.loss > outside.high


def test_page_is_whole_and_self_contained(sources, tmp_path, monkeypatch):
    figures = [figure for figure in report.FIGURES if figure.__name__ == "fixed_pair"]

    def isoflop(sources):
        raise UserError("no <budget>")

    monkeypatch.setattr(report, "FIGURES", (*figures, isoflop))
    (tmp_path / "0.gif").write_bytes(b"GIF89a")
    (tmp_path / "samples.json").write_text(json.dumps([{"file": "0.gif", "prompt": "a red circle & a square"}]))
    measured = dataclasses.replace(sources, planned=compare(sources.law, result(0.52)))
    page, names = page_of(measured, tmp_path, samples=tmp_path, figures=tmp_path / "figures")
    assert "a red circle &amp; a square" in page
    assert "simulated &lt;law&gt;" in page
    assert "outside the law" in page
    assert "isoflop: no &lt;budget&gt;" in page
    assert 'src="http' not in page
    assert page.count("data:image/png;base64,iVBORw0KGgo") == len(names) == 1  # each begins as a PNG does
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written == {f"fixed_pair.{form}" for form in ("csv", "png", "svg", "txt")}
    assert b"<svg" in (tmp_path / "figures" / "fixed_pair.svg").read_bytes()[:1000]
    assert "commit" in (tmp_path / "figures" / "fixed_pair.txt").read_text()


@pytest.mark.parametrize(
    "wrong",
    [
        {"N": 1e9, "milestones": []},
        {"milestones": [{}]},
        result(0.52) | {"N": None},
        result(0.52) | {"N": 0},
        result(-1.0),
        result(0.52, T=None),
        result(None) | {"N": 1e9, "milestones": [{"tokens": 1e9}]},
    ],
)
def test_a_run_without_what_is_compared_is_refused(swept, wrong):
    with pytest.raises(UserError, match="planned run"):
        compare(swept[1], wrong)


NOWHERE = {"N": None, "T": None, "B": None, "C": None}
ALL = {figure.__name__ for figure in report.FIGURES}


@pytest.mark.parametrize(
    ("lacking", "left_out"),
    [
        ({"domain": NOWHERE, "n_ctx": None}, set()),
        ({"curvature": None, "lr_given_batch": None, "draws": None, "allocation": None, "fit": {}}, set()),
        ({"loss": None, "allocation": None}, {"size_interval", "predicted_measured", "residuals"}),
        (
            {"batch": None, "lr": None, "fit": {"window": None, "intervals": None, "warnings": None, "method": None}},
            {"hyperparameters"},
        ),
    ],
)
def test_a_law_that_lacks_parts_is_drawn_as_far_as_it_goes(cost, swept, few, tmp_path, pictures, lacking, left_out):
    raw = law_file.to_dict(swept[1]) | lacking
    if "fit" in lacking:
        raw["draws"] = None
    page, names = page_of(Sources.of(few, law_file.from_dict(raw), cost), tmp_path)
    assert set(names) == ALL - left_out
    assert ("Figures left out" in page) == bool(left_out)


def test_an_empty_folder_of_samples_is_refused(sources, no_figures, tmp_path):
    with pytest.raises(UserError, match="no gif, png or mp4"):
        report.write(sources, tmp_path / "page.html", samples=tmp_path)
    assert not (tmp_path / "page.html").exists()


def test_a_law_without_a_window_takes_the_default(cost, swept, sources, paper):
    published = Sources.of(swept[0], dataclasses.replace(paper, fit={}), cost)
    assert [o.lr for o in published.optima] == [o.lr for o in sources.optima]


def test_best_cells_that_stand_in_are_named(paper, cost, tmp_path, monkeypatch, pictures):
    """Fitted by force: what is drawn hollow entered the law, and no text says the contrary."""
    cells = simulate.grid(law=paper, N=np.geomspace(1e7, 1e8, 5), T=TOKENS, batches=4, rates=4, factor=2.0, offset=4.0)
    table = simulate.run_table(paper, cells, TOKENS, 1e-4, n_ctx=1280)
    law = fit.fit(table, "all", fit.Options(force=True), cost, {"name": "forced"}).law
    monkeypatch.setattr(report, "FIGURES", (pair_figures.hyperparameters, error_figures.predicted_measured))
    charts = report.write(Sources.of(table, law, cost), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "enter no law" not in page
    assert "best cells stand in" in page
    assert "were fitted all the same" in page
    assert len(charts[1].of("fitted")["N"]) == 15


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"domain": {"N": [1e9, 5e9], "T": [2e9, 1.2e10], "B": None, "C": None}}, "it was fitted on N 1e+09 to 5e+09"),
        ({"recipe": {"data": "ours", "vae": None, "beta": 1}}, "its recipe differs in data"),
        ({"n_ctx": 80}, "has clips of 80 tokens"),
        ({"provenance": {"runs": ["another run"]}}, "none of these is among them"),
        ({}, None),
    ],
)
def test_a_law_of_other_runs_is_named(cost, swept, tmp_path, no_figures, change, said):
    table, law = swept
    table = dataclasses.replace(table, recipe={"data": "theirs", "vae": "theirs", "beta": 1})
    page, _ = page_of(Sources.of(table, dataclasses.replace(law, **change), cost), tmp_path)
    assert page.count("other runs") == (said is not None)
    assert said is None or said in page


def test_a_page_of_one_size_has_no_range_and_names_whose_warnings_these_are(few, swept, cost, tmp_path, no_figures):
    one = few.rows(np.isclose(few.N, few.N.min()))
    law = dataclasses.replace(swept[1], draws=None, fit={"warnings": ["these runs are few"]})
    page, _ = page_of(Sources.of(one, law, cost), tmp_path)
    assert f"1 size of {short(one.N[0])} parameters." in page
    assert "<li>these runs are few" in page
    law = dataclasses.replace(law, domain=law.domain | {"N": [1e9, 1e9]})
    page, _ = page_of(Sources.of(one, law, cost), tmp_path)
    assert f"it was fitted on N 1e+09, and these have {one.N[0]:.4g}" in page
    assert "<li>of its fit: these runs are few" in page


def test_losses_alone_have_a_page(paper, cost, tmp_path, pictures):
    """A law of averaged loss forms, which has no constants of power laws and no pair."""
    table = simulate.run_table(paper, [(N, np.nan, np.nan) for N in np.geomspace(1e7, 1e8, 5)], TOKENS, 1e-3)
    law = fit_law(table, "all", LOSSES, Options(form="joint"), cost, {"name": "losses"}).law
    page, names = page_of(Sources.of(table, law, cost), tmp_path)
    assert set(names) == ALL - {"heat_maps", "hyperparameters", "fixed_pair"}
    assert "L = (Nc / N^aN + Tc / T^aT)^k + Linf; Nc" in page
