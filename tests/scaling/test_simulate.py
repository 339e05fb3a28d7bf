import numpy as np
import pytest

from videoscaling.scaling import simulate
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.fitting.grids.fit_points import Untrusted

SIZES = np.geomspace(0.0168e9, 0.268e9, 4)


def cells(paper, tokens, offset=0.0):
    grid = simulate.grid(paper, SIZES, tokens, 5, 5, 2.0, offset)
    return [simulate.Cell(N, B, lr, tuple(tokens)) for N, B, lr in grid]


def test_noise_and_correlation_are_as_asked(paper):
    ledger = simulate.ledger(paper, [(1e8, np.nan, np.nan)] * 4000, [2e9, 8e9], 1e-3, correlation=0.6, n_ctx=1280)
    error = (ledger.loss / paper.loss(ledger.N, ledger.T) - 1).reshape(-1, 2)
    # 4000 draws know a standard deviation to 1.1 % and a correlation to .01.
    assert error.std(axis=0) == pytest.approx([1e-3, 1e-3], rel=0.05)
    assert np.corrcoef(error.T)[0, 1] == pytest.approx(0.6, abs=0.05)


def test_a_sweeps_cells_of_a_size_share_a_third_of_their_noise(paper):
    """As in real sweeps; a repeat has samples of its own, and so have other sizes."""
    grid = [simulate.Cell(N, B, 1e-4, (2e9, 8e9)) for N in (1e8, 2e8) for B in (1e5, 2e5) for _ in range(2)]
    errors = []
    for seed in range(1500):
        ledger = simulate.sweep(paper, grid, 1e-3, 0.6, seed, 1280)
        errors.append(ledger.loss / simulate.sweep(paper, grid, 0.0, 0.6, seed, 1280).loss - 1)
    error, (common, other) = np.array(errors), (ledger.stream, ledger.N)
    assert error.std() == pytest.approx(1e-3, rel=0.03)
    found = np.corrcoef(error.T)
    late = ledger.T == 8e9
    for i in range(len(ledger)):
        for j in range(i):
            expected = 1 / 3 if common[i] == common[j] else 0.0
            if ledger.run_id[i] == ledger.run_id[j]:
                expected = 1.0
            expected *= 1.0 if late[i] == late[j] else 0.6
            assert found[i, j] == pytest.approx(expected, abs=0.1)
    assert len(set(zip(common, other))) == len(set(common)) == 4


@pytest.mark.slow
def test_expectations_follow_the_noise(paper, cost):
    tokens = [2e9, 5e9, 12e9]
    quiet, loud = (
        simulate.expect(paper, cells(paper, tokens), noise, 1e21, cost, 1280, repeats=4) for noise in (5e-5, 5e-4)
    )
    for name in ("N_opt", "B", "lr", "loss"):
        for found in (quiet, loud):
            assert found[name]["low"] < found[name]["value"] < found[name]["high"]
        wide, narrow = (np.log(found[name]["high"] / found[name]["low"]) for found in (loud, quiet))
        assert wide > 3 * narrow
    assert quiet["interior"] == 12
    assert "12.0 of 12 grids interior" in simulate.text(quiet)


def test_a_grid_in_the_wrong_place_is_foretold(paper, cost):
    found = simulate.expect(paper, cells(paper, [2e9, 5e9, 12e9], offset=4.0), 1e-5, 1e21, cost, 1280, repeats=2)
    assert sum(found["refused"].values()) == 2
    assert "not fitted" in simulate.text(found)


@pytest.mark.parametrize(("refusals", "told"), [(0, "median 95 % interval"), (1, "; 3 of 4 simulations"), (3, "")])
def test_intervals_of_few_simulations_are_none(paper, cost, monkeypatch, refusals, told):
    """The fits that happen to succeed are the lucky ones: below half of them, their intervals are no expectation."""
    whole, calls = fit.fit, iter(range(4))

    def some(*given):
        if next(calls) < refusals:
            raise Untrusted("no such luck")
        return whole(*given)

    monkeypatch.setattr(fit, "fit", some)
    found = simulate.expect(paper, cells(paper, [2e9, 5e9, 12e9]), 5e-5, 1e21, cost, 1280, repeats=4)
    text = simulate.text(found)
    assert found["fitted"] == 4 - refusals
    for name in ("N_opt", "B", "lr", "loss"):
        assert ("low" in found[name]) == (refusals < 2)
    assert text.count("not fitted") == (4 if refusals == 3 else 0)
    assert told in text
    assert ("only 1 of 4 simulations" in text) == (refusals == 3)
    assert ("simulations gave a law" in text) == (refusals > 0)


