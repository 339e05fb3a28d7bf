import csv
import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from tests.scaling import simulate
from videoscaling.models.sizes import smooth_width
from videoscaling.scaling import law_file, laws
from videoscaling.scaling.planning import allocation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def paper() -> laws.Law:
    return law_file.load(ROOT / "configs" / "laws" / "paper.json")


@pytest.fixture(scope="session")
def cost() -> allocation.Cost:
    return allocation.c_token(1280, smooth_width)


@pytest.fixture(scope="session")
def public_data():
    """Rows of a public data file, read where it lies: ``$SCALING_DATA``, else next to the repository."""
    folder = Path(os.environ.get("SCALING_DATA", ROOT.parent / "shared" / "data"))

    def rows(name: str) -> list[dict[str, str]]:
        if not (folder / name).exists():
            pytest.skip(f"{name}: public data not here (set SCALING_DATA)")
        with (folder / name).open() as handle:
            return list(csv.DictReader(handle))

    return rows


@pytest.fixture(scope="session")
def figure_4():
    """The paper's figure 4, losses of 1.07B parameters: T -> (lr, B, loss), each [18]."""
    lr = [7.5e-5, 1.1e-4, 1.7e-4, 2.5e-4, 3.8e-4, 5.7e-4]
    B = [8.2e4, 1.6e5, 3.3e5]
    losses = {
        4e9: [
            [0.5206, 0.5198, 0.5194, 0.5200, 0.5195, 0.5202],
            [0.5228, 0.5220, 0.5213, 0.5209, 0.5209, 0.5215],
            [0.5261, 0.5249, 0.5240, 0.5233, 0.5224, 0.5224],
        ],
        1e10: [
            [0.5134, 0.5132, 0.5129, 0.5141, 0.5137, 0.5144],
            [0.5140, 0.5133, 0.5125, 0.5126, 0.5130, 0.5141],
            [0.5158, 0.5150, 0.5141, 0.5140, 0.5140, 0.5133],
        ],
    }
    return {T: (np.tile(lr, 3), np.repeat(B, 6), np.ravel(grid)) for T, grid in losses.items()}


@pytest.fixture(scope="session")
def scattered_grids():
    """Grids of 5 x 5 cells around optima and losses that scatter about a law's.

    ``of_optima`` is the standard deviation of ln B_opt and ln lr_opt from grid to grid, ``of_losses`` of ln loss.
    """

    def scattered(law, sizes, tokens, noise, seed, of_optima=0.0, of_losses=0.0):
        cells, flat = simulate.grid(law, sizes, tokens, 5, 5, 2.0), dataclasses.replace(law, curvature=None)
        table = simulate.run_table(flat, cells, tokens, noise, seed=seed, n_ctx=1280)
        random, loss = np.random.default_rng(10_000 + seed), table.loss.copy()
        for N, T, rows in table.grids():
            x, y, moved = random.standard_normal(3) * (of_optima, of_optima, of_losses)
            x, y = np.log(table.lr[rows] / law.lr(N, T)) - x, np.log(table.B[rows] / law.batch(N, T)) - y
            loss[rows] *= (1 + law.curvature(x, y)) * np.exp(moved)
        return dataclasses.replace(table, loss=loss)

    return scattered
