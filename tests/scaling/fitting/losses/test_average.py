import numpy as np
import pytest

from videoscaling.scaling.fitting.losses.average import fit_losses
from videoscaling.scaling.fitting.uncertainty import shared_errors, weights_of
from videoscaling.scaling.losses import as_losses
from videoscaling.utils.errors import UserError


def table(form, seed=0):
    N = np.repeat(np.geomspace(5e7, 3e9, 8), 10)
    T = N * np.tile(np.geomspace(5, 500, 10), 8)
    if form == "joint":
        loss = ((N / 5e6) ** -0.6 + (T / 3e8) ** -0.65) ** 0.45 * 4 + 1.2
    elif form == "floorless":
        loss = ((N / 5e6) ** -0.6 + (T / 3e8) ** -0.65) ** 0.2 * 4
    else:
        loss = 480 / N**0.35 + 2100 / T**0.37 + 1.8
    return N, T, loss * np.exp(0.003 * np.random.default_rng(seed).standard_normal(len(N)))


@pytest.mark.parametrize("form", ["joint", "additive", "floorless"])
def test_chosen_form_holds_on_the_largest_size(form):
    N, T, loss = table(form)
    fitted = N < 2e9
    law = fit_losses(N[fitted], T[fitted], loss[fitted], draws=20)
    predicted = law.predict(N[~fitted], T[~fitted])
    error = np.log(loss[~fitted] / predicted.mean)
    assert np.sqrt(np.mean(error**2)) < 0.008
    assert np.mean((loss[~fitted] > predicted.low) & (loss[~fitted] < predicted.high)) >= 0.8
    assert law.warnings() == []
    if form != "additive":
        assert law.members[0].form == form


def test_a_form_without_a_floor_counts_only_where_the_losses_show_none():
    weight = {m.form: m.weight for m in fit_losses(*table("joint"), draws=0).members}
    assert weight.get("floorless", 0.0) < 0.05
    N, T, loss = table("floorless")
    fitted, far = N < 2e9, (3e11, 3e13)
    auto, joint = (fit_losses(N[fitted], T[fitted], loss[fitted], form=form) for form in ("auto", "joint"))
    truth = ((far[0] / 5e6) ** -0.6 + (far[1] / 3e8) ** -0.65) ** 0.2 * 4
    error, width = (
        np.array([abs(np.log(v)) for v in pair])
        for pair in zip(
            *(
                (law.predict(*far).mean[0] / truth, (law.predict(*far).mean_high / law.predict(*far).mean_low)[0])
                for law in (auto, joint)
            )
        )
    )
    assert error[0] < error[1]
    assert width[0] < 0.7 * width[1]
    assert auto.predict(*far).low < truth < auto.predict(*far).high


def test_forced_additive_form_warns_on_joint_losses_and_is_widened():
    N, T, loss = table("joint")
    fitted = N < 2e9
    forced = fit_losses(N[fitted], T[fitted], loss[fitted], form="additive", draws=20)
    assert any("errs by" in line for line in forced.warnings())
    predicted = forced.predict(N[~fitted], T[~fitted])
    assert np.mean((loss[~fitted] > predicted.low) & (loss[~fitted] < predicted.high)) >= 0.8


def test_small_table_of_an_additive_law_is_recovered():
    N, T = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 6.4e8, 4), np.geomspace(1e9, 6.4e10, 4), indexing="ij"))
    loss = 0.28 * (N / 8e7) ** -0.34 + 0.34 * (T / 8e9) ** -0.28 + 1.7
    law = fit_losses(N, T, np.round(loss, 5), draws=20)
    assert law.predict(1e9, 1e12).mean == pytest.approx(
        0.28 * (1e9 / 8e7) ** -0.34 + 0.34 * (1e12 / 8e9) ** -0.28 + 1.7, rel=2e-3
    )


def test_unknown_form_is_named():
    with pytest.raises(UserError, match="'cubic' is none of additive"):
        fit_losses([1e7] * 8, [1e9] * 8, np.linspace(2, 3, 8), form="cubic")


def test_tables_too_short_to_test_extrapolation_claim_three_times_the_width_beyond():
    """Eight rows leave no window to predict from the rest; larger N or T are widened, runs among them are not."""
    N, T = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e8, 4), [1e9, 4e9]))
    law = fit_losses(N, T, (40 / N**0.3 + 60 / T**0.25) + 1.5, form="additive", draws=20)
    assert not law.members[0].tested
    within, beyond = law.stretch(3e7, 2e9), law.stretch(3e7, 8e9)
    assert (within, beyond) == (pytest.approx([1.0]), pytest.approx([3.0]))
    assert any("3 times as wide" in line for line in law.warnings())


def test_the_laws_own_interval_is_the_same_for_any_number_of_seeds():
    law = fit_losses(*table("joint"), draws=20)
    one, many = (law.predict(1e9, 1e11, seeds) for seeds in (1, 16))
    for name in ("mean", "mean_low", "mean_high", "low", "high"):
        assert getattr(one, name) == pytest.approx(getattr(many, name), rel=1e-12)


