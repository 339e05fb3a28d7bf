import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from videoscaling.scaling import law_file, runs
from videoscaling.scaling.fitting.surface import least_squares, noise, selection, shape
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.scaling.fitting.surface.surface_law import summary
from videoscaling.utils.errors import UserError

SLOPE, RATE_T, RATE_N, BATCH_T, BATCH_N = 0.5, -0.15, -0.20, 0.5, -0.1
NOISE = 0.003
ROOT = Path(__file__).resolve().parents[4]
RATES = np.exp(np.linspace(-1.6, 1.6, 5))


def cells(kind="two_sided", *, sizes=4, times=3, batches=5, rates=RATES, seed=0, tau=0.03):
    """Grids of runs with milestones, of planted laws: rates around the best one at each batch."""
    random = np.random.default_rng(seed)
    N, T, B, factor = (
        v.ravel()
        for v in np.meshgrid(
            np.geomspace(1e6, 2e7, sizes),
            np.geomspace(1e8, 2e9, times),
            100.0 * 4 ** np.arange(batches),
            rates,
            indexing="ij",
        )
    )
    n, t, b = np.log(N / 4e6), np.log(T / 4e8), np.log(B / 3e3)
    lr = 1e-3 * np.exp(SLOPE * b + RATE_N * n) * factor
    run = np.unique(np.stack([N, B, lr], axis=1), axis=0, return_inverse=True)[1].ravel()
    grid = np.unique(np.stack([N, T], axis=1), axis=0, return_inverse=True)[1].ravel()
    moved = tau * random.standard_normal((2, grid.max() + 1))[:, grid]
    x = np.log(lr / 1e-3) - SLOPE * b - RATE_T * t - RATE_N * n - moved[0]
    z = b - BATCH_T * t - BATCH_N * n - moved[1]
    price = 0.01 * z**2 if kind == "two_sided" else 0.05 * np.logaddexp(0, z)
    ln_loss = np.log(0.6 * np.exp(-0.2 * n) + 0.5 * np.exp(-0.25 * t) + 0.8) + 0.02 * x**2 + price
    ln_loss += NOISE * (0.9 * random.standard_normal(run.max() + 1)[run] + 0.44 * random.standard_normal(len(N)))
    return Cells.of_arrays(N, T, B, lr, np.exp(ln_loss), run=run, n_ctx=100.0)


@pytest.fixture(scope="module")
def two_sided():
    return fit_surface(cells(), form="levels", bent=False)


@pytest.fixture(scope="module")
def one_sided():
    return fit_surface(cells("one_sided"), form="levels", bent=False)


def holds(estimate, truth):
    return estimate.low <= truth <= estimate.high


def test_two_sided_valley_gives_every_exponent_and_the_best_pair(two_sided):
    assert two_sided.no_best_batch is None
    truths = {"aB": SLOPE, "aT": RATE_T, "aN": RATE_N, "bT": BATCH_T, "bN": BATCH_N}
    found = {name: two_sided.exponent(name) for name in truths}
    # Of five intervals at 95 %, one may miss.
    assert sum(holds(found[name], truth) for name, truth in truths.items()) >= 4
    for name, truth in truths.items():
        assert found[name].value == pytest.approx(truth, abs=0.03), name
        assert found[name].high - found[name].low < 0.15, name
    # Away from the data: a larger model for longer.
    N, T = 4e7, 4e9
    n, t = np.log(N / 4e6), np.log(T / 4e8)
    B = 3e3 * np.exp(BATCH_T * t + BATCH_N * n)
    lr = 1e-3 * np.exp(SLOPE * np.log(B / 3e3) + RATE_T * t + RATE_N * n)
    assert two_sided.best(N, T)[0] == pytest.approx(B, rel=0.25)
    assert two_sided.lr_opt(B, T, N).value == pytest.approx(lr, rel=0.08)
    assert holds(two_sided.lr_opt(B, T, N), lr)


