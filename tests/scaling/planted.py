"""A planted surface's runs as cells and as a table: an open valley in B, so that B_opt is unknown."""

from pathlib import Path

import numpy as np

from videoscaling.scaling.fitting.surface.cells import Cells

SLOPE, RATE_T, RATE_N, BATCH_T, BATCH_N = 0.5, -0.15, -0.20, 0.5, -0.1
COST_LR, COST_B = 0.02, 0.05
NOISE, CLIP = 0.003, 100.0


def ln_loss(N, T, B, lr):
    """ln loss without noise, of a joint form with k = 1."""
    n, t, b = np.log(np.divide(N, 4e6)), np.log(np.divide(T, 4e8)), np.log(np.divide(B, 3e3))
    x = np.log(np.divide(lr, 1e-3)) - SLOPE * b - RATE_T * t - RATE_N * n
    z = b - BATCH_T * t - BATCH_N * n
    level = np.log(0.6 * np.exp(-0.2 * n) + 0.5 * np.exp(-0.25 * t) + 0.8)
    return level + COST_LR * x**2 / 2 + COST_B * np.logaddexp(0, z)


def best_rate(B, T, N):
    return 1e-3 * np.divide(B, 3e3) ** SLOPE * np.divide(T, 4e8) ** RATE_T * np.divide(N, 4e6) ** RATE_N


def cells(seed: int = 0, sizes: int = 4, times: int = 3) -> Cells:
    """Five rates around the best at each of four batches; a run's milestones err together."""
    random = np.random.default_rng(seed)
    axes = (np.geomspace(1e6, 2e7, sizes), np.geomspace(1e8, 2e9, times), CLIP * 5.0 ** np.arange(4))
    N, T, B, factor = (v.ravel() for v in np.meshgrid(*axes, np.exp(np.linspace(-1.6, 1.6, 5)), indexing="ij"))
    lr = best_rate(B, 4e8, N) * factor
    run = np.unique(np.stack([N, B, lr], axis=1), axis=0, return_inverse=True)[1].ravel()
    noise = NOISE * (0.9 * random.standard_normal(run.max() + 1)[run] + 0.44 * random.standard_normal(len(N)))
    return Cells.of_arrays(N, T, B, lr, np.exp(ln_loss(N, T, B, lr) + noise), run=run, n_ctx=CLIP)


def write_table(table: Cells, path: Path) -> Path:
    """The cells as a CSV that fit.py reads."""
    lines = ["run_id,N,T,B,lr,loss,n_ctx"]
    columns = zip(table.run, table.N, table.T, table.B, table.lr, table.loss)
    lines += [f"r{run},{N:.9g},{T:.9g},{B:.9g},{lr:.9g},{loss:.9g},100" for run, N, T, B, lr, loss in columns]
    path.write_text("\n".join(lines) + "\n")
    return path
