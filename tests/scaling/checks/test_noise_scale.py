"""The gradient noise scale of runs beside the law's batch: planted ratios, printed, drawn and kept in tables."""

import numpy as np
import pytest

from tests.commands import call
from tests.scaling import simulate
from videoscaling.scaling import PAPER, law_file, runs
from videoscaling.scaling.checks.noise_scale import noise_scales

TOKENS = [2e9, 5e9, 12e9]
LAW = law_file.load(PAPER)


@pytest.fixture(scope="module")
def swept():
    """Runs whose noise scale is half the law's B_opt, and far from it where they are badly trained."""
    cells = simulate.grid(law=LAW, N=np.geomspace(2e7, 2e8, 3), T=TOKENS, batches=4, rates=4, factor=2.0)
    table = simulate.run_table(LAW, cells, TOKENS, 1e-4, n_ctx=1280)
    for _, _, rows in table.grids():
        best = 0.5 * LAW.batch(table.N[rows], table.nominal_T[rows])
        table.noise_scale[rows] = np.where(table.loss[rows] <= 1.02 * table.loss[rows].min(), best, 30 * best)
    return table


def test_a_grid_has_the_median_of_its_runs_near_the_best(swept) -> None:
    found = noise_scales(swept)
    assert len(found) == 9
    for N, T, tokens in found:
        assert tokens == pytest.approx(0.5 * LAW.batch(N, T))
    assert noise_scales(simulate.run_table(LAW, [(2e7, 1e5, 1e-3)], TOKENS, 1e-4, n_ctx=1280)) == []


@pytest.mark.parametrize("method", ["grids", "surface"])
def test_fit_prints_the_ratio_for_each_size_and_tokens(swept, tmp_path, method) -> None:
    runs.write_csv(swept, tmp_path / "runs.csv")
    status, out, _ = call("tools/fit.py", "hyperparameters", tmp_path / "runs.csv", "--method", method)
    lines = [line for line in out.splitlines() if line.startswith("noise scale at N ")]
    assert (status, len(lines)) == (0, 9)
    for line in lines:
        assert line.endswith("times B_opt")
        ratio, low, high = (float(word.strip("[],")) for word in line.partition("tokens, ")[2].split()[:3])
        assert ratio == pytest.approx(0.5, rel=0.1)
        assert low < ratio < high


def test_tables_without_the_column_stay_as_they_are(swept, tmp_path) -> None:
    plain = simulate.run_table(LAW, [(2e7, 1e5, 1e-3)], TOKENS, 1e-4, n_ctx=1280)
    for name, table in (("plain", plain), ("measured", swept)):
        runs.write_csv(table, tmp_path / name)
        columns = (tmp_path / name).read_text().splitlines()[0].split(",")
        assert ("noise_scale" in columns) == (name == "measured")
        np.testing.assert_array_equal(runs.read(tmp_path / name).noise_scale, table.noise_scale)
