import dataclasses

import numpy as np
import pytest

from scaling import allocation, simulate
from scaling.compare import compare

SIZES, TOKENS = np.geomspace(0.0168e9, 0.268e9, 4), [2e9, 5e9, 12e9]


def ledger_with(law, seed, noise=2e-4):
    return simulate.ledger(law, simulate.grid(law, SIZES, TOKENS, 5, 5, 2.0), TOKENS, noise, seed=seed, n_ctx=1280)


def without_bias(paper):
    """A law whose best batch and rate depend on neither N nor T: one fixed pair is optimal everywhere."""
    batch = dataclasses.replace(paper.batch, coefficient=5e4, T=0.0, N=0.0)
    return dataclasses.replace(paper, batch=batch, lr=dataclasses.replace(paper.lr, T=0.0, N=0.0))


def found(law, cost, count):
    return [compare(ledger_with(law, seed), cost) for seed in range(count)]


@pytest.mark.slow
def test_a_planted_bias_is_found_and_none_is_invented(paper, cost):
    assert np.mean([c.biased for c in found(paper, cost, 100)]) >= 0.90
    assert np.mean([c.biased for c in found(without_bias(paper), cost, 100)]) <= 0.05


def test_a_planted_bias_is_found_on_fewer_ledgers(paper, cost):
    biased = found(paper, cost, 5)
    assert all(c.biased and c.N_fixed > c.N_opt and c.wasted > 0 for c in biased)
    # Two false alarms in eight have a chance of 5 % at the nominal rate.
    assert sum(c.biased for c in found(without_bias(paper), cost, 8)) <= 2


def test_numbers_against_the_planted_law(paper, cost):
    done = compare(ledger_with(paper, 0, noise=1e-6), cost, C=1e21)
    assert done.N_opt == pytest.approx(float(allocation.optimum(paper.loss, 1e21, cost)), rel=0.02)
    # The pair's own penalty, from the law's curvature at every grid.
    N, T = (v.ravel() for v in np.meshgrid(SIZES, TOKENS))
    penalty = paper.curvature(np.log(done.lr / paper.lr(N, T)), np.log(done.B / paper.batch(N, T)))
    assert done.excess == pytest.approx(penalty.mean(), rel=0.02)
    assert done.wasted == pytest.approx(1 - done.N_opt / done.N_fixed)
    assert done.ratio[0] == pytest.approx(done.N_fixed / done.N_opt)


def test_a_chosen_pair(paper, cost):
    done = compare(ledger_with(paper, 0), cost, pair=(2e-4, 1e5), C=1e21)
    assert (done.lr, done.B, done.C) == (2e-4, 1e5, 1e21)
    assert "times [" in done.text()
