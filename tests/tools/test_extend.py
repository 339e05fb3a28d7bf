"""``sweep.py extend``: what it shows is what it adds, and what it adds is trained like the rest."""

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.sweeps.sweeps import write_sweep
from videoscaling.scaling import laws, simulate
from videoscaling.scaling.extend import Settings
from videoscaling.scaling.points import Untrusted
from videoscaling.scaling.proposals import Asked, states
from videoscaling.sweeps import added_cells
from videoscaling.sweeps.grid import Sweep, load_sweep
from videoscaling.tools import extend as module
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


def test_a_budget_is_spent_and_no_more(tmp_path: Path) -> None:
    paper = laws.load(ROOT / "configs" / "laws" / "paper.json")
    cells, tokens = simulate.grid(paper, (2**24, 2**26), (2e9, 8e9), 5, 5, 2.0), [2e9, 8e9]
    cells = [(N, max(round(B / 1280), 1) * 1280.0, lr) for N, B, lr in cells]
    ledger = simulate.ledger(paper, cells, tokens, 1e-3, n_ctx=1280)
    made, noise, _ = states(ledger, paper, Settings, None, lambda N, T: ())
    sweep = SimpleNamespace(
        directory=tmp_path,
        keys=SimpleNamespace(results=None),
        cells=[
            SimpleNamespace(
                N=N, n_ctx=1280, flops_per_token=6.0 * N,
                config=SimpleNamespace(
                    optim=SimpleNamespace(lr=lr), model=SimpleNamespace(size=f"{N}"),
                    train=SimpleNamespace(milestones=[int(2e9), int(8e9)], batch_tokens=round(B)),
                ),
            )
            for N, B, lr in cells
        ],
    )  # fmt: skip
    names = ("budget_flops", "flops", "params", "tokens")
    given = dict(zip(names, (5e18, None, 1e9, 1e10)))
    asked, target = module._narrow(sweep, made, paper, noise, argparse.Namespace(**given))
    assert target["after"] < target["before"]
    additions = module.merge(sweep, asked)
    assert 0 < sum(addition.flops for addition in additions) <= target["flops"] <= 5e18
    with pytest.raises(UserError, match="less than the cheapest run"):
        module._narrow(sweep, made, paper, noise, argparse.Namespace(**given | {"budget_flops": 1e10}))
    with pytest.raises(Untrusted, match="loss law"):
        module._narrow(sweep, made, paper, noise, argparse.Namespace(**given | {"params": None, "flops": 1e21}))


def stub(directory: Path, repeats=1):
    """A sweep of one cell with milestones 10 and 20, as far as merging asks."""
    train = SimpleNamespace(milestones=[10, 20], batch_tokens=5)
    config = SimpleNamespace(optim=SimpleNamespace(lr=1e-3), train=train, model=SimpleNamespace(size="1x32"))
    cell = SimpleNamespace(N=100, config=config, flops_per_token=3.0)
    return SimpleNamespace(directory=directory, keys=SimpleNamespace(results=None, seed=0), cells=[cell] * repeats)


def test_one_run_serves_all_its_milestones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_goes_on", lambda *which: True)
    asked = [Asked(100, 10.5, 2e-3, 5, "a"), Asked(100, 20.0, 2e-3, 5, "b"), Asked(100, 10.0, 3e-3, 5, "c")]
    one, other = module.merge(stub(tmp_path), asked)
    assert {one.entry["lr"], other.entry["lr"]} == {2e-3, 3e-3}
    small, large = (one, other) if one.entry["lr"] == 3e-3 else (other, one)
    assert large.entry["milestones"] == [10, 20]
    assert large.flops == 60.0
    assert small.entry["milestones"] == [10]
    assert small.flops == 30.0
    # What was added for the first milestone goes on to the second, as the same run, for what is left.
    added_cells.add(tmp_path, [small.entry])
    (grown,) = module.merge(stub(tmp_path), [Asked(100, 20.0, 3e-3, 5, "d")])
    assert (grown.entry["repeat"], grown.entry["milestones"], grown.flops) == (0, [10, 20], 30.0)
    added_cells.add(tmp_path, [grown.entry])
    assert [c["milestones"] for c in added_cells.read(tmp_path)] == [[10, 20]]


