"""Sweeps that train, for what is said of them afterwards."""

import csv
import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from tests.processes import launch
from tests.processes.launch import ROOT
from tests.sweeps.sweeps import edit
from tests.sweeps.test_plan import planned, sweep  # noqa: F401
from tests.sweeps.test_run import here
from videoscaling.sweeps.grid import load_sweep


def test_a_thousand_pending_cells_are_reported_within_a_second(sweep: Path) -> None:
    """Of processor time, imports included; and torch is not among them."""
    edit(sweep, repeats=500)
    keys = load_sweep(sweep, [], lambda config: {"latent_shape": [4, 2, 4, 4], "fingerprint": "x"})
    assert len(keys.cells) == 1000
    folder = sweep.parent / "runs" / "grid"
    folder.mkdir(parents=True)
    cache = yaml.safe_load((sweep.parent / "base.yaml").read_text())["data"]["cache"]
    begun = {"seed": 0, "caches": [cache], "data": {"latent_shape": [4, 2, 4, 4], "fingerprint": "x"}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(begun))
    command = [sys.executable, "-X", "importtime", str(ROOT / "tools" / "sweep.py"), "status", str(sweep), "--json"]
    done = launch.run(command)
    assert json.loads(done.stdout)["counts"] == {"pending": 1000}
    assert " torch\n" not in done.stderr

    def seconds() -> float:
        before = os.times()
        assert launch.run([*command[:1], *command[3:]]).returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert any(seconds() < 1 for _ in range(3))  # on a busy machine the first may read files from the disk


def test_cells_that_differ_in_tokens_alone_are_one_run(sweep: Path) -> None:
    """A trunk is trained once: every milestone of it is a data point."""
    edit(sweep, sizes=[{"size": "1x32", "milestones": [640]}, {"size": "1x32", "milestones": [1280, 320]}])
    cells = planned(sweep)["cells"]
    assert [c["milestones"] for c in cells] == [[320, 640, 1280]] * 2
    edit(sweep, sizes=[{"size": "1x32", "milestones": [320, 640, 1280]}])
    assert [c["run_id"] for c in planned(sweep)["cells"]] == [c["run_id"] for c in cells]
    here("run", sweep)
    here("collect", sweep)
    rows = list(csv.DictReader((sweep.parent / "runs" / "grid" / "results.csv").read_text().splitlines()))
    assert sorted((row["lr"], row["T"]) for row in rows) == [
        (lr, T) for lr in ("0.001", "0.003") for T in ("1280", "320", "640")
    ]


def test_hours_and_cost_by_a_given_rate_and_by_what_was_measured(sweep: Path) -> None:
    edit(sweep, cost={"flops_per_second": 1e6, "price_per_hour": 2})
    reported = planned(sweep)
    assert reported["device_hours"] == pytest.approx(reported["flops"] / 1e6 / 3600)
    assert reported["cost"] == pytest.approx(2 * reported["device_hours"])
    assert reported["hours"] == pytest.approx(reported["device_hours"] / 2)  # two workers
    assert "not measured" in reported["rate"]
    # The rate is a GPU's: cells that share it are slower each, and the GPU does no more.
    shared = planned(sweep, "executor.runs_per_gpu=2")
    assert shared["device_hours"] == pytest.approx(reported["device_hours"])
    assert shared["cells"][0]["hours"] == pytest.approx(2 * reported["cells"][0]["hours"])
    assert "not measured" in here("run", sweep, "--dry-run")[0]
    here("run", sweep)
    measured = planned(sweep)
    assert measured["rate"] == "measured on 2 cells of this sweep"
    seconds = [json.loads(p.read_text())["seconds"] for p in sweep.parent.glob("runs/grid/*/result.json")]
    # Cells of one N and B share a rate, the geometric mean.
    assert measured["cells"][0]["hours"] * 3600 == pytest.approx((seconds[0] * seconds[1]) ** 0.5)
    assert measured["hours"] == 0


def test_the_sweep_is_one_experiment_in_tensorboard(sweep: Path) -> None:
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    here("run", sweep)
    board = EventMultiplexer()
    board.AddRunsFromDirectory(str(sweep.parent / "runs"))
    board.Reload()
    seeds = {c["lr"]: c["seed"] for c in planned(sweep)["cells"]}
    # Each once: links from a second place listed every cell twice.
    assert sorted(board.Runs()) == sorted(f"grid/tensorboard/1x32_B64_lr{lr:g}_seed{s}" for lr, s in seeds.items())
    assert set(board.PluginRunToTagToContent("hparams")) == set(board.Runs())


def test_committed_results_count(sweep: Path) -> None:
    """A study continues on another machine: what is committed is finished there, and read by collect and fits."""
    committed = sweep.parent / "committed"
    edit(sweep, results=str(committed))
    here("run", sweep)
    here("collect", sweep)
    table = (sweep.parent / "runs" / "grid" / "results.csv").read_text()
    assert {p.name for p in committed.glob("*/*")} == {"result.json", "validation"}
    edit(sweep, out=str(sweep.parent / "elsewhere"))
    assert json.loads(here("status", sweep, "--json")[0])["counts"] == {"done": 2}
    here("run", sweep)
    elsewhere = sweep.parent / "elsewhere" / "grid"
    assert not list(elsewhere.glob("*/checkpoints"))
    here("collect", sweep)
    assert (elsewhere / "results.csv").read_text() == table
    # A later milestone is not in them: that cell is trained.
    edit(sweep, milestones=[640, 1920])
    assert json.loads(here("status", sweep, "--json")[0])["counts"] == {"pending": 2}


def test_a_sweep_of_another_yaml_is_refused_with_the_difference(sweep: Path) -> None:
    here("run", sweep)
    said = here("run", sweep, "config.train.dtype=bfloat16", "seed=3", status=2)[1]
    assert "made by another sweep (seed: 0 -> 3; train.dtype: float32 -> bfloat16)" in said
    # They showed all cells as pending, and collected the runs of the other sweep.
    for command in (("status",), ("collect",), ("extend",), ("run", "--dry-run")):
        said = here(command[0], sweep, *command[1:], "config.train.dtype=bfloat16", status=2)[1]
        assert "made by another sweep (train.dtype: float32 -> bfloat16)" in said
    assert not (sweep.parent / "runs" / "grid" / "results.csv").exists()
    here("run", sweep, "config.train.micro_batch=1")  # how, not what