def test_valley_open_to_small_batches_has_an_edge_and_no_best_batch(one_sided):
    assert "small batches cost nothing" in one_sided.no_best_batch
    assert one_sided.best_batch(4e8, 4e6) is None
    # 0.05 ln(1 + e^z) = ln 1.01 above the price of one clip.
    clip = 0.05 * np.logaddexp(0, np.log(100 / 3e3))
    z = np.log(np.expm1((np.log(1.01) + clip) / 0.05))
    edge = one_sided.edge(4e8, 4e6)
    assert edge.value == pytest.approx(3e3 * np.exp(z), rel=0.25)
    assert holds(edge, 3e3 * np.exp(z))
    for name, truth in {"aB": SLOPE, "aT": RATE_T, "aN": RATE_N}.items():
        assert one_sided.exponent(name).value == pytest.approx(truth, abs=0.03), name


def test_constraints_are_read_off_the_same_surface(two_sided):
    best_B, best_lr = two_sided.best(4e6, 4e8)
    B, lr = two_sided.best(4e6, 4e8, tolerance=0.001)
    assert best_B < B
    assert lr == pytest.approx(two_sided.lr_opt(B, 4e8, 4e6).value)
    edge = two_sided.edge(4e8, 4e6, 0.001)
    assert edge.low < B == pytest.approx(edge.value)
    at_rate = two_sided.best_batch_at(np.array([4e6]), np.array([4e8]), np.array([best_lr]))
    assert at_rate == pytest.approx(best_B, rel=0.15)
    # A batch below one clip does not exist.
    assert two_sided.best(2e7, 1e3)[0] == pytest.approx(100)


def test_intervals_of_new_runs_hold_on_a_larger_size():
    table = cells(sizes=5)
    largest = table.N.max() == table.N
    surface = fit_surface(table.rows(~largest), batch="two_sided", bent=False)
    held = table.rows(largest)
    predicted = surface.predict(held.N, held.T, held.B, held.lr)
    near = held.loss < 1.02 * held.best
    inside = (held.loss > predicted.low) & (held.loss < predicted.high)
    assert inside[near].mean() > 0.9
    assert np.sqrt(np.mean(np.log(held.loss / predicted.mean)[near] ** 2)) < 0.012
    assert np.median(predicted.high / predicted.low) < 1.06
    assert np.all((predicted.mean_low > predicted.low) & (predicted.mean_high < predicted.high))
    several = surface.predict(held.N, held.T, held.B, held.lr, seeds=8)
    assert np.all(several.high < predicted.high)


def test_grids_of_three_cells_and_cells_at_the_edge_count():
    """Rates all below the best one: no grid has an optimum inside, and the law is found all the same."""
    table = cells(rates=np.exp([-1.5, -0.8, -0.1]), batches=4)
    surface = fit_surface(table, form="levels", batch="two_sided", bent=False)
    for name, truth in {"aB": SLOPE, "aT": RATE_T, "aN": RATE_N}.items():
        assert surface.exponent(name).value == pytest.approx(truth, abs=0.06), name
        assert surface.exponent(name).high - surface.exponent(name).low < 0.3, name


def test_diverged_runs_bound_the_best_rate_from_above():
    """High rates diverge: as missing cells they leave the best rate open, as 'at least this much' they close it."""
    table = cells(rates=np.exp([-1.2, -0.6, 0.0, 0.6, 1.2, 1.8]), batches=4)
    n, t, b = np.log(table.N / 4e6), np.log(table.T / 4e8), np.log(table.B / 3e3)
    x = np.log(table.lr / 1e-3) - SLOPE * b - RATE_T * t - RATE_N * n
    loss = np.where(x > 0.3, np.inf, table.loss)
    known = Cells.of_arrays(table.N, table.T, table.B, table.lr, loss, run=table.run, n_ctx=100.0)
    truth = 1e-3 * (1e3 / 3e3) ** SLOPE
    fitted = {
        name: fit_surface(part, form="levels", batch="two_sided", bent=False).lr_opt(1e3, 4e8, 4e6)
        for name, part in {"censored": known, "left out": known.rows(np.isfinite(loss))}.items()
    }
    assert holds(fitted["censored"], truth)
    assert fitted["censored"].value / truth == pytest.approx(1, abs=0.15)
    width = {name: np.log(e.high / e.low) for name, e in fitted.items()}
    assert width["censored"] <= width["left out"]


