"""A sweep on this machine's own pool: what crashes, diverges, falls behind or is killed costs no other cell."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import launch
from tests.processes.launch import ROOT
from tests.processes.sweeps.commands import results, still_training, table, tool, tool_alone
from tests.sweeps.sweeps import edit, write_sweep
from tests.sweeps.test_run import here
from videoscaling.sweeps import directory as module

# Put on the path of every process: cells of some rates end by themselves, one of them only twice.
SITE = """
import multiprocessing.process, os, pathlib

plain = multiprocessing.process.BaseProcess.run

def run(self):
    config = self._args[0] if self._args else None
    lr = config.optim.lr if hasattr(config, "optim") else None
    if lr == 0.0041:
        print("always", flush=True)
        os._exit(9)
    if lr == 0.0042:
        tries = pathlib.Path(os.environ["TRIES"])
        tries.write_text((tries.read_text() if tries.exists() else "") + "x")
        if len(tries.read_text()) < 3:
            os._exit(9)
    plain(self)

multiprocessing.process.BaseProcess.run = run
"""


@pytest.fixture
def sweep(cache: Path, tmp_path: Path) -> Path:
    """A sweep of 6 cells on 2 workers."""
    base = {
        "optim": {"beta2_half_life": 2e4, "clip": 1e30},
        "validation": {"timesteps": 1},
        "checkpoint": {"every_steps": 5},
        "log": {"every_steps": 5},
    }
    executor = {"workers": 2, "retries": 2, "stack": 1}  # stacks have tests of their own
    return write_sweep(tmp_path, cache, base, batch_tokens=[32, 64], lr=[1e-3, 2e-3, 4e-3], executor=executor)


@pytest.mark.slow
def test_one_diverges_one_crashes_twice_and_one_always(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("TRIES", str(tmp_path / "tries"))
    grid = {"size": "1x32", "lr": [1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3], "batch_tokens": [32, 64, 96, 128]}
    odd = {"size": "1x32", "lr": [1e30, 4.1e-3, 4.2e-3], "batch_tokens": [64]}
    other = {"size": "2x32", "lr": [1e-3], "batch_tokens": [64]}
    edit(sweep, sizes=[grid, odd, other], milestones=[640])
    out = tool_alone("run", sweep, status=1)
    reported = json.loads(tool("status", sweep, "--json", status=1).stdout)
    assert reported["counts"] == {"done": 22, "diverged": 1, "failed": 1}
    (failed,) = (cell for cell in reported["cells"] if cell["state"] == "failed")
    assert f"failed grid/{failed['run_id']}: " in out.stdout
    assert failed["name"].startswith("1x32_B64_lr0.0041_")
    assert failed["attempts"] == 3
    assert len((tmp_path / "tries").read_text()) == 3


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")  # noqa: PTH110
@pytest.mark.parametrize("stack", [1, 2], ids=["alone", "stacked"])
def test_a_console_log_on_a_full_disk_ends_no_cell(stack: int, cache: Path, tmp_path: Path) -> None:
    """No result is made of it, and its error named no file."""
    sweep = write_sweep(
        tmp_path,
        cache,
        {"validation": {"timesteps": 1}, "log": {"every_steps": 1}},
        milestones=[640],
        lr=[1e-3, 2e-3],
        batch_tokens=[64],
        executor={"workers": 1, "stack": stack},
    )
    for cell in json.loads(tool("status", sweep, "--json").stdout)["cells"]:
        console = tmp_path / "runs" / "grid" / cell["run_id"] / "console.log"
        console.parent.mkdir(parents=True)
        console.symlink_to("/dev/full")
    tool("run", sweep)
    assert len(results(sweep)) == 2


def killed_and_rerun(sweep: Path, kills: int, seconds: tuple[float, float]) -> None:
    """SIGKILL at random moments, the same command again each time: the table is the unbroken one's."""
    tool("run", sweep)
    unbroken = table(sweep)
    edit(sweep, out=str(sweep.parent / "again"))
    chance = random.Random(7)
    killed = 0
    for _ in range(kills):
        process = launch.popen([sys.executable, ROOT / "tools" / "sweep.py", "run", sweep])
        try:
            process.wait(chance.uniform(*seconds))
        except subprocess.TimeoutExpired:
            killed += 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed  # else nothing was tested
    tool("run", sweep)
    assert table(sweep) == unbroken
    deadline = time.monotonic() + 30
    while still_training(sweep.parent / "again"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_killed_twice(sweep: Path) -> None:
    killed_and_rerun(sweep, 2, (4, 9))


@pytest.mark.slow
def test_killed_ten_times(sweep: Path) -> None:
    edit(sweep, lr=[1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3], batch_tokens=[32, 64, 96, 128])
    killed_and_rerun(sweep, 10, (1, 12))


@pytest.mark.slow
def test_a_cell_of_two_processes(sweep: Path) -> None:
    edit(sweep, milestones=[640], batch_tokens=[64], lr=[1e-3])
    tool("run", sweep)
    ((name, alone),) = results(sweep).items()
    edit(sweep, out=str(sweep.parent / "two"), executor={"processes": 2})
    tool("run", sweep)
    both = results(sweep)[name]
    assert both["processes"] == 2
    assert both["milestones"][0]["ema_val_loss"] == pytest.approx(alone["milestones"][0]["ema_val_loss"], rel=1e-5)


OVERHEAD = """
import resource, sys, time
from videoscaling.sweeps import local as pool
from videoscaling.sweeps.grid import load_sweep

def quick(values, share):
    pass

if __name__ == "__main__":
    sweep = load_sweep(sys.argv[1], ["repeats=34"], lambda config: {"latent_shape": [4, 2, 4, 4], "fingerprint": "x"})
    pool._train_cell = quick
    seen = []
    with pool.Interrupt() as interrupt:
        keys = sweep.keys.executor
        keys.retries = 0
        pool.run_cells(sweep.cells[:1], keys, lambda run, outcome: None, interrupt)
        before = time.process_time()
        pool.run_cells(sweep.cells[1:], keys, lambda run, outcome: seen.append(outcome), interrupt)
        print((time.process_time() - before) / len(seen))
"""


@pytest.mark.slow
def test_a_cell_costs_its_scheduler_little(sweep: Path, tmp_path: Path) -> None:
    """Processor time of the pool for each of two hundred cells that end at once."""
    (tmp_path / "overhead.py").write_text(OVERHEAD)
    environment = launch.environment(PYTHONPATH=f"{ROOT}:{tmp_path}")
    out = launch.run([sys.executable, tmp_path / "overhead.py", sweep], env=environment)
    assert out.returncode == 0, out.stderr
    print(f"{1e3 * float(out.stdout):.1f} ms")
    assert float(out.stdout) < 0.05


def test_a_full_disk_is_one_line(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep's own file does not fit: nothing half-written is left of it."""

    def full(config: object, path: Path) -> None:
        path.write_text("half of it")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(module.OmegaConf, "save", full)
    said = here("run", sweep, status=2)[1].splitlines()
    assert said[-1].startswith(f"error: {sweep.parent / 'runs' / 'grid' / 'sweep.yaml'}: disk full; free some space")
    assert not [line for line in said if not line.startswith(("warning: ", "error: "))]
    assert {path.name for path in (sweep.parent / "runs" / "grid").iterdir()} == {".lock"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_second_signal_does_not_change_the_status_of_one_who_leaves(number: int) -> None:
    lines = ["import os, sys", "from videoscaling.sweeps.local import Interrupt"]
    lines += ["with Interrupt() as interrupt:", f"    os.kill(os.getpid(), {int(number)})"]
    lines += [f"os.kill(os.getpid(), {int(number)})", "sys.exit(130 if interrupt.caught else 0)"]
    assert launch.python("-c", "\n".join(lines), cwd=ROOT).returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_asked_twice_to_stop(sweep: Path, number: int) -> None:
    """Every process of it, as a terminal and Slurm do; cells checkpoint, and the same command continues."""
    edit(sweep, milestones=[640, 6400])
    tool("run", sweep)
    unbroken = table(sweep)
    edit(sweep, out=str(sweep.parent / "again"))
    command = [sys.executable, ROOT / "tools" / "sweep.py", "run", sweep]
    process = launch.popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((sweep.parent / "again").glob("grid/*/metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, number)
    time.sleep(0.1)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=launch.PATIENCE)
    assert process.returncode == 75, err
    assert err.splitlines()[-1].endswith("again/grid: stopped; the same command continues")
    assert not still_training(sweep.parent / "again")
    assert not list((sweep.parent / "again").glob("grid/*/failure.json"))
    tool("run", sweep)
    assert table(sweep) == unbroken
