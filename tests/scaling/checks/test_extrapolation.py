import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.scaling import planted
from videoscaling.scaling import runs
from videoscaling.scaling.checks import extrapolation
from videoscaling.scaling.fitting.losses import forms
from videoscaling.scaling.fitting.losses.form_fit import fit_form
from videoscaling.scaling.fitting.surface import surface_law
from videoscaling.scaling.law_file import load
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.prediction import predict

N, T, B = (
    v.ravel()
    for v in np.meshgrid(np.geomspace(1e7, 6.4e8, 5), np.geomspace(2e9, 3.2e10, 5), [3e4, 1e5, 3e5], indexing="ij")
)


def joint(N, T, B):
    return ((40 / N**0.3) + (60 / T**0.25)) ** 1.5 + 0.5


def three_term(N, T, B):
    return 30 / N**0.35 + 2 / B**0.3 + 20 / (T / B) ** 0.5 + 0.5


@pytest.mark.parametrize(("form", "truth"), [("joint", joint), ("three_term", three_term)])
def test_forms_recover_what_made_the_losses(paper, form, truth):
    fitted = fit_form(form, N, T, truth(N, T, B), B)
    np.testing.assert_allclose(fitted(4 * N, 2 * T, B), truth(4 * N, 2 * T, B), rtol=2e-4)


def test_additive_is_the_loss_law(paper):
    fitted = fit_form("additive", N, T, paper.loss(N, T), B)
    np.testing.assert_allclose(fitted(4 * N, 4 * T, B), paper.loss(4 * N, 4 * T), rtol=1e-6)


@pytest.mark.parametrize(
    ("truth", "best"), [pytest.param(joint, "joint", marks=pytest.mark.slow), (three_term, "three_term")]
)
def test_held_out_points_tell_the_forms_apart(truth, best):
    rows = extrapolation.summary(extrapolation.expanding_windows(N, T, B, truth(N, T, B), None))
    for along in ("N", "T"):
        errors = {row.form: row.error for row in rows if row.along == along}
        assert set(errors) == set(forms.CONSTANTS)
        assert min(errors, key=errors.get) == best


def test_windows_never_see_what_they_predict():
    checks = extrapolation.expanding_windows(N, T, B, joint(N, T, B), None, ("additive",))
    assert {(c.along, c.checked_at > c.fitted_to) for c in checks} == {("N", True), ("T", True)}
    assert [c.points for c in checks] == [15] * 4
    spoilt = joint(N, T, B) * np.where(np.max(N) == N, 1.01, 1.0)
    again = extrapolation.expanding_windows(N, T, B, spoilt, None, ("additive",))
    # The largest N is only ever predicted: a change there moves the check of it alone.
    first, last = (next(c for c in checks if c.along == "N" and c.checked_at == v) for v in np.unique(N)[3:])
    assert next(c for c in again if c.along == "N" and c.checked_at == first.checked_at).error == first.error
    moved = next(c for c in again if c.along == "N" and c.checked_at == last.checked_at)
    assert 1 + moved.bias == pytest.approx(1.01 * (1 + last.bias))


def test_equivalent_compute(paper):
    law = paper.loss
    assert extrapolation.equivalent_compute(law, 1e9, 1e10, float(law(1e9, 8e9))) == pytest.approx(0.8)
    assert extrapolation.equivalent_compute(law, 1e9, 1e10, 0.4) == np.inf


def test_a_held_out_pair_is_predicted_as_it_was_run(tmp_path):
    """One batch and one rate, four times the best one, at a larger N: what that costs is no error of the law."""
    cells = planted.cells(1)
    N, T, B = 4e7, 2e9, 500.0
    lr = 4 * planted.best_rate(B, T, N)
    path = planted.write_table(cells, tmp_path / "cells.csv")
    loss, text = math.exp(planted.ln_loss(N, T, B, lr)), path.read_text()

    def held_out(seeds):
        new = [f"new{i},{N:g},{T:g},{B:g},{lr:.9g},{loss * (1 + 1e-4 * i):.9g},100\n" for i in range(seeds)]
        path.write_text("".join([text, *new]))
        table = runs.read(path)
        return replace(table, heldout=table.N == N)

    table = held_out(1)
    law = surface_law.fit_law(table.rows(~table.heldout), "all", "auto", allocation.proportional(6), {})
    (point,) = extrapolation.held_out(table, law)
    assert abs(point.error) < 0.005 < 0.015 < float(predict(law, N, T, B, lr).regret.value[0])
    assert 0.7 < point.equivalent_compute < 1.4
    (mean,) = extrapolation.held_out(held_out(4), law)
    said = predict(law, N, T, B, lr, seeds=4)
    assert [mean.low, mean.high] == pytest.approx([said.low[0], said.high[0]])
    assert mean.high - mean.low < 0.95 * (point.high - point.low)


def test_a_flat_held_out_grid_is_no_cell():
    """The optimum of a flat grid has a batch and a rate that no run had: it counts as one run."""
    mini = Path(__file__).parents[3] / "results" / "mini"
    table, law = runs.read(mini / "cells"), load(mini / "law_before_heldout.json")
    committed = json.loads((mini / "heldout.json").read_text())["held_out"]
    assert "flat" in {grid["verdict"] for grid in committed}
    found = extrapolation.held_out(table, law)
    assert [(p.N, p.T) for p in found] == [(grid["N"], grid["T"]) for grid in committed]
    # The same comparison as in a study's answers, which another function makes.
    assert [p.error for p in found] == pytest.approx([grid["loss"]["error"] for grid in committed], abs=1e-4)