def test_what_another_machine_added_counts(tmp_path: Path) -> None:
    here, committed = tmp_path / "here", tmp_path / "committed"
    cell = {"size": "1x32", "lr": 1e-3, "batch_tokens": 5, "repeat": 0, "milestones": [10], "why": "a"}
    added_cells.add(committed, [cell])
    added_cells.add(here, [cell | {"milestones": [10, 20]}, cell | {"lr": 2e-3}])
    assert [c["milestones"] for c in added_cells.read(here, str(committed))] == [[10, 20], [10]]
    added_cells.publish(here, str(committed))
    assert added_cells.read(committed) == added_cells.read(here, str(committed))
    added_cells.publish(tmp_path / "nothing", str(committed))


def test_a_run_costs_its_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with the first batch at or past its milestone; so does the part that is there already."""
    monkeypatch.setattr(module, "_goes_on", lambda *which: True)
    (one,) = module.merge(stub(tmp_path), [Asked(100, 20.0, 2e-3, 8, "a")])
    assert one.flops == 3.0 * 24
    added_cells.add(tmp_path, [one.entry | {"milestones": [10]}])
    (grown,) = module.merge(stub(tmp_path), [Asked(100, 20.0, 2e-3, 8, "b")])
    assert grown.flops == 3.0 * (24 - 16)


def test_an_added_run_that_can_go_on_does_and_another_is_not_priced_as_if(sweep: Path) -> None:
    """It keeps its optimiser while it ends before its size does. Diverged, or without one, a new run comes instead."""

    def load() -> Sweep:
        return load_sweep(sweep, [], lambda config: {"latent_shape": [4, 2, 4, 4], "fingerprint": "x"})

    axes = {"lr": 3e-4, "batch_tokens": 64, "repeat": 0, "milestones": [128], "why": "a"}
    added_cells.add(load().directory, [{"size": "1x32"} | axes])
    (added,) = (cell for cell in load().cells if cell.config.optim.lr == 3e-4)
    assert added.config.checkpoint.final == "full"
    assert {cell.config.checkpoint.final for cell in load().cells if cell.config.optim.lr != 3e-4} == {"ema"}
    folder = added.config.run_dir
    kept = folder / "checkpoints" / "step_0000002" / "optimizer.safetensors"
    kept.parent.mkdir(parents=True)
    whole = added.flops_per_token * 256
    for status, there, repeat, flops in (
        ("done", True, 0, whole / 2), ("done", False, 1, whole), ("diverged", True, 1, whole),
    ):  # fmt: skip
        result = {"run_id": folder.name, "status": status, "tokens": 128, "flops": 1.0}
        losses = {"val_loss": 1.0, "ema_val_loss": 1.0}
        write_json(folder / "result.json", result | {"milestones": [{"nominal": 128, "tokens": 128} | losses]})
        kept.touch() if there else kept.unlink(missing_ok=True)
        (one,) = module.merge(load(), [Asked(added.N, 256, 3e-4, 64, "b")])
        assert (one.entry["repeat"], one.flops) == (repeat, pytest.approx(flops))
    added_cells.add(folder.parent, [{"size": "1x32"} | axes | {"milestones": [128, 256]}])
    (grown,) = (cell for cell in load().cells if cell.config.optim.lr == 3e-4)
    assert (grown.config.run_dir, grown.config.checkpoint.final) == (folder, "ema")


def test_nothing_to_add_says_what_is_not_known() -> None:
    def state(verdict: str, miss: float, lifeless: bool = False) -> SimpleNamespace:
        optimum = SimpleNamespace(verdict=verdict, usable=verdict == "interior")
        return SimpleNamespace(optimum=optimum, decision=SimpleNamespace(miss=miss), asked=(), lifeless=lifeless)

    assert "each grid's best run is known" in module._why_nothing([state("interior", 0.05)])
    told = module._why_nothing([state("interior", 0.05), state("saddle", 0.0), state("interior", 0.3)])
    assert "2 of 3 grids are not decided (interior, saddle)" in told
    dead = state("too few points", 1.0, lifeless=True)
    told = module._why_nothing([state("interior", 0.05), dead])
    assert "every run of 1 of 2 grids diverged" in told
    assert "not decided" not in told
    assert "and 1 of 3 grids are not decided (saddle)" in module._why_nothing([state("saddle", 0.0), dead, dead])


@pytest.mark.parametrize(("T", "milestone"), [(10, 10), (12, 10), (18, 10), (20, 20), (24, 20)])
def test_a_grid_is_at_the_last_milestone_that_its_runs_had_reached(tmp_path: Path, T: float, milestone: int) -> None:
    """They stop at the first step at or past it: tokens that all have lie past their own milestone, never before."""
    assert module._milestone(stub(tmp_path).cells, T) == milestone


def test_milestones_that_the_sweep_no_longer_has_are_left_alone(sweep: Path, tmp_path: Path) -> None:
    """Runs for the nearest of the others would not decide their grids, and be asked for again and again."""
    loaded = load_sweep(sweep, [], lambda config: {"latent_shape": [4, 2, 4, 4], "fingerprint": "x"})
    cell = next(cell for cell in loaded.cells if not cell.config.heldout)
    losses = {"val_loss": 1.0, "val_se": 0.1, "ema_val_loss": 1.0, "ema_val_se": 0.1}
    milestones = [{"nominal": T, "tokens": T, "flops": 1.0, **losses} for T in (64, 128)]
    result = {"N": cell.N, "B": cell.config.train.batch_tokens, "lr": cell.config.optim.lr, "n_ctx": 32}
    result |= {"status": "done", "milestones": milestones, "milestones_asked": [64, 128]}
    write_json(cell.config.run_dir / "result.json", result)
    assert module._ledger(loaded, held_out=False).nominal_T.tolist() == [128]


def test_repeats_are_numbered_on(tmp_path: Path) -> None:
    asked = [Asked(100, 20.0, 1e-3, 5, "run 2"), Asked(100, 20.0, 1e-3, 5, "run 3")]
    assert [a.entry["repeat"] for a in module.merge(stub(tmp_path), asked)] == [1, 2]
    assert [a.entry["why"] for a in module.merge(stub(tmp_path), asked)] == ["run 2", "run 3"]
    assert [a.entry["repeat"] for a in module.merge(stub(tmp_path, repeats=3), asked)] == [3, 4]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"run": True, "json": True}, "one of them"),
        ({"tolerance": 0.0}, "--tolerance"),
        ({"noise": 2.0}, "--noise"),
        ({"flops": 1e9}, "--budget-flops"),
        ({"budget_flops": 1e9}, "needs a target"),
        ({"budget_flops": 1e9, "params": 1e6}, "--tokens or --flops"),
        ({"budget_flops": 1e9, "params": 1e6, "tokens": 1e6, "flops": 1e9}, "one of them"),
        ({"budget_flops": -1.0, "flops": 1e9}, "--budget-flops"),
        ({"budget_flops": 1e9, "flops": 1e9, "held_out": True}, "--held-out"),
    ],
)
def test_bad_input_is_named(given, told) -> None:
    names = ("run", "json", "tolerance", "noise", "budget_flops", "flops", "params", "tokens", "held_out")
    with pytest.raises(UserError, match=told):
        module.check(argparse.Namespace(**(dict.fromkeys(names) | given)))


@pytest.mark.parametrize("text", ["[]", "{}", '{"cells": [{"size": "1x32"}]}', "no json"])
def test_a_file_that_extend_did_not_write_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "extended.json").write_text(text)
    with pytest.raises(UserError, match="extended.json"):
        added_cells.read(tmp_path)
