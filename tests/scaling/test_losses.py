"""The loss at the best batch and rate, by every form: values, slopes, minima, and what follows from draws."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from videoscaling.scaling.fitting.losses import forms
from videoscaling.scaling.losses import MAX_TOKENS, Form, Losses
from videoscaling.scaling.planning import allocation

SCALE = forms.Scale(1e8, 1e9, 1e5)
THETA = {
    "additive": np.log([0.6, 0.3, 0.5, 0.25, 1.7]),
    "joint": np.log([0.6, 0.3, 0.5, 0.25, 1.7, 0.6]),
    "product": np.log([0.3, 0.3, 0.25, 0.25, 1.7]),
    "three_term": np.log([0.6, 0.3, 0.1, 0.2, 0.3, 0.4, 1.7]),
}
COST = allocation.proportional(6.0)


def losses_of(*names: str, draws: int = 0) -> Losses:
    random = np.random.default_rng(0)
    found = []
    for name in names:
        drawn = THETA[name] + 0.02 * random.standard_normal((draws, len(THETA[name]))) if draws else None
        found.append(Form(name, 1 / len(names), THETA[name], drawn))
    return Losses(tuple(found), SCALE)


def test_an_average_is_that_of_logarithms():
    N, T = np.array([1e7, 1e9]), np.array([1e10, 1e8])
    one, other, both = (losses_of(*names)(N, T) for names in (("joint",), ("product",), ("joint", "product")))
    assert both == pytest.approx(np.sqrt(one * other), rel=1e-12)
    assert one == pytest.approx((0.6 * (N / 1e8) ** -0.3 + 0.5 * (T / 1e9) ** -0.25) ** 0.6 + 1.7, rel=1e-12)


def test_three_terms_are_at_their_best_batch():
    losses, N, T = losses_of("three_term"), 3e7, 4e9
    n, t, b = SCALE.logs(N, T, np.geomspace(1e2, 1e8, 20_001))
    least = forms.evaluate("three_term", THETA["three_term"], n, t, b)[0].min()
    assert float(losses(N, T)) == pytest.approx(np.exp(least))


@pytest.mark.parametrize("names", [*((name,) for name in THETA), ("joint", "product", "additive")])
def test_slopes_and_minima(names):
    losses, C = losses_of(*names), 1e20
    h = 1e-4
    found = losses.slopes(2e7, 3e9)
    for by, (dn, dt) in zip(found, ((h, 0), (0, h))):
        ends = [np.log(losses(2e7 * np.exp(s * dn), 3e9 * np.exp(s * dt))) for s in (1, -1)]
        assert float(by) == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=1e-5)
    best = float(allocation.optimum(losses, C, COST))
    numeric = minimize_scalar(
        lambda x: float(np.log(losses(np.exp(x), C / COST(np.exp(x))))),
        bounds=np.log([1e6, 1e12]),
        method="bounded",
        options={"xatol": 1e-9},
    )
    # So flat that a minimiser of values knows the place to the root of their rounding.
    assert best == pytest.approx(np.exp(numeric.x), rel=1e-3)
    T = float(losses.tokens_for(best, float(losses(best, 7e10))))
    assert pytest.approx(7e10, rel=1e-9) == T
    assert losses.tokens_for(best, float(losses.limit(best))) == np.inf
    assert losses.tokens_for(best, float(losses(best, 2 * MAX_TOKENS))) == np.inf
    assert float(losses.limit()) == pytest.approx(1.7, rel=1e-12)


def test_draws_are_solved_as_each_alone():
    losses, C = losses_of("joint", "additive", draws=40), 1e20
    batches = losses.drawn(1e8, 1e10)
    assert [batch.batch for batch in batches] == [(20,), (20,)]
    together = allocation.optimum(batches[0], C, COST)
    alone = [
        float(allocation.optimum(Losses((Form("joint", 1.0, theta),), SCALE), C, COST))
        for theta in batches[0].forms[0].theta[:3]
    ]
    assert together[:3] == pytest.approx(alone, rel=1e-9)
    exponents = allocation.power_law_of_minima(batches[0], (1e18, 1e20), COST)[1]
    # The power of a sum has its minimum where the sum has, so that a closed form holds for both forms.
    aN, aT = np.exp(batches[0].forms[0].theta[:, [1, 3]]).T
    assert exponents == pytest.approx(aT / (aN + aT), rel=1e-3)


def test_draws_stretch_beyond_the_fitted_range():
    losses = losses_of("additive", draws=400)
    wide = Losses(losses.forms, SCALE, stretch=lambda N, T: np.array([3.0]))
    one, three = (law.estimate(lambda law: law(1e8, 1e9), 1e8, 1e9) for law in (losses, wide))
    assert one.value == three.value
    assert np.log(three.high / three.low) == pytest.approx(3 * np.log(one.high / one.low), rel=0.05)


@pytest.mark.parametrize(
    ("ends", "text"), [((0, 1), "at most"), ((1, 2), "at least"), ((0, 2), "unbounded"), ((), ",")]
)
def test_ends_of_the_search_are_no_bounds_of_the_best_size(ends, text):
    """Draws with the smallest, or the largest model as the best at every budget."""
    alone = THETA["additive"]
    away = [alone + np.array([step, 0, -step, 0, 0]) for step in (-40.0, 0.0, 40.0)]
    drawn = np.stack([away[end] for end in (*ends, 1, 1) for _ in range(20)])
    losses = Losses((Form("additive", 1.0, alone, drawn),), SCALE)
    law = SimpleNamespace(
        response=SimpleNamespace(no_losses=None, losses=losses),
        allocation={"predicted": allocation.predicted(losses, (1e19, 1e21), COST)},
        domain={"C": (1e19, 1e20)},
        fit={},
    )
    for name, size in allocation.estimates(law, 1e20, COST).items():
        assert text in size.span(".4g"), name
        found = size.as_json()
        assert (found["low"] is None, found["high"] is None) == (0 in ends, 2 in ends)