def test_a_law_used_far_outside_its_compute_is_told(paper, cost):
    near = simulate.expect(paper, cells(paper, [2e9, 5e9]), 5e-5, 1e21, cost, 1280, repeats=1)
    assert near["warnings"] == []
    above = simulate.expect(paper, cells(paper, [2e9, 5e9]), 5e-5, 2.1e21, cost, 1280, repeats=1)
    tiny = [simulate.Cell(1e5, c.B, c.lr, (1e7, 2e9)) for c in cells(paper, [2e9])]
    below = simulate.expect(paper, tiny, 5e-5, 1e19, cost, 1280, repeats=1)
    for found in (above, below):
        (told,) = found["warnings"]
        assert told.startswith("law 'paper' was fitted from 3e+17 to 2e+19 FLOPs")
    assert "2.1e+21: extrapolated by a factor of 105" in above["warnings"][0]


def test_shares_of_verdicts_are_not_rounded_to_none_or_all():
    found = {"runs": 1, "repeats": 200, "noise": 0.01, "grids": 1, "interior": 0.0, "C": 1e20, "fitted": 0}
    found |= {"refused": {"few": 200}, "verdicts": {"flat": 999, "edge (lower lr)": 1}, "where": []}
    found |= {name: {"value": 1.0} for name in ("N_opt", "B", "lr", "loss")}
    lines = simulate.text(found).splitlines()
    assert any(line.strip().startswith(">99% flat") for line in lines)
    assert any(line.strip().startswith("<1% edge (lower lr)") for line in lines)


def test_sizes_may_have_milestones_of_their_own(paper):
    mixed = [simulate.Cell(1e7, 1e4, 1e-3, (1e9, 2e9)), simulate.Cell(1e8, 1e5, 1e-3, (4e9,))]
    ledger = simulate.sweep(paper, mixed, 1e-4, 0.6, 0, 1280)
    assert sorted(zip(ledger.N, ledger.T)) == [(1e7, 1e9), (1e7, 2e9), (1e8, 4e9)]
    assert len(set(ledger.run_id)) == 2


def test_a_refusal_is_explained(paper, cost):
    """Grids that start far above the law's best cells: which refusal, how often, and where the cells should be."""
    asked = cells(paper, [2e9, 5e9, 12e9], offset=4.0)
    found = simulate.expect(paper, asked, 1e-5, 1e21, cost, 1280, repeats=3)
    assert found["refused"] == {"fewer than three of 12 grids have an interior optimum": 3}
    assert found["verdicts"] == {"edge (lower lr, smaller batch)": 36}
    told = simulate.text(found)
    assert "refused in 3 of 3 simulations" in told
    assert "100% edge (lower lr, smaller batch): the grids do not reach the best cells" in told
    first = next(line for line in found["where"] if line.startswith(f"N {SIZES[0]:.4g}"))
    best = [float(v) for v in first.split(":")[1].split(";")[0].replace(",", "").split() if v[0].isdigit()]
    assert best == pytest.approx(
        [float(v) for T in (12e9, 2e9) for v in [paper.lr(SIZES[0], T)]]
        + [float(v) for T in (2e9, 12e9) for v in [paper.batch(SIZES[0], T)]],
        rel=6e-3,
    )


def test_best_cells_below_one_clip_are_told_at_one_clip(paper):
    clip = round(8 * float(paper.batch(1e8, 2e9)))
    asked = [simulate.Cell(1e8, clip, 1e-3, (2e9,))]
    (line,) = simulate._where(paper, asked, clip)
    slope = -paper.curvature.lr_batch / (2 * paper.curvature.lr_lr)
    rate = f"{float(paper.lr(1e8, 2e9)) * (clip / float(paper.batch(1e8, 2e9))) ** slope:.3g}"
    assert line.startswith(f"N 1e+08: lr {rate} to {rate}, batch {clip:.3g} to {clip:.3g};")


def small(sizes=(1e7, 3e7, 1e8), lr=(1e-4, 2e-4, 4e-4), B=(1e4, 2e4, 4e4), T=(1e9, 2e9, 4e9)):
    return [simulate.Cell(n, b, r, tuple(T)) for n in sizes for b in B for r in lr]


@pytest.mark.parametrize(
    ("asked", "messages"),
    [
        (small(), []),
        (small(lr=(1e-4, 2e-4)), ["N 1e+07, 3e+07, 1e+08: 6 different cells in a grid", "three learning rates"]),
        (small(B=(1e4,)), ["3 different cells in a grid", "three batch sizes"]),
        (small(lr=(1e-4,) * 3), ["3 different cells in a grid", "three learning rates"]),
        (small(sizes=(1e7,)), ["share one N", "loss law: 3 points cannot fix 5"]),
        (small(sizes=(1e7, 3e7)), ["loss law: 2 distinct N"]),
        (small(T=(1e9,)), ["share one T", "loss law: 3 points"]),
        ([], ["every size is held out"]),
        ([c for n in (1, 2, 4) for c in small((n * 1e7,), T=(n * 1e9,))], ["collinear", "loss law"]),
    ],
)
def test_grids_too_small_to_decide_are_told_before_they_are_run(asked, messages):
    found = simulate.doubts(asked)
    assert len(found) == len(messages), found
    for text, message in zip(found, messages):
        assert message in text