def test_grid_whose_runs_all_diverged_is_left_out():
    table = cells()
    loss = np.where((table.N.max() == table.N) & (table.T.max() == table.T), np.inf, table.loss)
    known = Cells.of_arrays(table.N, table.T, table.B, table.lr, loss, run=table.run, n_ctx=100.0)
    surface = fit_surface(known, form="levels", batch="two_sided", bent=False)
    assert len(np.unique(surface.cells.grid)) == 11
    assert surface.exponent("aT").value == pytest.approx(RATE_T, abs=0.03)


def test_one_batch_gives_the_rates_law_along_it():
    table = cells()
    table = table.rows(table.B == 1600)
    surface = fit_surface(table, form="levels")
    assert surface.no_best_batch == "all runs have one batch"
    assert surface.unidentified() == ["aB"]
    # Along a batch the slope in B is not needed.
    assert surface.exponent("aT").value == pytest.approx(RATE_T, abs=0.05)
    assert surface.exponent("aN").value == pytest.approx(RATE_N, abs=0.05)
    with pytest.raises(UserError, match="one batch"):
        surface.edge(4e8, 4e6)


def test_one_rate_gives_what_batches_cost_and_no_rate():
    table = cells(rates=np.array([1.0]))
    lr = np.full(len(table), 1e-3)
    n, t, b = np.log(table.N / 4e6), np.log(table.T / 4e8), np.log(table.B / 3e3)
    loss = np.exp(0.01 * (b - BATCH_T * t - BATCH_N * n) ** 2 - 0.1 * n - 0.1 * t)
    loss *= np.exp(0.001 * np.random.default_rng(0).standard_normal(len(loss)))
    surface = fit_surface(Cells.of_arrays(table.N, table.T, table.B, lr, loss, n_ctx=100.0), form="levels")
    assert surface.exponent("bT").value == pytest.approx(BATCH_T, abs=0.1)
    assert surface.exponent("bN").value == pytest.approx(BATCH_N, abs=0.1)
    with pytest.raises(UserError, match="one learning rate"):
        surface.lr_opt(1e3, 4e8, 4e6)


def test_rates_that_differ_in_their_last_digits_are_one():
    """The rate of a plan was the runs' rounded to two digits, 1.2e-3."""
    table = cells(rates=np.array([1.0]))
    table = replace(table, lr=1.234e-3 * (1 + 1e-12 * (np.arange(len(table)) % 2)))
    surface = fit_surface(table, form="levels", batch="one_sided", bent=False)
    assert surface.rate(400, 1e9, 4e6) == pytest.approx(1.234e-3)
    with pytest.raises(UserError, match="all runs have one learning rate"):
        surface.lr_opt(400, 1e9, 4e6)


@pytest.mark.parametrize("asked", [{"form": "aditive"}, {"batch": "one-sided"}])
def test_unknown_forms_and_shapes_are_named(asked):
    with pytest.raises(UserError, match="is none of auto, .*; did you mean"):
        fit_surface(cells(), **asked)


def test_form_that_is_wrong_warns_where_it_is_forced():
    random = np.random.default_rng(2)
    base = cells(sizes=6, times=6, batches=3, rates=np.exp([-0.8, 0.0, 0.8]))
    joint = ((base.N / 1e5) ** -0.6 + (base.T / 1e7) ** -0.65) ** 0.45 * 4 + 1
    loss = joint * np.exp(0.02 * np.log(base.lr / 1e-3) ** 2 + 0.001 * random.standard_normal(len(base)))
    table = Cells.of_arrays(base.N, base.T, base.B, base.lr, loss, n_ctx=100.0)
    forced = fit_surface(table, form="additive", batch="two_sided", bent=False)
    assert any("additive form errs" in line or "lack of fit" in line for line in forced.warnings())
    chosen = fit_surface(table, batch="two_sided", bent=False)
    assert chosen.members[0].form == "joint"
    assert chosen.members[0].window_error < forced.members[0].window_error / 2


