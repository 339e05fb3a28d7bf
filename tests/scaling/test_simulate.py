import numpy as np
import pytest

from scaling import simulate

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
    assert "12 grids interior" in simulate.text(quiet) or "of 12 grids" in simulate.text(quiet)


def test_a_grid_in_the_wrong_place_is_foretold(paper, cost):
    found = simulate.expect(paper, cells(paper, [2e9, 5e9, 12e9], offset=4.0), 1e-5, 1e21, cost, 1280, repeats=2)
    assert sum(found["refused"].values()) == 2
    assert "not fitted" in simulate.text(found)


def test_sizes_may_have_milestones_of_their_own(paper):
    mixed = [simulate.Cell(1e7, 1e4, 1e-3, (1e9, 2e9)), simulate.Cell(1e8, 1e5, 1e-3, (4e9,))]
    ledger = simulate.sweep(paper, mixed, 1e-4, 0.6, 0, 1280)
    assert sorted(zip(ledger.N, ledger.T)) == [(1e7, 1e9), (1e7, 2e9), (1e8, 4e9)]
    assert len(set(ledger.run_id)) == 2
