"""What a sweep is asked for next, from its results."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.scaling import planted
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.scaling.planning.allocation import proportional
from videoscaling.scaling.search.proposals import Size, axes, decide, first_cells, target_finder, whole
from videoscaling.utils.errors import UserError

N, T = 4e7, 4e9
FITTED: dict = {}


@pytest.fixture(autouse=True)
def one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right shape and form, which spares the fits of all others; each table is fitted once."""

    def fit(cells: Cells):
        key = cells.loss.tobytes()
        if key not in FITTED:
            FITTED[key] = fit_surface(cells, "joint", batch="one_sided", bent=False)
        return FITTED[key]

    monkeypatch.setattr("videoscaling.scaling.search.proposals.fit_surface", fit)


def sizes_of(cells: Cells, waiting=()) -> list[Size]:
    """The planted sweep's sizes, at 6 N FLOPs per token."""
    made = []
    for size in np.unique(cells.N):
        rows = size == cells.N
        _, first = np.unique(cells.run[rows], return_index=True)
        pairs = tuple(zip(cells.lr[rows][first], cells.B[rows][first]))
        tokens = {round(t): t for t in np.unique(cells.T[rows])}
        made.append(Size(size, tokens, pairs, tuple(waiting), 6 * size, round(planted.CLIP)))
    return made


def asked(cells: Cells, sizes=None, budget=1e18, **more):
    find = target_finder(N=N, T=T, C=None, cost=proportional())
    return decide(cells, sizes or sizes_of(cells), find, budget=budget, **more)


@pytest.fixture(scope="module")
def few() -> Cells:
    """Six runs of each size."""
    cells, random = planted.cells(), np.random.default_rng(1)
    kept = [random.choice(np.unique(cells.run[size == cells.N]), 6, replace=False) for size in np.unique(cells.N)]
    return cells.rows(np.isin(cells.run, np.concatenate(kept)))


def test_runs_narrow_the_prediction_within_the_budget(few) -> None:
    found = asked(few)
    assert found.proposals
    assert sum(one.flops for one in found.proposals) <= 1e18
    widths = [found.before, *(one.after for one in found.proposals)]
    assert [sum(math.log(v) for v in w.values()) for w in widths] == sorted(
        (sum(math.log(v) for v in w.values()) for w in widths), reverse=True
    )
    for one in found.proposals:
        assert one.flops == 6 * one.N * whole(one.milestone, one.B)
        assert one.B % planted.CLIP == 0
        assert one.milestone in sizes_of(few)[0].T
    with pytest.raises(UserError, match="less than the cheapest run"):
        asked(few, budget=1e10)
    assert asked(few, tolerance=1.0).proposals == ()
    assert asked(few, noise_sd=1e-4).before["lr"] < asked(few, noise_sd=1e-2).before["lr"]


def test_cells_that_wait_are_not_asked_for(few) -> None:
    first = asked(few).proposals[0]
    sizes = [
        replace(size, waiting=((first.lr, first.B),), run=(*size.run, (first.lr, first.B)))
        if first.N == size.N
        else size
        for size in sizes_of(few)
    ]
    again = [(one.N, one.lr, one.B) for one in asked(few, sizes).proposals]
    assert again
    assert (first.N, first.lr, first.B) not in again


def test_nothing_above_a_rate_that_diverged(few) -> None:
    dead = Cells.of_arrays(
        np.append(few.N, 1e6),
        np.append(few.T, few.T.max()),
        np.append(few.B, few.B.max()),
        np.append(few.lr, 1e-3),
        np.append(few.loss, np.inf),
        run=np.append(few.run, few.run.max() + 1),
        n_ctx=planted.CLIP,
    )
    found = [one for one in asked(dead).proposals if one.N == 1e6]
    assert found
    assert all(one.lr < 1e-3 or few.B.max() < one.B for one in found), "larger batches may want higher rates"


def test_a_size_that_only_diverges_is_left_alone_after_three_decades(few) -> None:
    lr = np.geomspace(1e-6, 1e-3, 4)
    dead = Cells.of_arrays(3e6, 1e8, 500.0, lr, np.inf)
    cells = Cells.of_arrays(
        *(np.concatenate([getattr(few, name), getattr(dead, name)]) for name in ("N", "T", "B", "lr", "loss")),
        run=np.concatenate([few.run, dead.run + few.run.max() + 1]),
        n_ctx=planted.CLIP,
    )
    found = asked(cells)
    assert found.dead == (3e6,)
    assert 3e6 not in {one.N for one in found.proposals}


def test_first_cells_where_no_surface_can_be_fitted() -> None:
    """A step around the best run, below where all diverged, and around a law's pair without any run."""
    size = Size(1e6, {1000: 1000.0}, ((1e-3, 100.0), (4e-3, 100.0)), (), 6e6, 100)
    cells = Cells.of_arrays(1e6, 1000.0, 100.0, [1e-3, 4e-3], [2.0, 1.0], n_ctx=100.0)
    found = asked(cells, [size])
    assert found.target is None
    assert "2 usable runs" in found.reason
    assert {(one.lr, one.B) for one in found.proposals} == {(0.016, 100.0), (4e-3, 200.0)}
    diverged = replace(cells, loss=np.full(2, np.inf))
    assert [(one.lr, one.B) for one in first_cells(diverged, size, lambda s: None)] == [(2.5e-4, 100.0)]
    empty = replace(size, run=())
    around = first_cells(cells.rows(np.zeros(2, dtype=bool)), empty, lambda s: (1e-3, 200.0))
    assert {(one.lr, one.B) for one in around} == {
        (1e-3, 200.0),
        (5e-4, 200.0),
        (2e-3, 200.0),
        (1e-3, 100.0),
        (1e-3, 400.0),
    }
    assert first_cells(cells.rows(np.zeros(2, dtype=bool)), empty, lambda s: None) == []


def test_axes_have_what_was_run_the_middles_and_one_step_outside() -> None:
    lr, B = axes(np.array([1e-3, 4e-3]), np.array([100.0, 400.0]), 100)
    assert lr == pytest.approx([2.5e-4, 1e-3, 2e-3, 4e-3, 1.6e-2])
    assert B.tolist() == [100.0, 200.0, 400.0, 1600.0]
    lr, _ = axes(np.array([1e-3, 1.3e-3]), np.array([100.0]), 0)
    assert len(lr) == 4, "a middle nearer than a factor of 1.2 decides nothing"
