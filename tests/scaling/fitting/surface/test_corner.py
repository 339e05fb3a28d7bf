"""Grids that lie off every loss form are the form's fault: no outliers, and said."""

from dataclasses import replace

import numpy as np
import pytest

from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.scaling.fitting.surface.least_squares import NORMAL

SIZES, TIMES = (49152.0, 196608.0, 442368.0), (4e4, 8e4, 16e4)
SHAPE = {"batch": "one_sided", "bent": False}


def runs(level, seed=0, outliers=0.05):
    """48 runs with three milestones each, losses of ``level(N, T)``, and outliers 10 % too high."""
    random = np.random.default_rng(seed)
    rates, batches = (5e-4, 1e-3, 2e-3, 4e-3), (80.0, 160.0, 320.0, 640.0)
    N, lr, B, T = (v.ravel() for v in np.meshgrid(SIZES, rates, batches, TIMES, indexing="ij"))
    n, t, b = np.log(N / 1e5), np.log(T / 8e4), np.log(B / 160)
    run = np.arange(len(N)) // len(TIMES)
    noise = 0.01 * (0.9 * random.standard_normal(48)[run] + 0.44 * random.standard_normal(len(N)))
    noise += np.where(random.random(len(N)) < outliers, 0.1 * np.abs(random.standard_normal(len(N))), 0.0)
    x = np.log(lr / 2e-3) - 0.49 * b + 0.14 * t + 0.15 * n
    price = 0.03 * x**2 + 0.08 * np.logaddexp(0, b - 0.7 * t + 0.2 * n - 1)
    return Cells.of_arrays(N, T, B, lr, level(N, T) * np.exp(price + noise), run=run, n_ctx=80.0)


def joint(N, T):
    return (0.2 * (N / 1e5) ** -0.5 + 0.4 * (T / 8e4) ** -0.6) ** 0.6 + 0.6


def accelerating(N, T):
    """1.45, 1.35 and 1.20 at the largest size, then 0.94 at 6.9e5 tokens: each doubling lowers the loss by more."""
    return 0.85 + 0.7 / (1 + (T / 1.6e5) ** 1.3) + 0.02 * np.log(SIZES[-1] / N) * np.log(T / 2e4)


def weight(surface, rows):
    return float(np.mean(NORMAL / surface.members[0].solution.inflation[rows]))


def said(surface):
    return any("losses fall faster the longer a run is" in line for line in surface.warnings())


@pytest.fixture(scope="module")
def planted():
    return runs(joint)


def test_runs_of_a_grid_that_lies_off_keep_their_weight_and_one_run_that_lies_off_its_grid_loses_it(planted):
    corner = (SIZES[-1] == planted.N) & (TIMES[-1] == planted.T)
    one = np.flatnonzero((SIZES[0] == planted.N) & (TIMES[0] == planted.T))[5]
    right = fit_surface(planted, "joint", **SHAPE)
    moved = replace(planted, loss=planted.loss * np.where(corner, 0.9, 1.0))
    moved.loss[one] *= 1.2
    wrong = fit_surface(moved, "joint", **SHAPE)
    assert weight(wrong, corner) > 0.9 * weight(right, corner)
    assert weight(wrong, [one]) < 0.2


def test_losses_that_no_form_follows_are_said_and_longer_runs_stay_inside_the_interval(planted):
    surface = fit_surface(runs(accelerating), "auto", **SHAPE)
    assert said(surface)
    predicted = surface.predict(SIZES[-1], 6.9e5, *surface.best(SIZES[-1], 6.9e5))
    assert predicted.low < accelerating(SIZES[-1], 6.9e5) < predicted.mean
    for seed in range(3):
        assert not said(fit_surface(runs(joint, seed), "joint", **SHAPE))


@pytest.mark.parametrize(("factor", "side"), [(0.9, "lower"), (1.1, "higher")])
def test_a_largest_run_that_lies_off_the_form_is_said(planted, factor, side):
    corner = (SIZES[-1] == planted.N) & (TIMES[-1] == planted.T)
    off = fit_surface(replace(planted, loss=planted.loss * np.where(corner, factor, 1.0)), "joint", **SHAPE)
    (line,) = (line for line in off.warnings() if "the largest size at its largest T" in line)
    assert f"{side} than the loss form's" in line
    for seed in range(3):
        surface = fit_surface(runs(joint, seed), "joint", **SHAPE)
        assert not any("the largest size" in line for line in surface.warnings())


def test_planted_joint_law_with_outliers_is_predicted_four_times_beyond_the_longest_runs(planted):
    surface = fit_surface(planted, "auto", **SHAPE)
    clip = 0.08 * np.logaddexp(0, np.log(80 / 160) - 0.7 * np.log(6.9e5 / 8e4) + 0.2 * np.log(SIZES[-1] / 1e5) - 1)
    predicted = surface.predict(SIZES[-1], 6.9e5, *surface.best(SIZES[-1], 6.9e5))
    truth = joint(SIZES[-1], 6.9e5) * np.exp(clip)
    assert predicted.mean == pytest.approx(truth, rel=0.06)
    assert predicted.mean_low < truth < predicted.mean_high
