import numpy as np
import pytest

from videoscaling.scaling.fitting.losses import form_fit, forms, priors
from videoscaling.scaling.fitting.losses.form_fit import fit_form
from videoscaling.utils.errors import UserError


@pytest.mark.parametrize("form", forms.CONSTANTS)
def test_derivatives_are_those_of_differences(form):
    random = np.random.default_rng(0)
    n, t, b = random.normal(size=(3, 20))
    theta = random.normal(size=len(forms.CONSTANTS[form])) * 0.4
    _, J = forms.evaluate(form, theta, n, t, b)
    steps = np.eye(len(theta)) * 1e-6
    differences = [
        (forms.evaluate(form, theta + e, n, t, b)[0] - forms.evaluate(form, theta - e, n, t, b)[0]) / 2e-6
        for e in steps
    ]
    assert np.abs(J - np.stack(differences, axis=1)).max() < 1e-7


@pytest.mark.parametrize("form", forms.CONSTANTS)
@pytest.mark.parametrize("size", [-5.0, 5.0])
def test_extreme_draws_overflow_nowhere(form, size):
    """A wide posterior's draws have exponents of a hundred: their losses are huge or tiny, and numbers."""
    theta = np.full(len(forms.CONSTANTS[form]), size)
    with np.errstate(all="raise", under="ignore"):
        value, J = forms.evaluate(form, theta, np.array([-3.0, 4.0]), np.array([5.0, -6.0]), np.array([0.0, 1.0]))
    assert np.isfinite(value).all()
    assert np.isfinite(J).all()


def table(form, seed=0, noise=0.002):
    N = np.repeat(np.geomspace(5e7, 3e9, 7), 8)
    T = N * np.tile(np.geomspace(5, 500, 8), 7)
    B = np.tile([2e5, 1e6], 28)
    if form == "joint":
        loss = ((N / 5e6) ** -0.6 + (T / 3e8) ** -0.65) ** 0.45 * 4 + 1.2
    elif form == "floorless":
        loss = ((N / 5e6) ** -0.6 + (T / 3e8) ** -0.65) ** 0.2 * 4
    elif form == "additive":
        loss = 480 / N**0.35 + 2100 / T**0.37 + 1.8
    elif form == "product":
        loss = 1.5 * (1 + (N / 1e6) ** -0.4) * (1 + (T / 1e8) ** -0.5)
    else:
        loss = 480 / N**0.35 + (B / 1e4) ** -0.6 + (T / B / 1e3) ** -0.5 + 1.8
    return N, T, B, loss, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))


@pytest.mark.parametrize("form", forms.CONSTANTS)
def test_each_form_recovers_its_own_losses_beyond_the_largest_size(form):
    N, T, B, truth, loss = table(form)
    fitted = N < 2e9
    fit = fit_form(form, N[fitted], T[fitted], loss[fitted], B[fitted])
    assert np.abs(fit(N, T, B) / truth - 1)[~fitted].max() < 0.006
    assert fit.noise == pytest.approx(0.002, rel=0.4)


def test_additive_form_errs_on_joint_losses_where_the_joint_form_does_not():
    N, T, _, truth, loss = table("joint")
    fitted = N < 1e9
    errors = {
        form: np.abs(fit_form(form, N[fitted], T[fitted], loss[fitted])(N, T) / truth - 1)[~fitted].max()
        for form in ("additive", "joint")
    }
    assert errors["joint"] < 0.01
    assert errors["additive"] > 2 * errors["joint"]


def test_outliers_hardly_move_the_law():
    N, T, _, truth, loss = table("additive")
    loss[::17] *= 1.1
    fit = fit_form("additive", N, T, loss)
    assert np.abs(fit(N, T) / truth - 1).max() < 0.006


