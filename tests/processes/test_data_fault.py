"""A fault of the data stops all processes of a run with one line, and a sweep at its first cell that meets it."""

import re
import shutil
from pathlib import Path

import pytest

from tests.processes.sweeps.commands import results, tool
from tests.processes.trainings import finish, start, train_it
from tests.sweeps.sweeps import write_sweep
from tests.training.test_data_fault import fault_of
from tests.training.test_trainer import overrides
from videoscaling.sweeps.state import FAILURE
from videoscaling.training.checkpoints.checkpoint import checkpoint_paths
from videoscaling.utils.results import DATA_FAULT, Failure, read_failure


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    return shutil.copytree(cache, tmp_path / "cache")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("place", ["train latents", "validation text"])
def test_all_processes_stop_with_one_line(copy: Path, tmp_path: Path, parallel: str, place: str) -> None:
    """Of one process's share of a step, half of whose clips the other reads."""
    message = fault_of(copy, place)
    keys = (f"train.parallel={parallel}", "train.tokens=25600", "log.every_steps=10", "checkpoint.every_steps=100")
    log = tmp_path / "log"
    codes = finish(start(log, train_it, overrides(copy, tmp_path, "x", *keys), world=2))
    texts = [(log / str(rank)).read_text() for rank in range(2)]
    assert codes == [2, 2], texts
    assert [len(re.findall(f"error: {message}\n", text)) for text in texts] == [1, 0], texts
    assert "Traceback" not in "".join(texts)
    assert not (tmp_path / "x" / "result.json").exists()
    assert checkpoint_paths(tmp_path / "x" / "checkpoints") == []


@pytest.mark.parametrize("stack", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sweep_stops_at_the_first_fault_and_tries_nothing_again(copy: Path, tmp_path: Path, stack: int) -> None:
    message = fault_of(copy, "train latents")
    sweep = write_sweep(
        tmp_path,
        copy,
        milestones=[2560],
        batch_tokens=[64],
        lr=[1e-3, 2e-3, 3e-3, 4e-3],
        executor={"workers": 1, "retries": 3, "stack": stack},
    )
    out = tool("run", sweep, status=2)
    last = out.stderr.strip().splitlines()[-1]
    assert re.fullmatch(f"error: {message}; then run the sweep again: .* read the same data", last), out.stderr
    assert results(sweep) == {}
    begun = sorted(path.parent for path in (tmp_path / "runs" / "grid").glob("*/console.log"))
    assert len(begun) == stack  # of four cells
    for directory in begun:
        failure = read_failure(directory / FAILURE)
        assert re.fullmatch(message, failure.reason)
        assert failure == Failure(failure.reason, attempts=1, exit_status=2, data_fault=True)
        assert re.search(f"^error: {message}$", (directory / "console.log").read_text(), re.MULTILINE)
    assert tool("status", sweep, "--json", status=1).stdout.count('"failed"') >= stack


@pytest.mark.slow
def test_mended_data_finish_the_sweep(cache: Path, copy: Path, tmp_path: Path) -> None:
    fault_of(copy, "train latents")
    sweep = write_sweep(tmp_path, copy, milestones=[2560], batch_tokens=[64], lr=[1e-3], executor={"workers": 1})
    tool("run", sweep, status=2)
    shutil.rmtree(copy)
    shutil.copytree(cache, copy)
    tool("run", sweep)
    (found,) = results(sweep).values()
    assert (found["status"], found["skipped"]) == ("done", 0)
    assert not list((tmp_path / "runs" / "grid").glob(f"*/{DATA_FAULT}"))
