"""What a sweep would be, before and while it runs: grids, budgets, hours, states, and what is refused."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sweeps.sweeps import edit, write_sweep
from tests.sweeps.test_run import ROOT, here
from videoscaling.scaling import law_file, runs
from videoscaling.sweeps import status as overview
from videoscaling.sweeps.cost import estimate, flops_of
from videoscaling.sweeps.grid import load_sweep
from videoscaling.sweeps.state import CellState, CellStatus, cell_status
from videoscaling.utils.files import write_json
from videoscaling.utils.locks import lock_run_dir

PAPER = ROOT / "configs" / "laws" / "paper.json"


@pytest.fixture
def sweep(cache: Path, tmp_path: Path) -> Path:
    """A sweep of 1 size x 2 rates x 1 batch."""
    return write_sweep(tmp_path, cache, batch_tokens=[64], lr=[1e-3, 3e-3], executor={"workers": 2})


def planned(sweep: Path, *more: str) -> dict:
    return json.loads(here("run", sweep, "--dry-run", "--json", *more)[0])


def refused(sweep: Path, *words: str) -> str:
    """The one line in which ``run`` refuses; nothing is written."""
    said = here("run", sweep, *words, status=2)[1]
    errors = [line for line in said.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1
    assert not (sweep.parent / "runs" / "grid" / "sweep.yaml").exists()
    return errors[0]


def test_a_grid_around_a_law(sweep: Path) -> None:
    """In log space around the law's rate and batch at the middle of the milestones, in whole clips of 32 tokens."""
    law = law_file.load(PAPER)
    edit(
        sweep, lr=None, batch_tokens=None, around=str(PAPER), lr_steps=3, batch_steps=5, ratio=4, milestones=[1e8, 4e8]
    )
    cells = planned(sweep)["cells"]
    N, T = 16384, 2e8
    assert {c["N"] for c in cells} == {N}
    rates = sorted({c["lr"] for c in cells})
    assert rates == pytest.approx([float(law.lr(N, T)) * step for step in (1 / 4, 1, 4)], rel=5e-3)
    batches = sorted({c["B"] for c in cells})
    assert all(B % 32 == 0 for B in batches)
    best = float(law.batch(N, T))
    assert batches == pytest.approx([best * step for step in (1 / 16, 1 / 4, 1, 4, 16)], abs=16)
    assert len(cells) == 15
    # What is spelled out is not moved.
    edit(sweep, lr=[1e-3])
    assert {c["lr"] for c in planned(sweep)["cells"]} == {1e-3}


def test_token_budgets_by_size(sweep: Path) -> None:
    sizes = [{"size": "1x32"}, {"size": "2x32", "milestones": [960]}]
    edit(sweep, milestones=None, tokens_per_parameter=[0.5, 2], sizes=sizes)
    assert {(c["size"], *c["milestones"]) for c in planned(sweep)["cells"]} == {("1x32", 8192, 32768), ("2x32", 960)}
    edit(sweep, milestones=[640])
    assert "milestones and tokens_per_parameter; give one of them" in refused(sweep)
    for multiple in (".nan", ".inf", 0):
        sweep.write_text(f"sizes: [{{size: 1x32, tokens_per_parameter: [1, {multiple}]}}]\n")
        assert re.search(r"tokens_per_parameter=\[1.0, .*\]: each must be a positive number", refused(sweep))


def test_training_keys_of_a_sweep(sweep: Path) -> None:
    before = planned(sweep)["cells"]
    after = planned(sweep, "config.train.dtype=bfloat16")["cells"]
    assert {c["run_id"] for c in before}.isdisjoint(c["run_id"] for c in after)
    edit(sweep, config={"train": {"dtype": "bfloat16"}})
    assert planned(sweep)["cells"] == after
    assert "a key of training: write config.train.dtype=bfloat16" in refused(sweep, "train.dtype=bfloat16")
    assert "config.optim.lr: the sweep sets it; use lr" in refused(sweep, "config.optim.lr=1")
    assert "did you mean 'train.dtype'" in refused(sweep, "config.train.dtyp=float32")


def test_finished_cells_keep_their_optimiser_where_the_base_says_so(sweep: Path) -> None:
    def kept(value: str | None) -> tuple[set[str], set[str]]:
        edit(sweep, config={"checkpoint": {"final": value}} if value else {})
        cells = load_sweep(sweep, [], lambda config: {"latent_shape": [4, 2, 4, 4], "fingerprint": "x"}).cells
        return {cell.config.checkpoint.final for cell in cells}, {cell.config.run_dir.name for cell in cells}

    (averaged, names), (full, same) = kept(None), kept("full")
    assert (averaged, full, same) == ({"ema"}, {"full"}, names)


