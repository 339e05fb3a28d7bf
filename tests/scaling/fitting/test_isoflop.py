import csv
import json

import numpy as np
import pytest

from tests.commands import call
from videoscaling.scaling import law_file
from videoscaling.scaling.fitting import isoflop


def curves(jitter=0.0, noise=0.0, seed=0, budgets=6):
    """(N, C, loss) of isoFLOP curves with N_opt = 3e7 (C / 1e18)^0.5, their C off by up to ``jitter``."""
    random = np.random.default_rng(seed)
    C = np.repeat(np.geomspace(1e18, 3e20, budgets), 11)
    best = 3e7 * (C / 1e18) ** 0.5
    N = best * 2.0 ** (np.tile(np.arange(-5, 6), budgets) * 0.5 + np.repeat(random.uniform(-1, 1, budgets), 11))
    C = C * np.exp(random.uniform(-jitter, jitter, len(C)))
    loss = 2.2 * (C / 1e18) ** -0.05 * np.exp(0.0116 * np.log(N / (3e7 * (C / 1e18) ** 0.5)) ** 2)
    return N, C, loss * np.exp(noise * random.standard_normal(len(C)))


@pytest.mark.parametrize("jitter", [0.002, 0.03])
def test_budgets_of_whole_batches_are_one_budget(jitter):
    """FLOPs off by what rounding to batches makes: exact names of budgets would leave none that sizes share."""
    N, C, loss = curves(jitter)
    found = isoflop.budgets(N, C, loss)
    assert [len(budget.N) for budget in found] == [11] * 6
    fits, reasons = isoflop.estimate(found)
    assert reasons == {}
    assert fits["measured"].law.exponent == pytest.approx(0.5, abs=0.005)
    low, high = fits["measured"].exponent_interval()
    assert low < 0.5 < high
    assert fits["measured"].law(1e19) == pytest.approx(3e7 * 10**0.5, rel=0.02)


def test_losses_are_moved_to_the_common_budget():
    N, C, loss = curves(0.03)
    for budget in isoflop.budgets(N, C, loss):
        _, _, planted = curves(0.0)
        best = 3e7 * (budget.C / 1e18) ** 0.5
        planted = 2.2 * (budget.C / 1e18) ** -0.05 * np.exp(0.0116 * np.log(budget.N / best) ** 2)
        near = budget.loss < 1.03 * budget.loss.min()
        # Unmoved they are off by 0.05 * 0.03 = 1.5e-3.
        assert np.abs(np.log(budget.loss / planted))[near].max() < 2e-4


def test_intervals_of_noisy_curves_cover():
    covered = {"direct": 0, "measured": 0}
    for seed in range(200):
        fits, _ = isoflop.estimate(isoflop.budgets(*curves(0.03, 1e-3, seed)))
        for name, one in fits.items():
            low, high = one.exponent_interval()
            covered[name] += low <= 0.5 <= high
    assert 0.90 * 200 <= covered["measured"] <= 199
    assert covered["direct"] >= 0.88 * 200


def test_a_minimum_beyond_its_sizes_is_refused():
    N = np.geomspace(1e6, 1e8, 7)
    inside = isoflop.minimum(isoflop.Budget(1e18, N, 2 * np.exp(0.01 * np.log(N / 2e7) ** 2)))
    assert (inside.inside, inside.N_opt) == (True, pytest.approx(2e7))
    beyond = isoflop.minimum(isoflop.Budget(1e18, N, 2 * np.exp(0.01 * np.log(N / 2e9) ** 2)))
    assert not beyond.inside


def test_a_noisy_minimum_weighs_less():
    """One budget whose minimum is off by its own large error moves the law little."""
    C, N = np.geomspace(1e18, 1e21, 6), 3e7 * np.geomspace(1, 1000, 6) ** 0.5
    N[5] *= 1.5
    variance = np.array([1e-4] * 5 + [0.2**2])
    assert abs(isoflop.through(C, N, variance).law.exponent - 0.5) < 0.01
    assert abs(isoflop.through(C, N).law.exponent - 0.5) > 0.02