def test_fit_and_noise_settle(monkeypatch):
    # Undamped, this ellipse and its noise swing around each other: ln_z by 0.29 each round, until rounds run out.
    table = runs.read(ROOT / "results" / "mini" / "cells")
    seen, estimate = [], noise.estimate
    monkeypatch.setattr(noise, "estimate", lambda *given: seen.append(estimate(*given)) or seen[-1])
    fit_surface(Cells.of_table(table.rows(~table.heldout)), form="levels", batch="ellipse", bent=False)
    assert len(seen) < least_squares.ROUNDS
    assert np.abs(seen[-1] - seen[-2]).max() < 0.05


def test_where_a_form_starts_changes_no_prediction():
    """Far beyond the runs, within 2e-4: less than a hundredth of the sd there."""
    table = cells(batches=3, rates=np.exp([-0.8, 0.0, 0.8]))
    surface = fit_surface(table, form="joint", batch="two_sided", bent=False)
    solution, problem = surface.members[0].solution, _problem(surface, table)
    far = surface._inputs(2e9, 2e11, 3e3, 1e-3)
    wanted = shape.evaluate(solution.model, solution.theta, far)
    assert np.sqrt(wanted.jacobian[0] @ solution.covariance @ wanted.jacobian[0]) > 0.03
    for share, k in ((0.02, 0.2), (0.9, 2.0)):
        theta = solution.theta.copy()
        theta[:6] = np.log([0.5, 0.3 / k, 0.5, 0.3 / k, share * table.loss.min(), k])
        again = least_squares.solve(problem, solution.model, theta, solution.phi)
        assert shape.evaluate(again.model, again.theta, far).value == pytest.approx(wanted.value, abs=2e-4)


def test_intervals_hold_what_any_floor_that_the_runs_do_not_exclude_predicts():
    """Runs of a pure power law: Linf may be 0 or much of the lowest loss, and far away the loss hangs on it."""
    table, far = _floored(0.0, 0.02), (1e9, 1e11, 1e4, 1e-3)
    surface = fit_surface(table, form="joint", batch="two_sided", bent=False)
    text = "\n".join(summary(surface))
    assert re.search(r"Linf \S+ \(not identified\)", text)
    solution, problem = surface.members[0].solution, _problem(surface, table)
    costs, means = [], []
    for share in (1e-6, 0.1, 0.3, 0.5, 0.7, 0.9):
        theta, at = solution.theta.copy(), solution.model.place("f.Linf")
        theta[at] = np.log(share * table.loss.min())
        held = replace(solution.model, held=solution.model.held | {"f.Linf": theta[at]})
        one = least_squares.solve(problem, held, theta, solution.phi, 0, solution.inflation)
        costs.append(one.cost)
        means.append(np.exp(shape.evaluate(held, one.theta, surface._inputs(*far)).value[0]))
    possible = np.array(means)[np.array(costs) < min(costs) + 1.92]
    found = surface.predict(*far)
    assert possible.max() > 1.05 * possible.min()
    assert found.mean_low[0] < possible.min()
    assert possible.max() < found.mean_high[0]


def test_floor_that_the_runs_show_is_one_fitted_constant():
    surface = fit_surface(_floored(2.0), form="joint", batch="two_sided", bent=False)
    (member,) = surface.members
    assert "f.Linf" not in member.solution.model.held
    assert np.exp(member.solution.theta[member.solution.model.place("f.Linf")]) == pytest.approx(2.0, rel=0.1)
    assert "not identified" not in "\n".join(summary(surface))