def test_the_time_left_of_runs_in_one_process(sweep: Path) -> None:
    """Two cells, half-way, each half of one process that does 1e6 FLOPs a second: what is left is a whole cell."""
    cells = (loaded := load_sweep(sweep, [], lambda config: {"latent_shape": [4, 2, 4, 4], "fingerprint": "x"})).cells

    def hours_left(share: float) -> float:
        states = [CellStatus(CellState.RUNNING, tokens=640, rate=1e6, share=share)] * 2
        return overview.status(loaded, states, estimate(loaded, states)).hours_left

    assert hours_left(0.5) * 3600 == pytest.approx(flops_of(cells[0]) / 1e6)
    assert hours_left(1.0) * 3600 == pytest.approx(flops_of(cells[0]) / 1e6 / 2)
    # As a stack of two writes it: 100 tokens a second for each, so 200 for the process.
    directory = cells[0].config.run_dir
    directory.mkdir(parents=True)
    (directory / "config.yaml").touch()
    (directory / "metrics.jsonl").write_text('{"tokens": 640, "tokens_per_second": 100, "share": 0.5}\n')
    status = cell_status(cells[0])
    assert (status.rate, status.share) == (200 * cells[0].flops_per_token, 0.5)


def test_the_time_left_of_a_stack_that_has_reported_nothing_yet(sweep: Path) -> None:
    """Its cells run, and in how few processes does not show before the first logged step."""
    edit(sweep, cost={"flops_per_second": 1e6}, executor={"workers": 1})
    loaded = load_sweep(sweep, [], lambda config: {"latent_shape": [4, 2, 4, 4], "fingerprint": "x"})
    for cell in loaded.cells:
        cell.config.run_dir.mkdir(parents=True)
        (cell.config.run_dir / "config.yaml").touch()
    whole = 2 * flops_of(loaded.cells[0]) / 1e6
    for workers in (1, None):
        loaded.keys.executor.workers = workers
        with lock_run_dir(loaded.cells[0].config.run_dir), lock_run_dir(loaded.cells[1].config.run_dir):
            states = overview.states_of(loaded)
        assert [(state.state, state.share) for state in states] == [("running", None)] * 2
        reported = overview.status(loaded, states, estimate(loaded, states))
        assert reported.hours_left * 3600 == pytest.approx(whole)


def test_no_stack_is_through_before_its_process(sweep: Path) -> None:
    """One of two processes is half through its only cell, and one begins with two: it takes two cells' time."""
    edit(sweep, cost={"flops_per_second": 1e6}, lr=[1e-3, 2e-3, 4e-3])
    loaded = load_sweep(sweep, [], lambda config: {"latent_shape": [4, 2, 4, 4], "fingerprint": "x"})
    running = CellStatus(CellState.RUNNING, share=0.5)
    states = [replace(running, share=1.0, tokens=640), running, running]
    reported = overview.status(loaded, states, estimate(loaded, states))
    assert reported.hours_left * 3600 == pytest.approx(2 * flops_of(loaded.cells[0]) / 1e6)


def finish(sweep: Path) -> list[Path]:
    """A result for each cell, as if it had been trained to its end, with a loss of 1 there; their files."""
    paths = []
    for cell in planned(sweep)["cells"]:
        milestones = [
            {"nominal": T, "tokens": T, "flops": 1.0, "val_se": 0.1, "ema_val_se": 0.1}
            | {"val_loss": cell["T"] / T, "ema_val_loss": cell["T"] / T}
            for T in cell["milestones"]
        ]
        result = {key: cell[key] for key in ("run_id", "N", "B", "lr", "seed", "heldout")}
        result |= {"status": "done", "n_ctx": 32, "tokens": cell["T"], "flops": cell["flops"], "seconds": 1.0}
        result |= {"milestones": milestones, "milestones_asked": cell["milestones"], "config": {"heldout": False}}
        paths.append(sweep.parent / "runs" / "grid" / cell["run_id"] / "result.json")
        write_json(paths[-1], result)
        (paths[-1].parent / "config.yaml").write_text("")
    return paths


def test_results_say_what_the_yaml_holds_out_now(sweep: Path) -> None:
    """Not what it held out when they were trained: a fit reads the results alone."""
    paths = finish(sweep)
    edit(sweep, sizes=[{"size": "1x32", "heldout": True}], results=str(sweep.parent / "committed"))
    here("collect", sweep)
    assert all(
        runs.read(folder).heldout.all() for folder in (sweep.parent / "runs" / "grid", sweep.parent / "committed")
    )
    assert {row.rpartition(",")[2] for row in paths[0].parents[1].joinpath("results.csv").read_text().split()[1:]} == {
        "1"
    }
    edit(sweep, sizes=[{"size": "1x32"}])
    here("run", sweep)
    assert not runs.read(sweep.parent / "runs" / "grid").heldout.any()