def test_intervals_hold_new_runs_where_standard_errors_differ():
    """By the error of the run known best, intervals of new runs held 85 % of them."""
    N, T = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e8, 5), np.geomspace(1e8, 1e10, 5)))
    truth = (3 / (N / 1e7) ** 0.3 + 2 / (T / 1e9) ** 0.3) ** 0.9 + 1
    noise, inside, said = 0.01 * np.random.default_rng(0).permutation(np.geomspace(0.1, 1, 25)), [], []
    for seed in range(10):
        random = np.random.default_rng(seed)
        loss, new = (truth * np.exp(noise * random.standard_normal(25)) for _ in range(2))
        law = fit_losses(N, T, loss, noise=noise, draws=0)
        found = law.predict(N, T)
        inside.append(np.mean((new > found.low) & (new < found.high)))
        said.append(law.members[0].fit.noise)
    # The median residual of 25 rows errs by a quarter, the median of ten of them by 0.1.
    assert np.median(said) == pytest.approx(np.sqrt(np.mean(noise**2)), rel=0.3)
    # Runs of the larger errors lie outside more often than 0.05, those of the smaller ones less often.
    assert np.mean(inside) > 0.9


def test_three_terms_are_predicted_at_the_best_batch_as_they_are_planned():
    """At the table's mean batch a run a hundred times as long as the longest was predicted 7 % too high."""
    axes = np.geomspace(1e6, 3e7, 4), np.geomspace(1e8, 3e9, 4), np.geomspace(1e4, 1e6, 4)
    N, T, B = (v.ravel() for v in np.meshgrid(*axes))
    loss = 1 + 2 / (N / 1e7) ** 0.4 + 0.2 / (B / 1e5) ** 0.5 + 0.3 / (T / B / 1e4) ** 0.5
    loss = loss * np.exp(1e-3 * np.random.default_rng(1).standard_normal(len(N)))
    law = fit_losses(N, T, loss, B, form="three_term", draws=20)
    N, T = np.array([1e7, 1e8, 1e6]), np.array([1e9, 3e11, 1e7])
    planned = as_losses(law)(N, T)
    assert law.predict(N, T).mean == pytest.approx(planned, rel=1e-9)
    batches = np.geomspace(1e2, 1e9, 4001)
    least = [law.members[0].fit(n, t, batches).min() for n, t in zip(N, T)]
    assert law(N, T) == pytest.approx(least, rel=1e-6)
    # At a batch that is given, the loss is that batch's.
    assert law.members[0].fit(1e7, 1e9, 1e6) > law(1e7, 1e9)


def test_a_form_with_fewer_windows_is_compared_by_those_that_all_forms_have():
    """Of 16 rows the joint form has three windows, the others four: it had no weight, at the smaller error."""
    N, T = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 3e7, 4), np.geomspace(1e8, 3e9, 4)))
    loss = (3 / (N / 1e7) ** 0.6 + 2 / (T / 1e9) ** 0.6) ** 0.3 + 0.1
    loss = loss * np.exp(0.01 * np.random.default_rng(1).standard_normal(16))
    law = fit_losses(N, T, loss, draws=0)
    errors = {member.form: member.window_error for member in law.members}
    assert errors["joint"] < errors["floorless"]
    assert {member.form: member.weight for member in law.members}["joint"] > 0.2


def test_windows_that_one_form_lacks_do_not_count():
    errors, count = shared_errors([{"a": 0.01, "b": 0.09}, {"a": 0.04}])
    assert (errors.tolist(), count) == (pytest.approx([0.1, 0.2]), 1)
    errors, count = shared_errors([{"a": 0.01}, {}])
    assert count == 0
    assert weights_of(errors, count, np.zeros(2)) == pytest.approx([0.5, 0.5])


def test_intervals_of_as_many_points_as_the_joint_form_has_constants_hold_the_truth():
    """The joint form passes through six points exactly: its intervals had no width, and held the truth in a quarter
    of the tables."""
    N, T = map(np.array, zip((1e6, 1e8), (2e6, 3e8), (4e6, 1e9), (1e6, 1e9), (4e6, 1e8), (2e6, 1e8)))

    def truth(N, T):
        return 0.5 * (N / 1e6) ** -0.25 + 0.4 * (T / 3e8) ** -0.3 + 0.3

    held = []
    for seed in range(12):
        loss = truth(N, T) * np.exp(0.003 * np.random.default_rng(seed).standard_normal(6))
        found = fit_losses(N, T, loss, draws=100).predict(2e6, 3e8)
        held.append(found.mean_low[0] <= truth(2e6, 3e8) <= found.mean_high[0])
    assert np.mean(held) >= 0.75


@pytest.mark.parametrize(("form", "points"), [("auto", 5), ("additive", 5), ("joint", 6), ("three_term", 7)])
def test_as_many_points_as_constants_are_refused(form, points):
    random = np.random.default_rng(0)
    N, T, loss, B = (random.uniform(1, 2, points) for _ in range(4))
    with pytest.raises(UserError, match=f"{points} points for {points} constants leave nothing to check"):
        fit_losses(N, T, loss, B, form=form)
