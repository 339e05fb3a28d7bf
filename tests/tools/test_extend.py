"""``sweep.py extend``: what it shows is what it adds, and what it adds is trained like the rest."""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.sweeps.sweeps import write_sweep
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.search.proposals import Proposal
from videoscaling.sweeps import added_cells
from videoscaling.sweeps import extend as module
from videoscaling.sweeps.added_cells import AddedCell
from videoscaling.sweeps.extend import Options
from videoscaling.sweeps.grid import Sweep, load_sweep
from videoscaling.sweeps.state import CellState, CellStatus
from videoscaling.tools import sweep as cli
from videoscaling.utils.errors import UserError
from videoscaling.utils.files import write_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sweep(cache: Path, tmp_path: Path) -> Path:
    """3 x 3 cells of one size with two milestones, and one held-out size."""
    base = {"log": {"every_steps": 50}, "checkpoint": {"every_steps": 100}}
    grid = {"milestones": [128, 256], "batch_tokens": [32, 64, 128], "lr": [1e-4, 2e-4, 4e-4]}
    sizes = [{"size": "1x32"}, {"size": "2x32", "heldout": True, "lr": [1e-3], "batch_tokens": [64]}]
    return write_sweep(tmp_path, cache, base, **grid, sizes=sizes, executor={"workers": 2})


@pytest.fixture
def asks(sweep: Path, monkeypatch, capsys):
    """The tool in this process, which spares the imports: what only asks. Its output and status."""

    def asked(command: str, *more: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["sweep.py", command, str(sweep), *more])
        assert cli.main() == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    return asked


def asked(milestone: int, lr: float, B: float, why: str = "a") -> tuple[Proposal, ...]:
    return (Proposal(N=100, lr=lr, B=B, milestone=milestone, flops=0.0, why=why, after={}),)


def stub(directory: Path, repeats=1):
    """A sweep of one cell with milestones 10 and 20, as far as merging asks."""
    train = SimpleNamespace(milestones=[10, 20], batch_tokens=5)
    config = SimpleNamespace(optim=SimpleNamespace(lr=1e-3), train=train, model=SimpleNamespace(size="1x32"))
    cell = SimpleNamespace(N=100, config=config, flops_per_token=3.0)
    return SimpleNamespace(directory=directory, keys=SimpleNamespace(results=None, seed=0), cells=[cell] * repeats)


