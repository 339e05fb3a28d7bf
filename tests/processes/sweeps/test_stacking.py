"""A sweep that trains the rates of a row in one process: the same cells, the same states, the same numbers."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.processes import launch
from tests.processes.launch import ROOT
from tests.processes.sweeps.commands import results, tool, tool_alone
from tests.sweeps.sweeps import edit, write_sweep

# Put on the path of every process: one that trains a cell of some rate, alone or with others, ends by itself.
SITE = """
import multiprocessing.process, os

plain = multiprocessing.process.BaseProcess.run

def run(self):
    first = self._args[0] if self._args else None
    configs = first if isinstance(first, list) else [first]
    if any(hasattr(config, "optim") and config.optim.lr == 0.0041 for config in configs):
        os._exit(9)
    plain(self)

multiprocessing.process.BaseProcess.run = run
"""


@pytest.fixture
def sweep(cache: Path, tmp_path: Path) -> Path:
    """A sweep of two rows of three rates on two workers, each row a stack."""
    base = {
        "optim": {"beta2_half_life": 2e4, "clip": 1e30},
        "checkpoint": {"every_steps": 4},
        "log": {"every_steps": 5},
    }
    executor = {"workers": 2}  # of one thread each: two threads wait for each other on a busy machine
    return write_sweep(tmp_path, cache, base, batch_tokens=[32, 64], lr=[1e-3, 2e-3, 4e-3], executor=executor)


def close(found: dict[str, dict], wanted: dict[str, dict]) -> None:
    assert found.keys() == wanted.keys()
    for name, theirs in wanted.items():
        ours = found[name]
        assert {k: ours[k] for k in ("status", "lr", "B", "seed", "tokens")} == {
            k: theirs[k] for k in ("status", "lr", "B", "seed", "tokens")
        }
        for mine, yours in zip(ours["milestones"], theirs["milestones"], strict=True):
            assert mine.keys() == yours.keys()
            for key in yours.keys() - {"losses_crc32"}:  # of losses that differ in their last bits
                assert mine[key] == pytest.approx(yours[key], rel=1e-4 if key.endswith("_se") else 1e-5), key


@pytest.mark.slow
def test_a_stacked_sweep_is_the_sweep(sweep: Path, tmp_path: Path) -> None:
    tool("run", sweep)
    stacked = results(sweep)
    rows: dict[int, set] = {}
    for name, result in stacked.items():
        rows.setdefault(result["B"], set()).add(result["config"]["data"]["seed"])
        console = (tmp_path / "runs" / "grid" / name / "console.log").read_text()
        assert console.count(f"grid/{name}: ") == 2  # its own beginning and end
        assert console.count(": 1x32: N") == 1
        assert "attention plain" in console
    assert rows[32] == rows[64]  # of all cells of a size, so that its grid is compared on the same samples
    assert [len(seeds) for seeds in rows.values()] == [1, 1]
    assert len({result["seed"] for result in stacked.values()}) == 6
    edit(sweep, out=str(tmp_path / "alone"), executor={"workers": 2, "stack": 1})
    tool("run", sweep)
    assert "attention sdpa" in next((tmp_path / "alone" / "grid").glob("*/console.log")).read_text()
    close(stacked, results(sweep))


@pytest.mark.slow
def test_one_that_ends_its_process_takes_no_other_along(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    edit(sweep, lr=[1e-3, 4.1e-3, 1e30], batch_tokens=[64], executor={"workers": 2, "retries": 1, "stack": 3})
    tool_alone("run", sweep, status=1)
    reported = json.loads(tool("status", sweep, "--json", status=1).stdout)
    assert reported["counts"] == {"done": 1, "diverged": 1, "failed": 1}
    (failed,) = (cell for cell in reported["cells"] if cell["state"] == "failed")
    assert failed["attempts"] == 2  # alone: what it did to the stack was nobody's yet


@pytest.mark.slow
def test_killed_in_mid_stack_and_finished_alone(sweep: Path, tmp_path: Path) -> None:
    edit(sweep, milestones=[1280], executor={"workers": 2, "stack": 3})
    process = launch.popen([sys.executable, ROOT / "tools" / "sweep.py", "run", sweep])
    folder, end = tmp_path / "runs" / "grid", time.monotonic() + 300
    try:
        while len(list(folder.glob("*/checkpoints/step_*"))) < 3:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not any(result["status"] == "done" for result in results(sweep).values())
    tool("run", sweep, "executor.stack=1")
    killed = results(sweep)
    edit(sweep, out=str(tmp_path / "unbroken"))
    tool("run", sweep)
    close(killed, results(sweep))


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        ({"stack": "all"}, "executor.stack=all: auto, or how many"),
        ({"stack": 0}, "executor.stack=0: auto, or how many"),
        ({"stack": 4, "processes": 2}, "executor.stack=4: cells of several processes"),
        ({"stop_hopeless": True}, "executor.stop_hopeless: no cell is stopped early any more; remove the key"),
    ],
)
def test_stacks_that_cannot_be_are_refused(sweep: Path, executor: dict, said: str) -> None:
    edit(sweep, executor=executor)
    out = tool("run", sweep, status=2)
    assert out.stderr.count("\n") == 1
    assert said in out.stderr
