import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from videoscaling.scaling import laws
from videoscaling.scaling.planning import allocation


def experiments(public_data):
    pairs, points = public_data("formll/optimal_pairs.csv"), public_data("formll/isoflop_points.csv")
    for expected in public_data("formll/expected_fits.csv"):
        key = expected["experiment"], expected["dataset"]
        mine = [r for r in pairs if (r["experiment"], r["dataset"]) == key and r["n_opt"] and r["n_star_std"]]
        curves = [r for r in points if (r["experiment"], r["dataset"]) == key]
        yield key, float(expected["n_exponent_weighted"]), mine, curves


def column(rows, name):
    return np.array([float(r[name]) for r in rows])


def test_published_weighted_exponents(public_data):
    checked = 0
    for key, expected, pairs, _ in experiments(public_data):
        variance = column(pairs, "n_star_std") ** 2
        law = allocation.size_law(column(pairs, "flops"), column(pairs, "n_opt"), variance)
        assert law.exponent == pytest.approx(expected, abs=5e-6), key
        checked += 1
    assert checked == 15


def test_isoflop_parabolas_against_published_exponents(public_data):
    for key, expected, _, curves in experiments(public_data):
        C, N, loss = (column(curves, name) for name in ("flops", "n", "loss"))
        found = allocation.isoflop((c, N[c == C], loss[c == C]) for c in np.unique(C))
        interior = [o for o in found if o.interior]
        law = allocation.size_law([o.C for o in interior], [o.N_opt for o in interior])
        assert law.exponent == pytest.approx(expected, abs=0.03), key


def test_minimise_against_a_general_optimiser(paper, cost):
    for C in (1e18, 1e20, 1e22):
        found = minimize_scalar(
            lambda x, C=C: float(paper.loss(np.exp(x), C / cost(np.exp(x)))), bounds=(np.log(1e6), np.log(1e12)),
            method="bounded", options={"xatol": 1e-9},
        )  # fmt: skip
        # The loss is so flat that a general optimiser only finds its minimum to the root of the rounding error.
        assert float(allocation.optimum(paper.loss, C, cost)) == pytest.approx(np.exp(found.x), rel=1e-3)


def test_the_published_laws_disagree(paper, cost):
    # Facts of the paper: minimising the published L gives 3.3-3.6B, not 2.43B, and the basin is flat.
    N = float(allocation.optimum(paper.loss, 1e22, cost))
    assert 3.3e9 < N < 3.7e9
    low, high = allocation.within(paper.loss, 1e22, cost, 2e-4)
    assert low < 2.43e9 < 4.04e9 < high


def test_closed_form_with_a_proportional_cost(paper):
    law, C = paper.loss, 1e21
    G = (law.aN * law.Nc * law.scale["N"] ** law.aN / (law.aT * law.Tc * law.scale["T"] ** law.aT)) ** (
        1 / (law.aN + law.aT)
    )
    expected = G * (C / 6) ** (law.aT / (law.aN + law.aT))
    assert float(allocation.optimum(law, C, allocation.proportional(6))) == pytest.approx(expected, rel=1e-6)


def test_parabola_of_an_exact_parabola():
    N = np.geomspace(1e6, 1e8, 7)
    found = allocation.parabola(1e18, N, 2 * np.exp(0.01 * np.log(N / 2e7) ** 2))
    assert found.interior
    assert found.N_opt == pytest.approx(2e7)
    assert found.loss == pytest.approx(2.0)
    assert not allocation.parabola(1e18, N, 2 + 0.01 * np.log(N / 2e9) ** 2, window=1.0).interior


def curves(C, N_opt, sizes=None):
    """isoFLOP curves with their minima on N_opt(C)."""
    sizes = np.geomspace(1e6, 1e9, 13) if sizes is None else sizes
    return [(c, sizes, 2 * np.exp(0.01 * np.log(sizes / N_opt(c)) ** 2)) for c in C]


def test_estimators_from_points_recover_a_planted_law():
    found, reasons = allocation.estimate(curves(np.geomspace(1e17, 1e20, 25), lambda C: 3e7 * (C / 1e18) ** 0.5))
    assert reasons == {}
    assert found["measured"].exponent == pytest.approx(0.5)
    assert found["measured"](1e19) == pytest.approx(3e7 * 10**0.5)
    # The best size as it is knows N_opt to half the ladder's step (a factor of 1.33), and on average better.
    assert found["direct"].exponent == pytest.approx(0.5, abs=0.05)
    assert found["direct"](1e19) == pytest.approx(3e7 * 10**0.5, rel=0.15)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([], "0 budgets are shared by three sizes; 0 of them"),
        (curves([1e17, 1e18, 1e19], lambda C: 1e12), "3 budgets are shared by three sizes; 0 of them"),
        (curves([1e17, 2e17, 4e17], lambda C: 3e7 * (C / 1e18) ** 0.5), "span a factor of 4, less than a decade"),
        (curves([1e17, 1e18, 1e19], lambda C: 3e7 * (C / 1e18) ** -0.5), "N_opt falls with C"),
    ],
)
def test_points_that_tell_no_size_law_say_why(points, reason):
    found, reasons = allocation.estimate(points)
    assert found == {"direct": None, "measured": None}
    assert all(reason in text for text in reasons.values())