def test_a_run_has_all_milestones_up_to_its_end_and_one_that_was_added_continues(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_continues", lambda *which: True)
    large, small = module.additions_of(stub(tmp_path), asked(20, 2e-3, 5) + asked(10, 3e-3, 5))
    assert (large.entry.milestones, large.flops) == ([10, 20], 60.0)
    assert (small.entry.milestones, small.flops) == ([10], 30.0)
    # What was added for the first milestone continues to the second, as the same run, for what is left.
    added_cells.add(tmp_path, [small.entry])
    (grown,) = module.additions_of(stub(tmp_path), asked(20, 3e-3, 5))
    assert (grown.entry.repeat, grown.entry.milestones, grown.flops) == (0, [10, 20], 30.0)
    added_cells.add(tmp_path, [grown.entry])
    assert [c.milestones for c in added_cells.read(tmp_path)] == [[10, 20]]


@pytest.mark.parametrize(
    ("keys", "step"),
    [
        ([], 32),
        (["executor.processes=2"], 64),
        (["executor.processes=4", "config.train.context_parallel=2"], 64),
        (["executor.kind=slurm", "executor.slurm.nodes=3"], 96),
    ],
)
def test_added_batches_are_such_as_the_processes_of_a_cell_can_share(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, keys: list[str], step: int
) -> None:
    """A cell that they cannot share would keep the whole sweep from being run."""
    loaded = load_sweep(sweep, keys, lambda config: {"latent_shape": [4, 2, 4, 4], "fingerprint": "x"})
    monkeypatch.setattr(module, "decide", lambda cells, sizes, *_, **more: sizes)
    cells = Cells.of_arrays(1e6, 1000.0, 100.0, [1e-3, 4e-3], [2.0, 1.0])
    (size,) = module.decide_for(loaded, cells, Options(), ROOT / "configs" / "laws" / "paper.json")
    assert size.batch_step == step


def test_what_another_machine_added_counts(tmp_path: Path) -> None:
    here, committed = tmp_path / "here", tmp_path / "committed"
    cell = AddedCell("1x32", lr=1e-3, batch_tokens=5, repeat=0, milestones=[10], why="a")
    added_cells.add(committed, [cell])
    added_cells.add(here, [replace(cell, milestones=[10, 20]), replace(cell, lr=2e-3)])
    assert [c.milestones for c in added_cells.read(here, str(committed))] == [[10, 20], [10]]
    added_cells.export_added(here, str(committed))
    assert added_cells.read(committed) == added_cells.read(here, str(committed))
    added_cells.export_added(tmp_path / "nothing", str(committed))


def test_a_run_costs_its_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with the first batch at or past its milestone; so does the part that is there already."""
    monkeypatch.setattr(module, "_continues", lambda *which: True)
    (one,) = module.additions_of(stub(tmp_path), asked(20, 2e-3, 8))
    assert one.flops == 3.0 * 24
    added_cells.add(tmp_path, [replace(one.entry, milestones=[10])])
    (grown,) = module.additions_of(stub(tmp_path), asked(20, 2e-3, 8))
    assert grown.flops == 3.0 * (24 - 16)


def test_an_added_run_that_can_continue_does_and_another_is_not_priced_as_if(sweep: Path) -> None:
    """It keeps its optimiser while it ends before its size does. Diverged, or without one, a new run comes instead."""

    def load() -> Sweep:
        return load_sweep(sweep, [], lambda config: {"latent_shape": [4, 2, 4, 4], "fingerprint": "x"})

    cell = AddedCell("1x32", lr=3e-4, batch_tokens=64, repeat=0, milestones=[128], why="a")
    added_cells.add(load().directory, [cell])
    (added,) = (cell for cell in load().cells if cell.config.optim.lr == 3e-4)
    assert added.config.checkpoint.final == "full"
    assert {cell.config.checkpoint.final for cell in load().cells if cell.config.optim.lr != 3e-4} == {"ema"}
    folder = added.config.run_dir
    kept = folder / "checkpoints" / "step_0000002" / "optimizer.safetensors"
    kept.parent.mkdir(parents=True)
    whole = added.flops_per_token * 256
    for status, there, repeat, flops in (
        ("done", True, 0, whole / 2),
        ("done", False, 1, whole),
        ("diverged", True, 1, whole),
    ):
        result = {"run_id": folder.name, "status": status, "tokens": 128, "flops": 1.0}
        losses = {"val_loss": 1.0, "ema_val_loss": 1.0}
        write_json(folder / "result.json", result | {"milestones": [{"nominal": 128, "tokens": 128} | losses]})
        kept.touch() if there else kept.unlink(missing_ok=True)
        (one,) = module.additions_of(
            load(), (Proposal(N=added.N, lr=3e-4, B=64, milestone=256, flops=0.0, why="b", after={}),)
        )
        assert (one.entry.repeat, one.flops) == (repeat, pytest.approx(flops))
    added_cells.add(folder.parent, [replace(cell, milestones=[128, 256])])
    (grown,) = (cell for cell in load().cells if cell.config.optim.lr == 3e-4)
    assert (grown.config.run_dir, grown.config.checkpoint.final) == (folder, "ema")


@pytest.mark.parametrize(("T", "milestone"), [(10, 10), (12, 10), (18, 10), (20, 20), (24, 20)])
def test_a_grid_is_at_the_last_milestone_that_its_runs_had_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, T: float, milestone: int
) -> None:
    """They stop at the first step at or past it: tokens that all have lie past their own milestone, never before."""
    monkeypatch.setattr(module, "cell_status", lambda cell: CellStatus(CellState.DONE))
    cells = stub(tmp_path).cells
    for cell in cells:
        cell.config.name, cell.n_ctx = "a", 5
    size = module._size(cells, Cells.of_arrays(100, T, 5, 1e-3, [1.0]), 1)
    assert {10: 10.0, 20: 20.0} | {milestone: T} == size.T
    assert (size.run, size.waiting) == (((1e-3, 5.0),), ())


def test_milestones_that_the_sweep_no_longer_has_are_left_alone(sweep: Path, tmp_path: Path) -> None:
    """Runs for the nearest of the others would not decide their grids, and be asked for again and again."""
    loaded = load_sweep(sweep, [], lambda config: {"latent_shape": [4, 2, 4, 4], "fingerprint": "x"})
    cell = next(cell for cell in loaded.cells if not cell.config.heldout)
    losses = {"val_loss": 1.0, "val_se": 0.1, "ema_val_loss": 1.0, "ema_val_se": 0.1}
    milestones = [{"nominal": T, "tokens": T, "flops": 1.0, **losses} for T in (64, 128)]
    result = {"N": cell.N, "B": cell.config.train.batch_tokens, "lr": cell.config.optim.lr, "n_ctx": 32}
    result |= {"status": "done", "milestones": milestones, "milestones_asked": [64, 128]}
    write_json(cell.config.run_dir / "result.json", result)
    assert module._table(loaded, held_out=False).nominal_T.tolist() == [128]


def test_repeats_are_numbered_on(tmp_path: Path) -> None:
    for repeats in (1, 3):
        (one,) = module.additions_of(stub(tmp_path, repeats=repeats), asked(20, 1e-3, 5))
        assert one.entry.repeat == repeats


@pytest.mark.parametrize(
    ("given", "reported"),
    [
        ({"run": True, "json": True}, "one of them"),
        ({"tolerance": 0.0}, "--tolerance"),
        ({"noise": 2.0}, "--noise"),
        ({"params": 1e6}, "--tokens or --flops"),
        ({"tokens": 1e6}, "--tokens needs --params"),
        ({"params": 1e6, "tokens": 1e6, "flops": 1e9}, "one of them"),
        ({"budget_flops": -1.0, "flops": 1e9}, "--budget-flops"),
        ({"budget_flops": 1e9, "held_out": True}, "--held-out"),
    ],
)
def test_bad_input_is_named(given, reported) -> None:
    with pytest.raises(UserError, match=reported):
        Options.of(argparse.Namespace(**(vars(Options()) | given)))


def finish(sweep: Path, *overrides: str) -> Sweep:
    """Results of a planted valley for the sweep's cells that are not held out."""
    loaded = load_sweep(sweep, list(overrides), cli.data_of)
    for cell in loaded.cells:
        lr, B = cell.config.optim.lr, cell.config.train.batch_tokens
        if cell.config.heldout:
            continue
        milestones = []
        for T in cell.config.train.milestones:
            loss = (1 + T**-0.2) * math.exp(0.03 * math.log(lr / 3e-3) ** 2 + 0.02 * math.log(B / 64) ** 2)
            losses = {"val_loss": loss, "val_se": 0.01, "ema_val_loss": loss, "ema_val_se": 0.01}
            milestones.append({"nominal": T, "tokens": T, "flops": 1.0, **losses})
        result = {"N": cell.N, "B": B, "lr": lr, "n_ctx": 32, "status": "done", "tokens": 256, "flops": 1.0}
        result |= {"run_id": cell.config.run_dir.name, "milestones": milestones, "milestones_asked": [128, 256]}
        write_json(cell.config.run_dir / "result.json", result)
    return loaded


def test_what_is_shown_says_what_each_run_would_do(sweep: Path, asks) -> None:
    """Rates this low are too low: the way out is up. The held-out size is predicted, and not extended."""
    loaded = finish(sweep)
    shown = json.loads(asks("extend", "--json"))
    held = next(cell for cell in loaded.cells if cell.config.heldout)
    assert (shown["target"]["N"], shown["target"]["T"]) == (held.N, 256)
    assert set(shown["target"]["half_widths"]) == {"lr", "batch edge"}, "one size fixes no loss form"
    assert shown["unfinished"] == 1
    assert shown["cells"]
    assert {cell["size"] for cell in shown["cells"]} == {"1x32"}
    assert shown["cells"][-1]["half_widths"]["lr"] < shown["target"]["half_widths"]["lr"]
    assert not (loaded.directory / "extended.json").exists(), "showing adds nothing"
    assert "nothing to add: that is within the tolerance, 10.00%" in asks("extend", "--tolerance", "0.1")
    text = asks("extend")
    assert f"{len(shown['cells'])} runs to add" in text
    assert "--run adds them" in text
    assert "unknown" in asks("extend", "--flops", "1e9", status=3), "N_opt without a loss form"


def test_without_enough_results_the_first_cells_are_asked_for(sweep: Path, asks) -> None:
    finish(sweep, "lr=[2e-4]", "batch_tokens=[64]")
    text = asks("extend", "lr=[2e-4]", "batch_tokens=[64]")
    assert "no surface can be fitted yet (2 usable runs" in text
    assert "a step around the best run" in text


@pytest.mark.parametrize("text", ["[]", "{}", '{"cells": [{"size": "1x32"}]}', "no json"])
def test_a_file_that_extend_did_not_write_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "extended.json").write_text(text)
    with pytest.raises(UserError, match="extended.json"):
        added_cells.read(tmp_path)
