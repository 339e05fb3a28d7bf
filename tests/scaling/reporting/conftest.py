import numpy as np
import pytest

from tests.scaling import simulate
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.reporting.sources import Sources

TOKENS = [2e9, 5e9, 12e9]


@pytest.fixture(scope="session")
def swept(paper, cost):
    """(ledger, law): the paper's law simulated with the largest size held out, and the law fitted to the others."""
    cells = simulate.grid(paper, np.geomspace(0.0168e9, 0.268e9, 4), TOKENS, 5, 5, 2.0)
    ledger = simulate.ledger(paper, cells, TOKENS, 1e-4, n_ctx=1280)
    ledger.heldout[:] = np.isclose(ledger.N, ledger.N.max())
    return ledger, fit.fit(ledger, "all", fit.Options(), cost, {"name": "simulated <law>"}).law


@pytest.fixture(scope="session")
def few(swept):
    """The runs of ``swept`` with the nine middle cells of each grid: a third of the time."""
    ledger, _ = swept
    middle = np.zeros(len(ledger), dtype=bool)
    for _, _, rows in ledger.grids():
        near = [np.isin(v, np.unique(v)[1:4]) for v in (ledger.lr[rows].round(12), ledger.B[rows].round(3))]
        middle[rows] = near[0] & near[1]
    return ledger.rows(middle)


@pytest.fixture(scope="session")
def sources(swept, cost):
    """The report's sources of ``swept``."""
    return Sources.of(*swept, cost)