def test_a_form_without_a_floor_counts_only_where_the_runs_show_none():
    given = {"batch": "two_sided", "bent": False}
    shown = fit_surface(_floored(2.0), **given)
    assert sum(member.weight for member in shown.members if member.form == "floorless") < 0.1
    table, far = _floored(0.0), (1e9, 1e11, 1e4, 1e-3)
    auto, joint = fit_surface(table, **given), fit_surface(table, "joint", **given)
    assert auto.members[0].form == "floorless"
    widths = [np.log(each.predict(*far).mean_high / each.predict(*far).mean_low)[0] for each in (auto, joint)]
    assert widths[0] < 0.8 * widths[1]


def _problem(surface, table):
    n, t, b = surface.scale.logs(table.N, table.T, table.B)
    return least_squares.problem_of(table, shape.Inputs(n, t, np.log(table.lr / surface.lr_scale), b, table.grid))


def _floored(Linf, noise=NOISE):
    base = cells(sizes=4, times=4, batches=3, rates=np.exp([-0.8, 0.0, 0.8]))
    fall = 0.6 * (base.N / 4e6) ** -0.3 + 0.5 * (base.T / 4e8) ** -0.35
    cost = 0.02 * np.log(base.lr / 1e-3) ** 2 + 0.005 * np.log(base.B / 4e2) ** 2
    noise = noise * np.random.default_rng(3).standard_normal(len(base))
    return Cells.of_arrays(base.N, base.T, base.B, base.lr, (fall + Linf) * np.exp(cost + noise), n_ctx=100.0)


def test_free_levels_predict_no_losses_and_say_so():
    surface = fit_surface(cells(sizes=2, times=2), batch="two_sided", bent=False)
    assert surface.no_form.startswith("2 sizes and 2 token counts")
    assert surface.no_form.endswith(", so sweep 1 more size and 1 more token count")
    with pytest.raises(UserError, match="predicts no losses: 2 sizes"):
        surface.predict(1e6, 1e8, 1e3, 1e-3)


def test_milestones_that_sizes_pass_a_step_apart_are_one_token_count():
    """Sizes with other batches stop at 1e8 and at 1.01e8 tokens: these were three token counts, and fixed a form."""
    two = cells(sizes=4, times=2)
    apart = Cells.of_arrays(two.N, two.T * np.where(two.N > 4e6, 1.01, 1.0), two.B, two.lr, two.loss, run=two.run)
    surface = fit_surface(apart, batch="two_sided", bent=False)
    assert surface.no_form.startswith("4 sizes and 2 token counts")
    assert surface.no_form.endswith(", so sweep 1 more token count")


def test_dense_milestones_of_one_run_are_token_counts_of_their_own():
    """As one count they were copies of one result to the fit, whose noise is the same."""
    T = np.tile(1e8 * 1.03 ** np.arange(6), 3) * np.repeat([1, 1, 1.001], 6)
    table = Cells.of_arrays(1e6, T, 3e4, 1e-3, 2.0, run=np.repeat([0, 1, 2], 6))
    counts = table.tokens.reshape(3, 6)
    assert all(len(np.unique(run)) == 6 for run in counts)
    np.testing.assert_array_equal(counts, counts[:1].repeat(3, axis=0))
    # A result that is there twice has one count.
    assert len(np.unique(table.rows(np.array([0, 0, 1])).tokens)) == 2


def test_a_token_count_is_not_predicted_from_one_a_step_shorter():
    table = cells(sizes=4, times=4)
    apart = replace(table, T=table.T * np.where(table.N > 4e6, 1.01, 1.0))
    surface = fit_surface(apart, form="additive", batch="two_sided", bent=False)
    steps = [step for step in surface.members[0].steps if step.by == "T"]
    assert min(step.reach for step in steps) > 0.5


