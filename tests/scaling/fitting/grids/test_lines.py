"""Grids along one batch or one rate, and laws that no run can follow."""

import dataclasses

import numpy as np
import pytest

from tests.scaling import simulate
from tests.scaling.planned import plan
from videoscaling.scaling import law_file, laws
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.fitting.grids.optimum import find
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.planning.request import Request
from videoscaling.utils.errors import UserError

SIZES, TOKENS = np.array([2e7, 6e7, 2e8]), [2e9, 5e9, 1.2e10]


def along(paper, B=None, noise=1e-4):
    """Seven rates at each (N, T), at one batch, or as many batches at one rate."""
    middle = float(paper.batch(6e7, 5e9)), float(paper.lr(6e7, 5e9))
    factors = 2.0 ** np.arange(-3, 4)
    cells = [
        (N, middle[0] * (1 if B is None else f), middle[1] * (f if B is None else 1)) for N in SIZES for f in factors
    ]
    return simulate.run_table(paper, cells, TOKENS, noise, n_ctx=1280)


def test_rates_along_one_batch(paper, cost):
    """Along a batch B the best rate is lr_opt * (B / B_opt)^slope: exponents less slope times the batch's."""
    table = along(paper)
    law = fit.fit(table, "all", fit.Options(), cost, {}).law
    slope = -paper.curvature.lr_batch / (2 * paper.curvature.lr_lr)
    for name in ("T", "N"):
        planted = getattr(paper.lr, name) - slope * getattr(paper.batch, name)
        assert getattr(law.lr, name) == pytest.approx(planted, abs=0.015)
        low, high = law.fit["intervals"][f"lr.{name}"]
        assert low - 0.01 < planted < high + 0.01
    assert law.batch is None
    assert law.fit["along"] == {"B": table.B[0]}
    assert "all runs have the one B" in law.reason("batch")
    assert law_file.from_dict(law_file.to_dict(law)).lr == law.lr
    planned = plan(law, Request(params=6e7, tokens=5e9))
    assert planned["B"] == round(table.B[0] / 1280) * 1280
    assert planned["lr"]["value"] == pytest.approx(float(law.lr(planned["N"], 5e9)))
    other = plan(law, Request(params=6e7, tokens=5e9, batch=4 * planned["B"]))
    assert (other["B"], other["lr"]) == (4 * planned["B"], None)


def test_batches_along_one_rate(paper, cost):
    law = fit.fit(along(paper, B=True), "hyperparameters", fit.Options(), cost, {}).law
    ridge = -paper.curvature.lr_batch / (2 * paper.curvature.batch_batch)
    for name in ("T", "N"):
        planted = getattr(paper.batch, name) - ridge * getattr(paper.lr, name)
        assert getattr(law.batch, name) == pytest.approx(planted, abs=0.03)
    assert law.lr is None
    assert list(law.fit["along"]) == ["lr"]


def test_a_line_has_edges(paper):
    table = along(paper)
    low = table.rows(table.lr < 0.6 * np.median(table.lr))
    found = find(1e8, 1e9, low.lr[:3], low.B[:3], np.array([2.3, 2.2, 2.1]), axes=("lr",))
    assert found.verdict == "too few points" or found.verdict == "edge"
    lr, loss = 1e-3 * 2.0 ** np.arange(5), 2 + 0.01 * (np.arange(5) - 5.0) ** 2
    found = find(1e8, 1e9, lr, np.full(5, 1e5), loss, axes=("lr",), window=None)
    assert (found.verdict, found.sides) == ("edge", ("higher lr",))


def test_one_batch_that_differs_from_size_to_size_tells_no_rate(paper, cost):
    table = along(paper)
    apart = dataclasses.replace(table, B=table.B * np.where(table.N > 1e8, 2, 1))
    with pytest.raises(UnsupportedFit, match="each .N, T. has one B, and these differ"):
        fit.fit(apart, "hyperparameters", fit.Options(), cost, {})


@pytest.fixture(scope="module")
def grids(paper):
    return simulate.run_table(paper, simulate.grid(paper, SIZES, TOKENS, 5, 5, 2.0), TOKENS, 1e-4, n_ctx=1280)


