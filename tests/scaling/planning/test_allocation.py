import dataclasses
import re

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from tests.scaling import planted
from videoscaling.scaling import laws, runs
from videoscaling.scaling.fitting.surface import surface_law
from videoscaling.scaling.planning import allocation


def test_minimise_against_a_general_optimiser(paper, cost):
    for C in (1e18, 1e20, 1e22):
        found = minimize_scalar(
            lambda x, C=C: float(paper.loss(np.exp(x), C / cost(np.exp(x)))),
            bounds=(np.log(1e6), np.log(1e12)),
            method="bounded",
            options={"xatol": 1e-9},
        )
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
    assert re.search(
        rf"^minimised +{re.escape(f'{float(allocation.optimum(paper.loss, 1e20, cost)):.4g}')} ", table, re.M
    )
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
    for N in ends:
        assert float(paper.loss(N, 1e21 / cost(np.array(N)))) / least - 1 == pytest.approx(1e-3, rel=1e-6)
    assert ends[0] < best < ends[1]


def test_a_flat_loss_has_ends_thousands_of_times_off_and_none_where_no_size_is_worse(paper, cost):
    """The ends were sought within a factor of e^7 of the best size, and were that factor where they lie beyond."""
    C, flat = 1e21, dataclasses.replace(paper.loss, aN=0.1, aT=0.12, Linf=2.0)
    best = float(allocation.optimum(flat, C, cost))
    least = float(flat(best, C / cost(np.array(best))))
    for tolerance in (0.006, 0.009):
        for N in allocation.within(flat, C, cost, tolerance):
            assert abs(np.log(N / best)) > 7
            assert float(flat(N, C / cost(np.array(N)))) / least - 1 == pytest.approx(tolerance, rel=1e-6)
    # The smallest size that is sought is 1 % worse, the largest 4 %.
    low, high = allocation.within(flat, C, cost, 0.02)
    assert low is None
    assert float(flat(high, C / cost(np.array(high)))) / least - 1 == pytest.approx(0.02, rel=1e-6)
    assert allocation.range_text(low, high, "{:.0e}".format) == ("below 1e+02", f"{high:.0e}")
    assert allocation.within(flat, C, cost, 0.05) == (None, None)
    assert allocation.range_text(None, None, "{:g}".format) == ("below 100", "above 1e+15")


def test_the_exponents_interval_holds_the_planted_one(paper, tmp_path):
    cost = allocation.proportional(6)
    for seed in range(3):
        table = runs.read(planted.write_table(planted.cells(seed), tmp_path / "cells.csv"))
        law = surface_law.fit_law(table, "all", "auto", cost, {})
        found = allocation.exponent(law, cost)
        assert float(found.value) == pytest.approx(law.allocation["predicted"].exponent)
        # 0.25 / (0.2 + 0.25) in closed form, whatever the floor. An interval beyond (0, 1) would say nothing.
        assert 0 < found.low < 0.25 / 0.45 < found.high < 1
        shown = f"[{float(found.low):.4g}, {float(found.high):.4g}]"
        assert shown in "\n".join(allocation.side_by_side(law, 1e18, cost))
    assert allocation.exponent(dataclasses.replace(law, allocation=None), cost) is None
    assert np.isnan(allocation.exponent(dataclasses.replace(paper, draws=None), cost).low)
