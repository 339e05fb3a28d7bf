"""A sweep loses no cell, runs none twice, and says how it stands."""

import csv
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.processes import launch
from tests.processes.launch import ROOT
from tests.processes.sweeps.commands import results, still_training, table, tool, tool_alone
from tests.sweeps.sweeps import edit
from tests.sweeps.test_run import sweep  # noqa: F401


@pytest.mark.parametrize(
    "run", [tool, pytest.param(tool_alone, marks=pytest.mark.slow)], ids=["this process", "process"]
)
def test_run_status_collect_and_nothing_twice(sweep: Path, run: Callable[..., Any]) -> None:
    planned = tool("run", sweep, "--dry-run", "--json")
    reported, listed = json.loads(planned.stdout), json.loads(planned.stdout)["cells"]
    assert len(listed) == 4
    # Two cells of one size: what no fit could use is said before it is paid for, and run all the same.
    assert planned.stderr == "".join(f"warning: {text}\n" for text in reported["warnings"])
    assert any("no size has 3 learning rates" in text for text in reported["warnings"])
    assert results(sweep) == {}
    assert json.loads(tool("status", sweep, "--json").stdout)["counts"] == {"pending": 4}
    assert planned.stderr in run("run", sweep).stderr
    first = results(sweep)
    assert set(first) == {cell["run_id"] for cell in listed}
    assert all(r["status"] == "done" and r["run_id"] == name for name, r in first.items())
    assert len({r["seed"] for r in first.values()}) == 4
    tool("run", sweep)
    assert results(sweep) == first
    rows = list(csv.DictReader(table(sweep).splitlines()))
    assert len(rows) == 8
    assert {(row["N"], row["heldout"]) for row in rows} == {("16384", "0"), ("32768", "1")}
    by_id = {(row["run_id"], int(row["T"])): float(row["ema_loss"]) for row in rows}
    for name, result in first.items():
        for milestone in result["milestones"]:
            assert by_id[name, milestone["tokens"]] == milestone["ema_val_loss"]


@pytest.mark.slow
def test_a_cell_in_a_sweep_equals_the_same_run_alone(sweep: Path, tmp_path: Path) -> None:
    tool("run", sweep)
    name, result = next(iter(results(sweep).items()))
    config = tmp_path / "runs" / "grid" / name / "config.yaml"
    out = launch.python("train.py", "--config", config, "name=alone")
    assert out.returncode == 0, out.stderr
    alone = json.loads((tmp_path / "runs" / "alone" / "result.json").read_text())
    assert alone["milestones"] == result["milestones"]
    assert alone["run_id"] == name


def test_divergence_is_a_result_and_a_crash_a_failure(sweep: Path, tmp_path: Path) -> None:
    edit(sweep, sizes=[{"size": "1x32", "lr": [1e-3, 1e30]}])
    base = yaml.safe_load((tmp_path / "base.yaml").read_text())
    base["optim"]["clip"] = 1e30
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    # A file where the run wants a folder: this cell cannot but crash, at every attempt.
    ids = {c["lr"]: c["run_id"] for c in json.loads(tool("run", sweep, "--dry-run", "--json").stdout)["cells"]}
    blocked = tmp_path / "runs" / "grid" / ids[1e-3] / "validation"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")
    out = tool("run", sweep, status=1)
    counts = json.loads(tool("status", sweep, "--json", status=1).stdout)["counts"]
    assert counts == {"diverged": 1, "failed": 1}
    assert f"failed grid/{ids[1e-3]}" in out.stdout
    # The reason is fixed: only the failed cell runs again.
    blocked.unlink()
    tool("run", sweep)
    assert json.loads(tool("status", sweep, "--json").stdout)["counts"] == {"diverged": 1, "done": 1}


@pytest.mark.slow
def test_killed_and_rerun_equals_unbroken(sweep: Path, tmp_path: Path) -> None:
    tool("run", sweep)
    unbroken = {name: r["milestones"] for name, r in results(sweep).items()}
    edit(sweep, out=str(tmp_path / "again"))
    for kill in (signal.SIGKILL, signal.SIGTERM):
        process = launch.popen([sys.executable, ROOT / "tools" / "sweep.py", "run", sweep])
        deadline = time.monotonic() + 60
        while process.poll() is None and not list((tmp_path / "again").glob("grid/*/metrics.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(kill)
        process.wait(60)
    # Cells whose sweep was killed stop by themselves: nothing is left running.
    deadline = time.monotonic() + 30
    while still_training(tmp_path / "again"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    tool("run", sweep)
    assert {name: r["milestones"] for name, r in results(sweep).items()} == unbroken
