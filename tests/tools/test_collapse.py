"""Curves that collapse need one floor; others do not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from videoscaling.scaling.runs import RunTable, read
from videoscaling.tools.benchmarks.collapse import comparisons
from videoscaling.utils.errors import UserError

SIZES = (1000, 4000, 16000)


def table(folder: Path, loss: Callable[[float, float], float], seeds: int = 2) -> RunTable:
    """Runs of ``SIZES`` whose seeds differ by 0.1 % throughout, and one at another rate, of another loss."""
    lines = ["run_id,N,T,B,lr,loss"]
    for N in SIZES:
        for T in (10_000 * 2**power for power in range(6)):
            for seed in range(seeds):
                lines.append(f"{N}s{seed},{N},{T},10,0.1,{loss(N, T) * (1 + 0.001 * seed)}")
            lines.append(f"{N}other,{N},{T},10,0.2,{2 + 1 / T}")
    path = folder / "runs.csv"
    path.write_text("\n".join(lines))
    return read(path)


def test_curves_in_tokens_a_parameter_need_their_own_floor(tmp_path: Path) -> None:
    found = comparisons(table(tmp_path, lambda N, T: 0.3 * 1.0005 + N**-0.2 * (1 + (N / T) ** 0.5)))
    # 1000 with 4000 and 4000 with 16000 at three horizons each, and 1000 with 16000 at one.
    assert len(found) == 7
    for two in found:
        assert two.large.N / two.small.N == two.large.T / two.small.T
        assert two.floor == pytest.approx(0.3, abs=0.002)
        assert two.small.se < 1e-12  # seeds that differ by one factor have one drop
    first = found[0]
    assert (first.small.N, first.small.early_T, first.small.T) == (4000, 10_000, 20_000)


def test_curves_that_fall_alike_at_equal_tokens_need_many_floors(tmp_path: Path) -> None:
    found = comparisons(table(tmp_path, lambda N, T: 0.3 + (1000 / N) ** 0.5 + (1000 / T) ** 0.1))
    floors = [two.floor for two in found]
    assert max(floors) - min(floors) > 0.1


def test_single_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no two sizes have 2 seeds"):
        comparisons(table(tmp_path, lambda N, T: N**-0.2 + T**-0.1, seeds=1))
