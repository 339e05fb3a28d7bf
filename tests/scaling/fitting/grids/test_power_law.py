import numpy as np
import pytest

from videoscaling.scaling.fitting.grids import power_law
from videoscaling.scaling.fitting.grids.optimum import find
from videoscaling.utils.errors import UserError


@pytest.fixture(scope="module")
def step_law(public_data):
    rows = public_data("steplaw/dense_lr_bs_loss.csv")
    return {k: np.array([float(r[k]) for r in rows]) for k in ("N", "D", "lr", "bs", "smooth loss")}


def optima(data, window):
    found = []
    for N, D in sorted({(n, d) for n, d in zip(data["N"], data["D"])}):
        m = (data["N"] == N) & (data["D"] == D)
        found.append(find(N, D, data["lr"][m], data["bs"][m] * 2048, data["smooth loss"][m], window=window))
    return found


def test_step_law_grids_are_all_interior_with_the_window(step_law):
    assert [o.verdict for o in optima(step_law, 0.02)] == ["interior"] * 17


def test_step_law_saddles_are_refused_without_it(step_law):
    assert sum(o.verdict == "saddle" for o in optima(step_law, None)) == 3


@pytest.mark.parametrize("weighted", [False, True])
def test_step_law_exponents(step_law, weighted):
    found = optima(step_law, 0.02)
    N, T = np.array([o.N for o in found]), np.array([o.T for o in found])
    variance = np.array([o.covariance.diagonal() for o in found]) if weighted else [None, None]
    batch = power_law.fit_power(N, T, [o.B for o in found], variance[:, 1] if weighted else None, fixed={"N": 0.0}).law
    rate = power_law.fit_power(N, T, [o.lr for o in found], variance[:, 0] if weighted else None).law
    in_tokens, in_size = batch.T, rate.N
    assert in_tokens == pytest.approx(0.569, abs=0.01)
    assert batch.coefficient == pytest.approx(0.546, rel=0.1)
    assert in_size == pytest.approx(-0.695, abs=0.02)
    if not weighted:
        assert (rate.coefficient, rate.T) == pytest.approx((10.6, 0.208), rel=0.01)


def test_step_law_regret_at_the_nearest_cell(step_law):
    found = optima(step_law, 0.02)
    N, T = np.array([o.N for o in found]), np.array([o.T for o in found])
    batch = power_law.fit_power(N, T, [o.B for o in found], fixed={"N": 0.0}).law
    rate = power_law.fit_power(N, T, [o.lr for o in found]).law
    regrets = []
    for o in found:
        m = (step_law["N"] == o.N) & (step_law["D"] == o.T)
        away = (
            np.log(step_law["lr"][m] / rate(o.N, o.T)) ** 2 + np.log(step_law["bs"][m] * 2048 / batch(o.N, o.T)) ** 2
        )
        loss = step_law["smooth loss"][m]
        regrets.append(loss[np.argmin(away)] / loss.min() - 1)
    assert np.mean(regrets) <= 0.0017


def planted(seed, between, own=0.05):
    random = np.random.default_rng(seed)
    N, T = (v.ravel() for v in np.meshgrid([1e7, 3e7, 1e8, 3e8], [1e9, 4e9, 1.6e10]))
    variance = own**2 * random.uniform(0.2, 3, len(N))
    noise = np.sqrt(variance + between**2) * random.standard_normal(len(N))
    return N, T, 2e4 * (T / 1e9) ** 0.8 * (N / 1e9) ** 0.2 * np.exp(noise), variance


def test_between_grid_variance_is_found_and_intervals_cover():
    fits = [power_law.fit_power(*planted(s, 0.1), scale={"T": 1e9, "N": 1e9}) for s in range(200)]
    assert np.mean([f.between for f in fits]) == pytest.approx(0.01, rel=0.15)
    # t with 9 degrees of freedom.
    inside = [abs(f.beta[1] - 0.8) <= 2.262 * np.sqrt(f.covariance[1, 1]) for f in fits]
    assert 0.9 <= np.mean(inside) <= 0.99


def test_pull_moves_the_constants_as_a_refit_does():
    N, T, value, variance = planted(0, 0.0)
    fit = power_law.fit_power(N, T, value, variance)
    moved = value.copy()
    moved[3] *= np.exp(1e-3)
    weights = fit.weights
    again = power_law.fit_power(N, T, moved, 1 / weights)
    np.testing.assert_allclose(again.beta - fit.beta, fit.pull[:, 3] * 1e-3, atol=2e-5 * np.abs(fit.beta).max())


@pytest.mark.parametrize(
    ("N", "T", "fixed", "message"),
    [
        ([1e7] * 3, [1e9, 2e9, 4e9], {}, "share one N"),
        ([1e7, 2e7, 4e7], [1e9, 2e9, 4e9], {}, "collinear"),
        ([1e7, 2e7], [1e9, 1e9], {"T": 0.8, "N": 0.2}, None),
        ([1e7], [1e9], {"T": 0.8}, "share one N"),
    ],
)
def test_identifiability(N, T, fixed, message):
    if message is None:
        assert power_law.unidentified(N, T, fixed) is None
    else:
        with pytest.raises(UserError, match=message):
            power_law.fit_power(N, T, np.ones(len(N)), fixed=fixed)


def test_plain_least_squares_takes_its_error_from_the_scatter():
    N, T, value, _ = planted(0, 0.3)
    fit = power_law.fit_power(N, T, value)
    X = np.stack([np.ones(len(N)), np.log(T), np.log(N)], axis=1)
    solution, squares, *_ = np.linalg.lstsq(X, np.log(value), rcond=None)
    np.testing.assert_allclose(fit.beta, solution)
    np.testing.assert_allclose(fit.covariance, np.linalg.inv(X.T @ X) * squares / (len(N) - 3), rtol=1e-6)


def test_a_held_exponent_is_taken_out_before_the_rest_is_fitted():
    N, T, _, variance = planted(0, 0.0)
    value = 2e4 * (T / 1e9) ** 0.8 * (N / 1e9) ** 0.2
    law = power_law.fit_power(N, T, value, variance, fixed={"N": 0.2}, scale={"T": 1e9, "N": 1e9}).law
    assert (law.coefficient, law.T, law.N) == pytest.approx((2e4, 0.8, 0.2))
