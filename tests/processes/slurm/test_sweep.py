"""A sweep on a real Slurm: what it trains is what one machine would have trained."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.processes import launch
from tests.processes.launch import ROOT
from tests.processes.slurm.cluster import Cluster, available, wait_until
from tests.sweeps.sweeps import edit, write_sweep
from tests.training.test_data_fault import fault_of
from videoscaling.sweeps.slurm_queue import queue_of
from videoscaling.sweeps.state import FAILURE
from videoscaling.utils.results import Failure, read_failure

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not available(), reason="no Slurm here; .ci/run installs it")]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    with Cluster(folder) as cluster:
        cluster.environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        yield cluster


@pytest.fixture
def sweep(cache: Path, tmp_path: Path) -> Path:
    """A sweep of 8 tiny cells as an array of two-minute jobs, of a CPU each."""
    executor = {
        "kind": "slurm",
        "retries": 1,
        "stack": 1,  # a process for each cell, here and there: to the bit, not to rounding
        "slurm": {"partition": "main", "cpus": 1, "time": 10, "warning_seconds": 30, "setup": ["export SAID=yes"]},
    }
    grid = {"batch_tokens": [32, 64], "lr": [1e-3, 2e-3, 4e-3, 8e-3]}
    return write_sweep(tmp_path, cache, {"checkpoint": {"every_steps": 1000}}, **grid, executor=executor)


def start(slurm: Cluster, tool: str, *words: object) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return launch.popen([sys.executable, ROOT / "tools" / f"{tool}.py", *words], env=slurm.environment, **pipes)


def finish(process: subprocess.Popen, status: int = 0, seconds: float = 600) -> tuple[str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == status, err
    return out, err


def milestones(folder: Path) -> dict[str, list]:
    return {p.parent.name: json.loads(p.read_text())["milestones"] for p in folder.glob("*/result.json")}


def locally(slurm: Cluster, sweep: Path, *more: str) -> dict[str, list]:
    """What the same sweep gives on this machine."""
    out = sweep.parent / "here"
    finish(start(slurm, "sweep", "run", sweep, f"out={out}", "executor.kind=local", *more))
    return milestones(out / "grid")


def test_eight_cells_as_an_array(slurm: Cluster, sweep: Path, tmp_path: Path) -> None:
    """Jobs are shown while they run; the node's daemon is killed and returns; results and law as on one machine."""
    folder = tmp_path / "runs" / "grid"
    run = start(slurm, "sweep", "run", sweep)
    try:
        wait_until(lambda: any("RUNNING" in line for line in slurm.queue()), 120)
        assert len({line.split("_")[0] for line in slurm.queue()}) == 1  # one array
        wait_until(lambda: list(folder.glob("*/config.yaml")) or run.poll() is not None, 300)
        reported = json.loads(finish(start(slurm, "sweep", "status", sweep, "--json"))[0])
        assert sum(reported["counts"].values()) == 8
        assert sum("job" in cell for cell in reported["cells"]) >= 4
        assert "failed" not in reported["counts"]
        # A second one refuses while the first follows.
        assert "another process is working in it" in finish(start(slurm, "sweep", "run", sweep), 2)[1]
        slurm.kill_node("one")
        slurm.start_node("one")
    finally:
        out, err = finish(run)
    assert "8 cells: 8 done" in out, err
    assert milestones(folder) == locally(slurm, sweep)
    assert json.loads(finish(start(slurm, "sweep", "status", sweep, "--json"))[0])["counts"] == {"done": 8}
    finish(start(slurm, "sweep", "collect", sweep))
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + 16
    prior = ROOT / "configs" / "laws" / "paper.json"
    words = ("--method", "grids", "--prior", prior, "--force", "--out", tmp_path / "law.json")
    finish(start(slurm, "fit", "hyperparameters", folder, *words))
    assert json.loads((tmp_path / "law.json").read_text())["lr"]
    jobs = len(list((folder / "slurm").glob("*.json")))
    finish(start(slurm, "sweep", "run", sweep))  # all is finished: nothing is submitted
    assert len(list((folder / "slurm").glob("*.json"))) == jobs == 1


def test_a_warned_job_is_queued_again_and_ends_as_unbroken(slurm: Cluster, sweep: Path, tmp_path: Path) -> None:
    edit(sweep, milestones=[64_000, 128_000], batch_tokens=[32], lr=[1e-3, 2e-3])
    folder = tmp_path / "runs" / "grid"
    run = start(slurm, "sweep", "run", sweep)
    try:
        wait_until(lambda: len(list(folder.glob("*/metrics.jsonl"))) == 2, 300)
        tasks = slurm.run("squeue", "-h", "-r", "-o", "%A").stdout.split()
        assert len(tasks) == 2
        # Twice, as a nervous cluster might.
        for _ in range(2):
            assert slurm.run("scancel", "--signal=USR2", *tasks).returncode == 0
        wait_until(lambda: slurm.queue() and all("PENDING" in line for line in slurm.queue()), 120)
        stopped = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("*/result.json")}
        assert {result["status"] for result in stopped.values()} == {"preempted"}
        assert all(0 < result["tokens"] < 128_000 for result in stopped.values())
        # The process that follows is killed: the next one takes the jobs over, and submits none twice.
        run.send_signal(signal.SIGKILL)
        run.wait()
        run = start(slurm, "sweep", "run", sweep)
    finally:
        finish(run)
    assert len(list((folder / "slurm").glob("*.json"))) == 1
    assert slurm.run("squeue", "-h").stdout == ""
    assert milestones(folder) == locally(slurm, sweep)