def test_published_exponents_by_budgets(public_data):
    points = public_data("formll/isoflop_points.csv")
    for expected in public_data("formll/expected_fits.csv"):
        key = expected["experiment"], expected["dataset"]
        rows = [r for r in points if (r["experiment"], r["dataset"]) == key]
        N, C, loss = (np.array([float(r[name]) for r in rows]) for name in ("n", "flops", "loss"))
        fits, _ = isoflop.estimate(isoflop.budgets(N, C, loss))
        assert fits["measured"].law.exponent == pytest.approx(float(expected["n_exponent_weighted"]), abs=0.03), key


@pytest.mark.parametrize("cost", ["flops", "T"])
def test_a_table_of_isoflop_runs_gives_intervals_to_its_law_and_plans(tmp_path, cost):
    N, C, loss = curves(0.002)
    path, out = tmp_path / "isoflop.csv", tmp_path / "law.json"
    with path.open("w", newline="") as handle:
        values = C if cost == "flops" else C / 6 / N
        csv.writer(handle).writerows([("N", cost, "loss"), *zip(N, values, loss)])
    done = call("tools/fit.py", "allocation", path, "--out", out)
    assert done.returncode == 0, done.stderr
    law = law_file.load(out)
    for name in ("direct", "measured"):
        low, high = law.fit["intervals"][f"allocation.{name}.exponent"]
        assert low < law.allocation[name].exponent < high
        assert f"N_opt, {name}: exponent" in done.stdout
    assert law.allocation["measured"].exponent == pytest.approx(0.5, abs=0.005)
    planned = call("tools/plan.py", "--law", out, "--flops", "1e21", "--n-ctx", "1280", "--json")
    sizes = json.loads(planned.stdout)["N_opt"]
    assert sizes["measured"]["low"] < sizes["measured"]["value"] < sizes["measured"]["high"]
    # Further from the budgets of the fit less is known.
    far = json.loads(call("tools/plan.py", "--law", out, "--flops", "1e23", "--n-ctx", "1280", "--json").stdout)
    width = [np.log(v["N_opt"]["direct"]["high"] / v["N_opt"]["direct"]["low"]) for v in ({"N_opt": sizes}, far)]
    assert width[1] > 1.5 * width[0]


def exact_curves(C, N_opt):
    """isoFLOP curves without noise whose minima lie at N_opt(C)."""
    sizes = np.geomspace(1e6, 1e9, 13)
    return [isoflop.Budget(c, sizes, 2 * np.exp(0.01 * np.log(sizes / N_opt(c)) ** 2)) for c in C]


@pytest.mark.parametrize(
    ("budgets", "reason"),
    [
        ([], "0 budgets shared by three sizes; 0 of them"),
        (exact_curves([1e17, 1e18, 1e19], lambda C: 1e12), "3 budgets shared by three sizes; 0 of them"),
        (
            exact_curves([1e17, 2e17, 4e17], lambda C: 3e7 * (C / 1e18) ** 0.5),
            "span a factor of 4, less than a decade",
        ),
        (exact_curves([1e17, 1e18, 1e19], lambda C: 3e7 * (C / 1e18) ** -0.5), "N_opt falls with C"),
    ],
)
def test_budgets_that_identify_no_size_law_say_why(budgets, reason):
    found, reasons = isoflop.estimate(budgets)
    assert found == {"direct": None, "measured": None}
    assert all(reason in text for text in reasons.values())


def test_budgets_reach_from_the_least_to_the_most_that_three_sizes_share():
    """Losses that are power laws of C are interpolated exactly; a fourth size far above shares with none."""
    N = np.repeat([1e6, 2e6, 4e6, 1e9], 3)
    C = np.concatenate([np.array([1e10, 1e11, 1e12]) * k for k in (1, 2, 4, 1e5)])
    found = isoflop.interpolated(N, C, N**-0.1 * C**-0.05)
    assert [budget.C for budget in found] == pytest.approx(np.geomspace(4e10, 1e12, 12))
    for budget in found:
        assert budget.N.tolist() == [1e6, 2e6, 4e6]
        assert budget.loss == pytest.approx(budget.N**-0.1 * budget.C**-0.05)
    # Sizes that meet at one budget share one; those that never do share none.
    N = np.repeat([1.0, 2.0, 3.0], 2)
    meet, apart = np.array([1.0, 2, 2, 3, 1, 3]), np.array([1.0, 2, 3, 4, 5, 6])
    assert [(budget.C, len(budget.N)) for budget in isoflop.interpolated(N, meet, 1 / meet)] == [(2, 3)]
    assert not isoflop.interpolated(N, apart, 1 / apart)