def test_budgets_reach_from_the_least_to_the_most_that_three_sizes_share():
    """Losses that are power laws of C are interpolated exactly; a fourth size far above shares with none."""
    N = np.repeat([1e6, 2e6, 4e6, 1e9], 3)
    C = np.concatenate([np.array([1e10, 1e11, 1e12]) * k for k in (1, 2, 4, 1e5)])
    loss = N**-0.1 * C**-0.05
    found = list(allocation.budgets(N, C, loss, C))
    assert [budget for budget, *_ in found] == pytest.approx(np.geomspace(4e10, 1e12, 12))
    for budget, sizes, losses in found:
        assert sizes.tolist() == [1e6, 2e6, 4e6]
        assert losses == pytest.approx(sizes**-0.1 * budget**-0.05)
    # Sizes that meet at one budget share one; those that never do, and a single point, share none.
    N = np.repeat([1.0, 2.0, 3.0], 2)
    meet, apart = np.array([1.0, 2, 2, 3, 1, 3]), np.array([1.0, 2, 3, 4, 5, 6])
    assert [(budget, len(sizes)) for budget, sizes, _ in allocation.budgets(N, meet, 1 / meet, meet)] == [(2, 3)]
    assert not list(allocation.budgets(N, apart, 1 / apart, apart))


def test_estimators_side_by_side(paper, cost):
    sizes = {
        "default": "predicted",
        "direct": None,
        "measured": laws.SizeLaw(2.0, 0.4),
        "predicted": laws.SizeLaw(1.0, 0.4),
    }
    law = dataclasses.replace(paper, allocation=sizes)
    table = "\n".join(allocation.side_by_side(law, 1e20, cost))
    assert "against predicted" in table
    assert "+100.0%, +100.0%" in table
    assert f"{2e8:.4g}" in table
    assert "direct" not in table
    assert f"minimised {float(allocation.optimum(paper.loss, 1e20, cost)):>38.4g}" in table
    # With one row there is nothing to be against.
    alone = allocation.side_by_side(
        dataclasses.replace(law, loss=None, allocation=sizes | {"measured": None}), 1e20, cost
    )
    assert len(alone) == 2
    assert "against" not in alone[0]


def test_sizes_within_a_tolerance_give_away_just_that(paper, cost):
    best = float(allocation.optimum(paper.loss, 1e21, cost))
    least = float(paper.loss(best, 1e21 / cost(np.array(best))))
    ends = allocation.within(paper.loss, 1e21, cost, 1e-3)
    # The grid of sizes is spaced by a third of a per cent.
    for N in ends:
        assert float(paper.loss(N, 1e21 / cost(np.array(N)))) / least - 1 == pytest.approx(1e-3, rel=0.02)
    assert ends[0] < best < ends[1]


def test_a_curve_without_a_minimum_is_no_optimum():
    N = np.geomspace(1e6, 1e8, 7)
    falling = allocation.parabola(1e18, N, 2 - 0.01 * np.log(N / 2e7) ** 2, window=1.0)
    assert not falling.interior
    assert falling.loss == pytest.approx((2 - 0.01 * np.log(N / 2e7) ** 2).min())


def test_a_parabolas_variance_is_its_spread():
    N, found = np.geomspace(1e6, 1e8, 9), []
    for seed in range(300):
        noise = 2e-3 * np.random.default_rng(seed).standard_normal(9)
        found.append(allocation.parabola(1e18, N, 2 * np.exp(0.03 * np.log(N / 1e7) ** 2 + noise), window=1.0))
    # 300 draws know a variance to about 8 %.
    assert np.mean([o.variance for o in found]) == pytest.approx(np.var(np.log([o.N_opt for o in found])), rel=0.3)


def test_a_size_laws_interval_is_the_regressions():
    """Nominal 95 % of it, from the rows' own scatter, cover the planted exponent."""
    C, covered = np.geomspace(1e18, 1e21, 6), []
    for seed in range(400):
        N = 0.3 * C**0.45 * np.exp(0.1 * np.random.default_rng(seed).standard_normal(6))
        law, (low, high) = allocation.size_law(C, N), allocation.exponent_interval(C, N)
        assert low < law.exponent < high
        covered.append(low <= 0.45 <= high)
    assert 0.92 < np.mean(covered) < 0.98
