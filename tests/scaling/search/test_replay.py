"""Extend on a finished table: it pays what it says, and its predictions are better than those of other runs."""

from functools import partial

import numpy as np
import pytest

from tests.scaling import planted
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.scaling.search.replay import Pool, study, summary
from videoscaling.utils.errors import UserError


@pytest.fixture(autouse=True)
def one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right shape and form, which spares the fits of all others."""
    fit = partial(fit_surface, form="joint", batch="one_sided", bent=False)
    monkeypatch.setattr("videoscaling.scaling.search.replay.fit_surface", fit)
    monkeypatch.setattr("videoscaling.scaling.search.replay.ROUNDS", 3)


def pool(seed: int = 0, held_out: int = 1) -> Pool:
    return Pool.of(planted.cells(seed), held_out)


def test_a_study_spends_its_share_and_sees_no_held_out_run() -> None:
    table = pool()
    found = study(table, 0.2, "extend")
    assert 0.1 < found.share <= 0.2
    assert len(found.regret) == 3, "the grids of the held-out size"
    everything = study(table, 1.0, "all")
    assert (everything.share, everything.runs) == (1.0, int((~table.heldout).sum()))
    assert len(study(pool(held_out=0), 1.0, "all").regret) == 12
    noisy = Pool.of(planted.cells(), 1, noise=0.01)
    assert np.std(np.log(noisy.seen.loss / noisy.cells.loss)) == pytest.approx(0.01, rel=0.2)
    with pytest.raises(UserError, match="4 sizes, 2 of them held out"):
        pool(held_out=2)


def test_chosen_runs_predict_the_held_out_size_better_than_random_ones_of_the_same_cost() -> None:
    """Mean over three tables: the regret of the predicted pair, and the error of the losses there."""
    found = {choose: [study(pool(seed), 0.1, choose, seed) for seed in range(3)] for choose in ("extend", "random")}
    regret = {name: np.mean([one.regret.mean() for one in outcomes]) for name, outcomes in found.items()}
    error = {name: summary(outcomes)["error"] for name, outcomes in found.items()}
    assert regret["extend"] < regret["random"]
    assert error["extend"] < error["random"]