def test_bootstrap_by_run_is_wider_than_by_row_where_a_run_errs_as_one():
    N, T, _, truth, _ = table("additive")
    run = np.repeat(np.arange(14), 4)
    loss = truth * np.exp(0.01 * np.random.default_rng(1).standard_normal(14)[run])
    by_row = fit_form("additive", N, T, loss, draws=100).interval(1e9, 2e10)
    by_run = fit_form("additive", N, T, loss, draws=100, cluster=run).interval(1e9, 2e10)
    assert by_run > 1.3 * by_row


def test_equal_losses_and_too_few_points_are_refused():
    N, T = np.geomspace(1e7, 1e9, 8), np.geomspace(1e9, 1e11, 8)
    with pytest.raises(UserError, match="all losses are equal"):
        fit_form("joint", N, T, np.full(8, 2.0))
    with pytest.raises(UserError, match="4 points cannot fix the 6 constants"):
        fit_form("joint", N[:4], T[:4], np.geomspace(2, 3, 4))


def narrow(seed=0):
    """The planted joint law, floor 1.2, over a factor of 4 in N and 10 in T: the data give a bound of the floor."""
    N = np.repeat(np.geomspace(5e7, 2e8, 5), 6)
    T = np.tile(np.geomspace(1e9, 1e10, 6), 5)
    truth = ((N / 5e6) ** -0.6 + (T / 3e8) ** -0.65) ** 0.45 * 4 + 1.2
    return N, T, truth * np.exp(0.005 * np.random.default_rng(seed).standard_normal(len(N)))


def test_where_a_fit_starts_and_how_many_steps_it_may_take_change_nothing(monkeypatch):
    """Predictions at 100 times the size and tokens agree within 1e-4: 500 times less than their sd."""
    N, T, loss = narrow()
    far, free = (4e10, 4e12), fit_form("joint", N, T, loss)
    assert free.interval(*far) > 0.05
    lowest = np.log(loss.min())
    for share, k in ((0.02, 0.2), (0.5, 1.0), (0.98, 2.0)):
        start = np.array([0.0, np.log(0.3 / k), 0.0, np.log(0.3 / k), lowest + np.log(share), np.log(k)])
        assert fit_form("joint", N, T, loss, start=start)(*far) == pytest.approx(free(*far), rel=1e-4)
    monkeypatch.setattr(form_fit, "STEPS", 3 * form_fit.STEPS)
    assert fit_form("joint", N, T, loss)(*far) == pytest.approx(free(*far), rel=1e-7)


def test_intervals_hold_the_floor_and_far_losses_of_a_planted_joint_law():
    far = (4e10, 4e12)
    truth = ((far[0] / 5e6) ** -0.6 + (far[1] / 3e8) ** -0.65) ** 0.45 * 4 + 1.2
    floors, losses = [], []
    for seed in range(12):
        N, T, loss = narrow(seed)
        fit = fit_form("joint", N, T, loss, draws=100, seed=seed)
        floor = np.exp(fit.draws[:, 4])
        low, high = np.quantile(floor, [0.025, 0.975])
        floors.append(low < 1.2 < high)
        losses.append(abs(np.log(fit(*far) / truth)) < 2.06 * fit.interval(*far))
        assert high / low > 1.4
        # Never at 0, nor at the lowest loss.
        assert 0.1 < np.exp(fit.theta[4]) / loss.min() < 0.9
    assert np.mean(floors) >= 0.9
    assert np.mean(losses) >= 0.9


def test_what_only_the_prior_tells_is_said():
    N, T, loss = narrow(6)
    at = forms.CONSTANTS["joint"].index("Linf")
    for table, wanted in (((N, T, loss), " (the prior's: not identified)"), (table_of_wide_range(), "")):
        fit = fit_form("joint", *table, draws=50)
        _, slope = priors.prior_at(fit.theta, priors.prior_of(forms.CONSTANTS["joint"]), at, np.log(table[2].min()))
        assert priors.remarks(fit.errors, slope)[at] == wanted


def table_of_wide_range():
    N, T, _, _, loss = table("joint")
    return N, T, loss
