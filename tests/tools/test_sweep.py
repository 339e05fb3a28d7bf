"""A sweep loses no cell, runs none twice, and says how it stands."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def sweep(cache: Path, tmp_path: Path) -> Path:
    """A sweep of 2 sizes x 2 rates x 1 batch, one size held out."""
    base = {
        "data": {"cache": str(cache)},
        "optim": {"beta2_half_life": 2e4},
        "validation": {"timesteps": 2},
        "log": {"every_steps": 5},
        "checkpoint": {"every_steps": 10},
    }
    grid = {
        "name": "grid",
        "out": str(tmp_path / "runs"),
        "base": "base.yaml",
        "milestones": [640, 1280],
        "batch_tokens": [64],
        "lr": [1e-3, 3e-3],
        "sizes": [{"size": "1x32"}, {"size": "2x32", "heldout": True}],
        "executor": {"workers": 2, "retries": 1},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(grid))
    return path


def tool(command: str, path: Path, *more: str, status: int = 0) -> subprocess.CompletedProcess:
    out = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "sweep.py"), command, str(path), *more],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert out.returncode == status, out.stderr
    return out


def edit(path: Path, **changes) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def results(path: Path) -> dict[str, dict]:
    folder = Path(yaml.safe_load(path.read_text())["out"]) / "grid"
    return {p.parent.name: json.loads(p.read_text()) for p in folder.glob("*/result.json")}


def test_run_status_collect_and_nothing_twice(sweep: Path) -> None:
    planned = tool("run", sweep, "--dry-run", "--json")
    told, listed = json.loads(planned.stdout), json.loads(planned.stdout)["cells"]
    assert len(listed) == 4
    # Two cells of one size: what no fit could use is said before it is paid for, and run all the same.
    assert planned.stderr == "".join(f"warning: {text}\n" for text in told["warnings"])
    assert any("2 different cells in a grid" in text for text in told["warnings"])
    assert results(sweep) == {}
    assert json.loads(tool("status", sweep, "--json").stdout)["counts"] == {"pending": 4}
    assert planned.stderr in tool("run", sweep).stderr
    first = results(sweep)
    assert set(first) == {cell["run_id"] for cell in listed}
    assert all(r["status"] == "done" and r["run_id"] == name for name, r in first.items())
    assert len({r["seed"] for r in first.values()}) == 4
    tool("run", sweep)
    assert results(sweep) == first
    rows = list(csv.DictReader(tool_out(sweep).splitlines()))
    assert len(rows) == 8
    assert {(row["N"], row["heldout"]) for row in rows} == {("16384", "0"), ("32768", "1")}
    by_id = {(row["run_id"], int(row["T"])): float(row["ema_loss"]) for row in rows}
    for name, result in first.items():
        for milestone in result["milestones"]:
            assert by_id[name, milestone["tokens"]] == milestone["ema_val_loss"]


def tool_out(sweep: Path) -> str:
    out = sweep.parent / "out.csv"
    tool("collect", sweep, "--out", str(out))
    return out.read_text()


def test_a_cell_in_a_sweep_equals_the_same_run_alone(sweep: Path, tmp_path: Path) -> None:
    tool("run", sweep)
    name, result = next(iter(results(sweep).items()))
    config = tmp_path / "runs" / "grid" / name / "config.yaml"
    out = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--config", str(config), "name=alone"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
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
    # The reason is mended: only the failed cell runs again.
    blocked.unlink()
    tool("run", sweep)
    assert json.loads(tool("status", sweep, "--json").stdout)["counts"] == {"diverged": 1, "done": 1}


def test_killed_and_rerun_equals_unbroken(sweep: Path, tmp_path: Path) -> None:
    tool("run", sweep)
    unbroken = {name: r["milestones"] for name, r in results(sweep).items()}
    edit(sweep, out=str(tmp_path / "again"))
    for kill in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tools" / "sweep.py"), "run", str(sweep)],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
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


def still_training(folder: Path) -> bool:
    """Whether any process has a file open under ``folder``."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()).startswith(str(folder)):
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": []}, "an empty grid"),
        ({"lr": []}, "1x32 has no lr"),
        ({"batch_tokens": [100]}, "not a whole number of clips of 32 tokens"),
        ({"szies": []}, "did you mean 'sizes'"),
        ({"sizes": [{"size": "1x32"}, {"size": "1x32", "heldout": True, "lr": [1e-4]}]}, "held out and in the fit"),
        ({"sizes": [{"size": "1x31"}]}, "width must be a multiple of 32"),
        ({"lr": ["fast"]}, "lr"),
    ],
)
def test_bad_sweeps_are_refused_in_one_line(sweep: Path, changes: dict, message: str) -> None:
    edit(sweep, **changes)
    out = tool("run", sweep, status=2)
    assert message in out.stderr
    assert out.stderr.count("\n") == 1
    assert not (sweep.parent / "runs").exists()