def test_sizes_that_are_nearly_one_tell_no_exponent(paper, cost, grids):
    near = dataclasses.replace(grids, N=1e8 * (1 + 1e-3 * (grids.N / SIZES[0] - 1)))
    with pytest.raises(UnsupportedFit, match=r"within a factor of 1.5.*--fix B.N=0 --fix lr.N=0") as refused:
        fit.fit(near, "hyperparameters", fit.Options(), cost, {})
    assert not refused.value.forcible
    # The advice helps: with both held there is a law.
    assert fit.fit(near, "hyperparameters", fit.Options(fixed={"B.N": 0.0, "lr.N": 0.0}), cost, {}).law.batch.N == 0


def test_exponents_beyond_any_plausible_one(cost, paper):
    N, T = (v.ravel() for v in np.meshgrid([1e7, 3e7, 1e8], [1e9, 4e9, 1.6e10]))
    table = simulate.run_table(paper, [(n, np.nan, np.nan) for n in N], T, 1e-5).rows(np.arange(9) * 10)
    absurd = dataclasses.replace(table, lr=1e-3 * (table.N / 1e7) ** -3.0)
    with pytest.raises(UnsupportedFit, match=r"lr_opt: an exponent of -3 in N is beyond any plausible one, 2"):
        fit.fit(absurd, "hyperparameters", fit.Options(optima=True), cost, {})
    forced = fit.fit(absurd, "hyperparameters", fit.Options(optima=True, force=True), cost, {})
    assert any("beyond any plausible" in text for text in forced.warnings)


def test_optima_far_from_the_others_are_named(cost, grids):
    odd = (SIZES[1] == grids.N) & (grids.nominal_T == TOKENS[2])
    moved = dataclasses.replace(grids, lr=np.where(odd, 20 * grids.lr, grids.lr))
    with pytest.raises(
        UnsupportedFit, match=r"lr_opt: 1 of 9 optima lie far .*\n  N 6e\+07, T 1.2e\+10: lr .* times that"
    ):
        fit.fit(moved, "hyperparameters", fit.Options(), cost, {})


@pytest.mark.parametrize(("clip", "message"), [(1280, "of neighbouring grids are far apart"), (2**18, "lie in two")])
def test_batches_in_two_units_are_suspected(cost, grids, clip, message):
    mixed = dataclasses.replace(grids, B=np.where(SIZES[2] == grids.N, grids.B / clip, grids.B))
    with pytest.raises(UnsupportedFit, match=rf"{message}.*counted in sequences and some in tokens\?") as refused:
        fit.fit(mixed, "all", fit.Options(), cost, {})
    assert "--batch-unit" in refused.value.advice


def test_losses_alone_give_a_plan_without_batch_and_rate(cost, paper, tmp_path):
    path = tmp_path / "ntl.csv"
    points = [(N, T) for N in np.geomspace(1e7, 1e9, 5) for T in np.geomspace(1e9, 1e11, 5)]
    path.write_text("\n".join(["N,T,loss", *(f"{N},{T},{paper.loss(N, T)}" for N, T in points)]))
    from videoscaling.scaling.runs import read

    table = dataclasses.replace(read(path, hyperparameters=None), n_ctx=np.full(25, 1280))
    law = fit.fit(table, "all", fit.Options(), cost, {}).law
    assert law.reason("batch") == law.reason("lr") == "the results name no batch and no rate"
    planned = plan(law, Request(flops=1e20))
    assert [planned[name] for name in ("B", "lr", "steps", "B_opt")] == [None] * 4
    assert planned["loss"]["value"] == pytest.approx(float(paper.loss(planned["N"], planned["T"])), rel=1e-3)
    assert planned["gpu_hours"] > 0
    assert any(text.startswith("B and lr unknown (the results name no batch") for text in planned["warnings"])
    filled = laws.with_hyperparameters(law, paper)
    planned = plan(filled, Request(flops=1e20))
    assert planned["lr"] == pytest.approx(plan(paper, Request(flops=1e20))["lr"], rel=0.2)
    assert "batch: N, T, coefficient assumed, not measured" in planned["warnings"]
    # fit.py's own prior gives the same.
    assert fit.fit(table, "all", fit.Options(prior=paper), cost, {}).law.batch == filled.batch


def test_a_law_beyond_any_run_is_named(paper):
    absurd = dataclasses.replace(paper, batch=dataclasses.replace(paper.batch, N=-133.0))
    with pytest.raises(UserError, match="gives B .* outside 0.001 to 1e.15; its constants are out of range"):
        absurd.best_pair(1e5, 1e9)
    assert paper.best_pair(1e9, 1e10)[0] == pytest.approx(float(paper.lr(1e9, 1e10)))
