"""A sweep's bar moves with the tokens that its running cells have trained."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.sweeps.sweeps import write_sweep
from videoscaling.sweeps import progress as sweep_progress
from videoscaling.sweeps import status as overview
from videoscaling.sweeps.cost import flops_of
from videoscaling.sweeps.grid import Sweep, load_sweep
from videoscaling.sweeps.progress import SweepProgress
from videoscaling.training.run import Run

META = {"latent_shape": [4, 2, 4, 4], "fingerprint": "f00d"}


class Bar:
    """What a bar was given last."""

    def __init__(self, total: float, name: str, unit: str, **more: Any) -> None:
        self.values: dict[str, Any] = {"total": total, "done": more["done"]}

    def set(self, done: float, **more: Any) -> None:
        self.values = {"done": done, **more}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Four cells of 1280 tokens in all."""
    keys = {"batch_tokens": [32], "lr": [1e-3, 2e-3, 3e-3, 4e-3], "executor": {"workers": 2}}
    return load_sweep(write_sweep(tmp_path, tmp_path / "none", **keys), [], lambda config: META)


def logged(cell: Run, tokens: int, speed: float = 10.0, share: float = 1.0) -> None:
    """A running cell has logged a line."""
    cell.config.run_dir.mkdir(parents=True, exist_ok=True)
    (cell.config.run_dir / "config.yaml").touch()
    values = {"step": tokens // 32, "tokens": tokens, "tokens_per_second": speed, "share": share}
    with (cell.config.run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(values) + "\n")


def result(cell: Run, status: str, tokens: int) -> None:
    values = {"status": status, "run_id": cell.config.run_dir.name, "tokens": tokens, "flops": 0.0, "milestones": []}
    if status == "done":
        values["milestones"] = [{"nominal": m, "ema_val_loss": 1.0} for m in cell.config.train.milestones]
    (cell.config.run_dir / "result.json").write_text(json.dumps(values))


@pytest.fixture
def progress(sweep: Sweep) -> SweepProgress:
    return SweepProgress(sweep, overview.states_of(sweep), Bar, Clock())


def test_it_moves_while_cells_run_stacked_ones_too(sweep: Sweep, progress: SweepProgress) -> None:
    cell = flops_of(sweep.cells[0])
    assert progress.bar.values == {
        "done": 0,
        "total": 4 * cell,
        "note": "0/4 cells",
        "left": pytest.approx(math.nan, nan_ok=True),
    }
    logged(sweep.cells[0], 320, speed=8.0)
    logged(sweep.cells[1], 640, speed=4.0, share=0.5)
    logged(sweep.cells[2], 640, speed=4.0, share=0.5)
    progress.look(sweep.cells[:3])
    assert progress.bar.values["done"] == pytest.approx((0.25 + 0.5 + 0.5) * cell)
    # 8 tokens a second of each process, two processes: 960 + 640 + 640 + 1280 tokens are left.
    assert progress.bar.values["left"] == pytest.approx(3520 / 16)
    progress._clock.now = 0.9
    logged(sweep.cells[0], 640)
    progress.look(sweep.cells[:3])
    assert progress.bar.values["done"] == pytest.approx(1.25 * cell)  # not yet a second
    progress._clock.now = 1.0
    progress.look(sweep.cells[:3])
    assert progress.bar.values["done"] == pytest.approx(1.5 * cell)


def test_a_file_that_has_not_changed_is_not_read_again(
    sweep: Sweep, progress: SweepProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, plain = [], sweep_progress.last_metrics
    monkeypatch.setattr(sweep_progress, "last_metrics", lambda folder: read.append(folder) or plain(folder))
    logged(sweep.cells[0], 320)
    for second in range(5):
        progress._clock.now = second
        progress.look(sweep.cells[:2])
    assert read == [sweep.cells[0].config.run_dir]


def test_a_slow_disk_is_asked_less_often(
    sweep: Sweep, progress: SweepProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, reads = progress._clock, []

    def slow(cell: Run) -> None:
        reads.append(clock.now)
        clock.now += 0.5

    monkeypatch.setattr(progress, "_read", slow)
    for second in range(30):
        clock.now = max(clock.now, second)
        progress.look(sweep.cells[:1])
    assert reads == [0, 10, 20]  # half a second each, a twentieth of the time


def test_what_is_not_trained_any_more_leaves_the_total(sweep: Sweep, progress: SweepProgress) -> None:
    cell = flops_of(sweep.cells[0])
    for number, (status, tokens) in enumerate((("done", 1280), ("diverged", 320))):
        logged(sweep.cells[number], tokens)
        result(sweep.cells[number], status, tokens)
        progress.settle(sweep.cells[number])
    progress.look([])
    assert progress.bar.values["note"] == "2/4 cells"
    assert progress.bar.values["done"] == pytest.approx(1.25 * cell)
    assert progress.bar.values["total"] == pytest.approx(3.25 * cell)


def test_a_restarted_cell_goes_back_to_its_checkpoint(sweep: Sweep) -> None:
    logged(sweep.cells[0], 640)
    progress = SweepProgress(sweep, overview.states_of(sweep), Bar, Clock())
    assert progress.bar.values["done"] == pytest.approx(0.5 * flops_of(sweep.cells[0]))
    (sweep.cells[0].config.run_dir / "metrics.jsonl").unlink()
    logged(sweep.cells[0], 320)
    progress.look(sweep.cells[:1])
    assert progress.bar.values["done"] == pytest.approx(0.25 * flops_of(sweep.cells[0]))
