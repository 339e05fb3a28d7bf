import numpy as np
import pytest

from tests.scaling import simulate
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.reporting.sources import Sources

TOKENS = [2e9, 5e9, 12e9]


@pytest.fixture(scope="session")
def swept(paper, cost):
    """(table, law): the paper's law simulated with the largest size held out, and the law fitted to the others."""
    cells = simulate.grid(paper, np.geomspace(0.0168e9, 0.268e9, 4), TOKENS, 5, 5, 2.0)
    table = simulate.run_table(paper, cells, TOKENS, 1e-4, n_ctx=1280)
    table.heldout[:] = np.isclose(table.N, table.N.max())
    return table, fit.fit(table, "all", fit.Options(), cost, {"name": "simulated <law>"}).law


@pytest.fixture(scope="session")
def few(swept):
    """The runs of ``swept`` with the nine middle cells of each grid: a third of the time."""
    table, _ = swept
    middle = np.zeros(len(table), dtype=bool)
    for _, _, rows in table.grids():
        near = [np.isin(v, np.unique(v)[1:4]) for v in (table.lr[rows].round(12), table.B[rows].round(3))]
        middle[rows] = near[0] & near[1]
    return table.rows(middle)


@pytest.fixture(scope="session")
def sources(swept, cost):
    """The report's sources of ``swept``."""
    return Sources.of(*swept, cost)
