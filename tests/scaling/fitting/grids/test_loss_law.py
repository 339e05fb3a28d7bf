import numpy as np
import pytest

from videoscaling.scaling.fitting.grids import loss_law
from videoscaling.scaling.laws import LossLaw
from videoscaling.utils.errors import UserError


@pytest.fixture(scope="module")
def chinchilla(public_data):
    rows = public_data("epoch_chinchilla/svg_extracted_data.csv")
    N, C, L = (np.array([float(r[k]) for r in rows]) for k in ("Model Size", "Training FLOP", "loss"))
    keep = np.sort(L)[-5] > L
    assert keep.sum() == 240
    return N[keep], (C / 6 / N)[keep], L[keep]


def test_chinchilla_minimum(chinchilla):
    fit = loss_law.fit(*chinchilla)
    assert fit.objective <= 1.018275e-3
    assert (fit.law.Nc, fit.law.Tc) == pytest.approx((477.83, 2143.4), rel=2e-3)
    assert (fit.law.Linf, fit.law.aN, fit.law.aT) == pytest.approx((1.81722, 0.34731, 0.36717), abs=5e-5)


@pytest.mark.parametrize("unit", [1e3, 1e8, 1e13])
def test_chinchilla_never_the_wrong_basin(chinchilla, unit):
    fit = loss_law.fit(*chinchilla, scale={"T": 100 * unit, "N": unit})
    assert fit.objective <= 1.018275e-3


def test_objective_is_the_sum_of_huber_losses(chinchilla):
    N, T, L = chinchilla
    fit = loss_law.fit(N, T, L)
    r = np.abs(np.log(fit.law(N, T)) - np.log(L))
    huber = np.where(r < 1e-3, r**2 / 2, 1e-3 * (r - 5e-4))
    assert fit.objective == pytest.approx(huber.sum(), rel=1e-9)


def test_outliers_barely_matter(paper):
    N, T = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 3e8, 6), np.geomspace(2e9, 2e10, 6)))
    loss = paper.loss(N, T)
    clean = loss_law.fit(N, T, loss, scale={"T": 1e9, "N": 1e9}).law
    spoilt = loss.copy()
    spoilt[17] *= 1.2
    robust = loss_law.fit(N, T, spoilt, scale={"T": 1e9, "N": 1e9}, delta=1e-5).law
    assert clean.Linf == pytest.approx(paper.loss.Linf, rel=1e-6)
    assert robust.Linf == pytest.approx(paper.loss.Linf, rel=1e-3)


def test_held_constants_are_held(paper):
    N, T = (v.ravel() for v in np.meshgrid([1e7, 3e7, 1e8], [2e9, 4e9, 8e9]))
    fit = loss_law.fit(N, T, paper.loss(N, T), fixed={"aT": 0.2917, "aN": 0.3188}, scale={"T": 1e9, "N": 1e9})
    assert fit.law.assumed == ("aN", "aT")
    assert (fit.law.Tc, fit.law.Nc, fit.law.Linf) == pytest.approx((0.0373, 0.0082, 0.4856), rel=1e-6)


@pytest.mark.parametrize(
    ("N", "T", "message"),
    [
        ([1e7] * 6, np.geomspace(1e9, 1e10, 6), "distinct N"),
        ([1e7, 2e7, 3e7], [1e9, 2e9, 3e9], "cannot fix 5"),
        # Two milestones, which sizes pass a step apart.
        ([1e7, 2e7, 3e7] * 2, [1e9, 1.01e9, 1.02e9, 2e9, 2.01e9, 2.02e9], "2 distinct T"),
    ],
)
def test_too_little_is_refused(N, T, message):
    with pytest.raises(UserError, match=message):
        loss_law.fit(N, T, np.linspace(3, 2, len(N)))


def test_equal_losses_are_refused():
    N, T = (v.ravel() for v in np.meshgrid([1e7, 3e7, 1e8], [2e9, 4e9, 8e9]))
    with pytest.raises(UserError, match="equal"):
        loss_law.fit(N, T, np.full(9, 2.0))


def made(**constants):
    """Losses of a law at 36 points, and the law's own units."""
    N, T = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 3e8, 6), np.geomspace(2e9, 2e10, 6)))
    law = LossLaw(**{"Tc": 0.04, "aT": 0.3, "Nc": 0.01, "aN": 0.3, "Linf": 0.5} | constants, scale=UNITS)
    return N, T, law(N, T)


UNITS = {"T": 1e9, "N": 1e9}


@pytest.mark.parametrize(
    ("constants", "bounded"),
    [({}, ()), ({"Linf": 1e-6}, ("Linf",)), ({"aN": 4.5, "Nc": 1e-7}, ("aN",)), ({"aT": 5.0, "Tc": 30.0}, ("aT",))],
)
def test_constants_that_ran_to_their_bound_are_named(constants, bounded):
    assert loss_law.fit(*made(**constants), scale=UNITS).at_bound == bounded


def test_delta_and_weights_follow_the_noise():
    N, T, loss = made()
    noise = np.where(np.arange(36) % 2, 1e-4, 1e-2)
    random = np.random.default_rng(0)
    loss = loss * (1 + noise * random.standard_normal(36))
    fit = loss_law.fit(N, T, loss, noise, scale=UNITS)
    typical = 1 / np.sqrt(np.mean(noise**-2))
    assert fit.delta == pytest.approx(1.345 * typical)
    r = np.abs(fit.residuals) * typical / noise
    huber = np.where(r < fit.delta, r**2 / 2, fit.delta * (r - fit.delta / 2))
    assert fit.objective == pytest.approx(huber.sum(), rel=1e-9)
    # The precise half rules: its residuals are of its own noise.
    assert np.std(fit.residuals[1::2]) < 2e-4


def test_a_point_of_no_weight_is_left_out():
    N, T, loss = made()
    loss[7] *= 1.1
    fit = loss_law.fit(N, T, loss, scale=UNITS, delta=1.0)
    weight = np.ones(36)
    weight[7] = 0.0
    (theta,), (objective,) = loss_law.descend(
        theta=fit.theta[None], N=N, T=T, loss=loss, noise=None, delta=1.0, fixed={}, scale=UNITS, weight=weight
    )
    assert objective < 1e-12
    assert np.exp(theta[4]) == pytest.approx(0.5, rel=1e-4)
    assert fit.law.Linf != pytest.approx(0.5, rel=1e-2)


def test_the_floor_is_below_every_loss():
    N, T, loss = made()
    loss[20] = 0.3
    fit = loss_law.fit(N, T, loss, scale=UNITS, delta=1e-4)
    assert fit.law.Linf <= 0.3 * (1 + 1e-12)
    assert "Linf" in fit.at_bound