def test_a_finished_cell_that_is_to_grow_starts_again_where_its_optimiser_is_gone(sweep: Path) -> None:
    first, second = finish(sweep)
    (second.parent / "checkpoints" / "step_0000020").mkdir(parents=True)
    (second.parent / "checkpoints" / "step_0000020" / "optimizer.safetensors").touch()
    edit(sweep, milestones=[640, 1280, 2560])
    cells = {cell["run_id"]: cell for cell in json.loads(here("status", sweep, "--json")[0])["cells"]}
    assert [cells[p.parent.name]["state"] for p in (first, second)] == ["pending", "stopped"]
    assert [cells[p.parent.name]["progress"] for p in (first, second)] == [0.0, 0.5]


def test_a_loss_is_shown_with_the_tokens_it_was_measured_at(sweep: Path) -> None:
    """Not the loss at the end of a sweep that now ends earlier, nor a milestone that is reached and not validated."""
    finish(sweep)
    assert "best 1x32: loss 2 at 640 tokens" in here("status", sweep, "milestones=[640]")[0]
    edit(sweep, milestones=[640, 1280, 2560])
    for cell in planned(sweep)["cells"]:
        folder = sweep.parent / "runs" / "grid" / cell["run_id"]
        (folder / "checkpoints" / "step_0000020").mkdir(parents=True)
        (folder / "checkpoints" / "step_0000020" / "optimizer.safetensors").touch()
        row = {"step": 40, "tokens": 2560, "tokens_per_second": 10.0, "share": 1.0}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert "best 1x32: loss 1 at 1,280 tokens" in here("status", sweep)[0]
    cells = json.loads(here("status", sweep, "--json")[0])["cells"]
    assert [(cell["tokens"], cell["milestone"], cell["loss"]) for cell in cells] == [(2560, 1280, 1.0)] * 2


def test_a_watch_shows_it_again_until_all_is_finished(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview.time, "sleep", lambda seconds: finish(sweep))
    before, after = here("status", sweep, "--watch")[0].split("\x1b[H\x1b[2J")[1:]
    assert "2 cells: 2 pending" in before
    assert "2 cells: 2 done" in after
    assert "best 1x32: loss 1 at 1,280 tokens" in after


def test_a_second_run_refuses(sweep: Path) -> None:
    with lock_run_dir(sweep.parent / "runs" / "grid"):
        assert "another process is working in it" in refused(sweep)


def test_what_waits_in_slurms_queue_is_not_trained_here(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who followed it has gone, and its jobs continue: this machine may not see what a node holds."""
    first = planned(sweep)["cells"][0]["run_id"]
    write_json(sweep.parent / "runs" / "grid" / "slurm" / "grid-1.json", {"tasks": [[{"run_id": first}]]})
    squeue = sweep.parent / "squeue"
    squeue.write_text("#!/bin/sh\necho 'grid-1|7|0|PENDING|Priority'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sweep.parent}:{os.environ['PATH']}")
    assert "in Slurm's queue, such as 7_0 PENDING (Priority)" in refused(sweep)


def test_bad_input_is_one_line(sweep: Path) -> None:
    assert "did you mean 'retries'" in refused(sweep, "executor.retry=3")
    assert "unknown key executor.slurm.partiton; did you mean 'partition'" in refused(
        sweep, "executor.slurm.partiton=x"
    )
    said = refused(sweep, "executor.kind=slrum")
    assert "executor.kind=slrum: one of local, slurm, command; did you mean 'slurm'" in said
    assert "a token budget of 640 is less than one batch of 1,280" in refused(sweep, "batch_tokens=[1280]")
    assert "executor.slurm.time=soon" in refused(sweep, "executor.slurm.time=soon")
    assert "warning_seconds=120: must be positive, and less" in refused(sweep, "executor.slurm.time=2")
    assert "fewer than executor.processes=4" in refused(sweep, "executor.processes=4", "executor.slurm.gpus=2")
    assert "no such file" in refused(sweep, "around=none.json")
    assert "lr=-0.1: must be a positive number" in refused(sweep, "lr=[-0.1]")


def test_without_slurm_one_line(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(sweep.parent))
    assert "no sbatch on the path" in refused(sweep, "executor.kind=slurm")
    (sweep.parent / "sbatch").symlink_to("/bin/true")
    assert "no srun on the path" in refused(sweep, "executor.kind=slurm")