def test_cells_are_worth_their_number_where_none_is_distant_or_an_outlier(two_sided):
    """They were worth 1.23 times as much: a weight that a robust fit gives to every row counted as information."""
    solution = two_sided.shape.solution
    phi = solution.phi.copy()
    phi[noise.NAMES.index("ln_kappa")] = -20.0
    plain = replace(solution, phi=phi, inflation=np.full(len(two_sided.cells), least_squares.NORMAL))
    surface = replace(two_sided, shapes=(replace(two_sided.shape, solution=plain),))
    line = next(line for line in summary(surface) if "together as much as" in line)
    assert f"together as much as {len(two_sided.cells)} near the best" in line


def test_arrays_that_are_no_runs_are_refused_by_name():
    with pytest.raises(UserError, match="lr must be positive"):
        Cells.of_arrays([1e6], [1e8], [1e3], [0.0], [2.0])
    with pytest.raises(UserError, match="3 usable runs"):
        fit_surface(Cells.of_arrays([1e6] * 4, [1e8] * 3 + [2e8], [1e3] * 4, [1e-3] * 4, [2.0, 2.1, 2.2, np.inf]))


def test_extrapolation_that_no_run_tested_is_three_times_as_wide():
    """No window of smaller token counts predicts a larger one; inside the runs nothing changes."""
    surface = fit_surface(cells("one_sided"), "joint", batch="one_sided", bent=False)
    untested = replace(surface, members=tuple(replace(member, steps=()) for member in surface.members))
    claimed = replace(untested, domain={"N": (0, np.inf), "T": (0, np.inf)})  # no row is beyond any run
    N, T = (surface.domain[name][1] for name in "NT")
    for factor, wider in ((1, 1.0), (4, 3.0)):
        found, alone = (each.predict(N, factor * T, 500.0, 3e-3) for each in (untested, claimed))
        assert np.log(found.mean_high / found.mean) == pytest.approx(wider * np.log(alone.mean_high / alone.mean))
    assert any("larger N or T could be tested" in line for line in untested.warnings())


def test_a_bent_rates_exponents_are_known_as_well_as_the_slopes_of_its_draws():
    """The study's heaviest shapes bend; the slope is read off the rate by differences, without the fit's formulas."""
    surface = law_file.load(ROOT / "results" / "study" / "law.json").surface
    assert sum(candidate.weight for candidate in surface.shapes if candidate.bent) > 0.5
    logs, cells = surface.scale.logs(surface.cells.N, surface.cells.T, surface.cells.B), surface.cells
    near = selection.near_weight(cells.loss, cells.best)

    def slope(model, theta, axis):
        up, down = (
            shape.ridge(model, theta, *(v + step * (at == axis) for at, v in enumerate(logs)))
            for step in (1e-5, -1e-5)
        )
        return np.average((up - down) / 2e-5, weights=near, axis=-1)

    for axis, name in enumerate(("aN", "aT", "aB")):
        found = surface.exponent(name)
        drawn = [slope(c.solution.model, draws[:, None], axis) for c, draws in surface.draws]
        value = sum(c.weight * slope(c.solution.model, c.solution.theta, axis) for c, _ in surface.draws)
        assert found.value == pytest.approx(value, abs=1e-6), name
        ends = np.quantile(np.concatenate(drawn), [0.025, 0.975])
        # The rate's draws are not quite linear in the constants, and 400 of them place an end to a tenth.
        assert found.high - found.low == pytest.approx(ends[1] - ends[0], rel=0.15), name
        for candidate in surface.shapes:
            model, theta = candidate.solution.model, candidate.solution.theta
            steps = 1e-4 * np.eye(len(theta))[model.free]
            numeric = [(slope(model, theta + h, axis) - slope(model, theta - h, axis)) / 2e-4 for h in steps]
            # Differences of differences, by steps of 1e-4 and 1e-5, keep six digits.
            analytic = surface._average_slope(candidate, name)[1][model.free]
            assert analytic == pytest.approx(np.array(numeric), abs=1e-5), name