def test_ctrl_c_leaves_the_jobs_and_a_lost_one_is_submitted_again(slurm: Cluster, sweep: Path, tmp_path: Path) -> None:
    edit(sweep, milestones=[128_000], batch_tokens=[32], lr=[1e-3, 2e-3, 4e-3])
    grid = yaml.safe_load(sweep.read_text())
    grid["executor"]["slurm"] |= {"runs_per_job": 3, "cpus": 2}  # a pool of two inside one job
    sweep.write_text(yaml.safe_dump(grid))
    folder = tmp_path / "runs" / "grid"
    run = start(slurm, "sweep", "run", sweep)
    wait_until(lambda: len(list(folder.glob("*/metrics.jsonl"))) == 2, 300)
    for _ in range(2):
        run.send_signal(signal.SIGINT)
    _, err = finish(run, 75, 60)
    assert "the jobs continue without this command" in err
    (job,) = {line.split("_")[0] for line in slurm.queue()}
    slurm.run("scancel", "--signal=KILL", "--full", job)
    wait_until(lambda: not slurm.queue(), 60)
    assert queue_is_empty(slurm, folder)
    reported = json.loads(finish(start(slurm, "sweep", "status", sweep, "--json"))[0])
    counts = reported["counts"]
    assert counts.pop("pending") == 1
    # On one core the first cell may be done before the second has begun.
    assert counts.pop("done", 0) <= 1
    # A cell whose pool is killed a moment before it may still write its checkpoint.
    assert set(counts) <= {"lost", "stopped"}
    assert counts
    finish(start(slurm, "sweep", "run", sweep))
    assert {len(m) for m in milestones(folder).values()} == {1}
    assert len(milestones(folder)) == 3


def queue_is_empty(slurm: Cluster, folder: Path) -> bool:
    before = dict(os.environ)
    os.environ.update(slurm.environment)
    try:
        return queue_of(folder) == {}
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_a_cell_over_two_nodes(slurm: Cluster, sweep: Path, tmp_path: Path) -> None:
    """torchrun inside the job: a process on each node, and the losses of one process but for rounding."""
    edit(sweep, milestones=[6400], batch_tokens=[64], lr=[1e-3])
    alone = locally(slurm, sweep)
    grid = yaml.safe_load(sweep.read_text())
    grid["executor"]["slurm"] |= {"nodes": 2, "partition": "both"}
    sweep.write_text(yaml.safe_dump(grid))
    finish(start(slurm, "sweep", "run", sweep))
    folder = tmp_path / "runs" / "grid"
    (path,) = folder.glob("*/result.json")
    assert json.loads(path.read_text())["processes"] == 2
    ((name, (both,)),) = milestones(folder).items()
    assert both["ema_val_loss"] == pytest.approx(alone[name][0]["ema_val_loss"], rel=1e-5)


def test_a_fault_of_the_data_ends_the_sweep_and_its_jobs(
    slurm: Cluster, sweep: Path, cache: Path, tmp_path: Path
) -> None:
    """Two of the eight jobs run when the first meets it; none is tried again."""
    copy = shutil.copytree(cache, tmp_path / "copy")
    message = fault_of(copy, "train latents")
    edit(sweep, milestones=[64_000], config={"data": {"cache": str(copy)}})
    _, err = finish(start(slurm, "sweep", "run", sweep), 2)
    last = err.strip().splitlines()[-1]
    assert re.fullmatch(f"error: {message}; then run the sweep again: .* read the same data", last), err
    wait_until(lambda: not slurm.queue(), 60)
    folder = tmp_path / "runs" / "grid"
    assert len(list((folder / "slurm").glob("*.json"))) == 1
    assert not list(folder.glob("*/checkpoints/*"))
    failures = [read_failure(path) for path in folder.glob(f"*/{FAILURE}")]
    assert 1 <= len(failures) <= 4
    for failure in failures:
        assert re.fullmatch(message, failure.reason)
        assert failure == Failure(failure.reason, attempts=1, exit_status=2, data_fault=True)
    counts = json.loads(finish(start(slurm, "sweep", "status", sweep, "--json"), 1)[0])["counts"]
    assert counts["failed"] == len(failures)
    assert counts["pending"] >= 4


@pytest.mark.parametrize(
    ("slurm_keys", "message"),
    [
        ({"partition": "nope"}, "sbatch refuses: invalid partition specified: nope"),
        ({"options": {"exclud": "two"}}, "sbatch knows no --exclud; did you mean 'exclude'?"),
        ({"partiton": "main"}, "unknown key executor.slurm.partiton; did you mean 'partition'?"),
    ],
)
def test_what_slurm_refuses_is_one_line(slurm: Cluster, sweep: Path, slurm_keys: dict, message: str) -> None:
    grid = yaml.safe_load(sweep.read_text())
    grid["executor"]["slurm"] |= slurm_keys
    sweep.write_text(yaml.safe_dump(grid))
    _, err = finish(start(slurm, "sweep", "run", sweep), 2)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in err
    assert not list(sweep.parent.glob("runs/grid/slurm/*.json"))


def test_nothing_is_left_of_a_cluster(tmp_path: Path) -> None:
    """And what merely asks it, such as a shell where its address was exported, is left alone."""
    asking = []

    def broken() -> None:
        with Cluster(tmp_path / "c") as cluster:
            asking.append(launch.popen(["sleep", "600"], env=cluster.environment))
            cluster.run("sbatch", "--wrap", "sleep 100", "--output", "/dev/null")
            wait_until(lambda: any("RUNNING" in line for line in cluster.queue()), 30)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert asking[0].poll() is None
    asking[0].kill()
    asking[0].wait()
    marker = str(tmp_path / "c").encode()
    left = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            left += [path] * any(marker in (path / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue
    assert not left
    shutil.rmtree(tmp_path / "c")
