import json

import numpy as np
import pytest

from scaling import fit, report, simulate
from utils.errors import UserError

TOKENS = [2e9, 5e9, 12e9]


@pytest.fixture(scope="module")
def swept(paper, cost):
    cells = simulate.grid(paper, np.geomspace(0.0168e9, 0.268e9, 4), TOKENS, 5, 5, 2.0)
    ledger = simulate.ledger(paper, cells, TOKENS, 1e-4, n_ctx=1280)
    largest = ledger.N.max()
    ledger.heldout[:] = np.isclose(ledger.N, largest)
    return ledger, fit.fit(ledger, "all", fit.Options(), cost, {"name": "simulated <law>"}).law


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


def test_page_is_whole_and_self_contained(paper, cost, swept, tmp_path):
    ledger, law = swept
    (tmp_path / "0.gif").write_bytes(b"GIF89a")
    (tmp_path / "samples.json").write_text(json.dumps([{"file": "0.gif", "prompt": "a red circle & a square"}]))
    page, figures = report.build(ledger, law, cost, result(0.52), tmp_path)
    assert set(figures) == {"losses", "surfaces", "hyperparameters", "sizes", "residuals"}
    assert "a red circle &amp; a square" in page
    assert "simulated &lt;law&gt;" in page
    assert "outside the law" in page
    assert 'src="http' not in page
    for figure in figures.values():
        assert report.figure_png(figure).startswith(b"\x89PNG")
        labelled = [axis for axis in figure.axes if axis.get_visible() and axis.get_label() != "<colorbar>"]
        # Axes with units: every panel says what both its axes are.
        assert all(axis.get_xlabel() and axis.get_ylabel() for axis in labelled)


def test_held_out_grids_are_drawn_and_not_fitted(cost, swept):
    ledger, law = swept
    _, figures = report.build(ledger, law, cost)
    markers = [line.get_marker() for line in figures["losses"].axes[0].lines]
    assert markers.count("s") == 3
    assert law.domain["N"][1] < ledger.N.max()


@pytest.mark.parametrize("wrong", [{"N": 1e9, "milestones": []}, {"N": 1e9}, {"milestones": [{}]}])
def test_a_run_without_milestones_is_refused(swept, wrong):
    with pytest.raises(UserError, match="planned run"):
        report.compare(swept[1], wrong)


def test_an_empty_folder_of_samples_is_refused(cost, swept, tmp_path):
    with pytest.raises(UserError, match="no gif, png or mp4"):
        report.build(*swept, cost, None, tmp_path)
