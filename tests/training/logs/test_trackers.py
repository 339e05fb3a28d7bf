"""The points of a run in Weights & Biases and Trackio: by stand-ins, and by the packages where they are installed."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training.test_trainer import overrides, run
from videoscaling.training.config import load_config
from videoscaling.training.logs.trackers import FILE
from videoscaling.training.stacked.loop import train_stacked
from videoscaling.training.train import train
from videoscaling.utils.errors import UserError

KEY = "0123456789abcdef0123456789abcdef01234567"
SHORT = ("train.tokens=640", "train.milestones=[256]", "validation.timesteps=1")


class StandIn(SimpleNamespace):
    """A tracker's package that records how it is called; ``log`` raises from the ``broken`` call on."""

    def __init__(self, broken: float = float("inf")) -> None:
        super().__init__(inits=[], points=[], finished=0, broken=broken)

    def Settings(self, **settings: Any) -> dict:
        return settings

    def init(self, **given: Any) -> "StandIn":
        self.inits.append(given)
        return self

    def log(self, values: dict, step: int) -> None:
        if len(self.points) >= self.broken:
            raise RuntimeError("no server\nat all")
        self.points.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, StandIn]:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    found = {name: StandIn() for name in ("wandb", "trackio")}
    for name, package in found.items():
        monkeypatch.setitem(sys.modules, name, package)
    return found


def texts(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_run_and_its_continuation(cache: Path, tmp_path: Path, packages: dict[str, StandIn]) -> None:
    """One run there, over tokens, with TensorBoard's names; without it no events, and neither a key nor a path."""
    run(cache, tmp_path, "a/x", *SHORT, "log.to=[wandb,trackio]")
    number = (tmp_path / "a" / "x" / FILE).read_text()
    for name, package in packages.items():
        (given,) = package.inits
        own = "x" if name == "wandb" else f"x_{number[:6]}"
        assert (given["project"], given["group"], given["name"]) == ("videoscaling", "a", own)
        assert given["config"]["N"] == 16384
        assert given["config"]["optim.clip"] == 1.0
        assert str(tmp_path) not in json.dumps(given["config"]) + given["name"] + given["group"]
        assert [tokens for tokens, _ in package.points] == [128, 256, 256, 384, 512, 640, 640]
        assert {"train/loss", "train/lr", "train/memory_GiB"} <= package.points[0][1].keys()
        assert {"validation/ema_val_loss", "validation/val_se"} <= package.points[-1][1].keys()
        assert package.finished == 1
        assert given.get("id") == (number if name == "wandb" else None)
    assert not list((tmp_path / "a" / "x").rglob("events*"))
    assert KEY.encode() not in texts(tmp_path)
    run(cache, tmp_path, "a/x", *SHORT, "train.tokens=1280", "log.to=[wandb,trackio]")
    wandb, trackio = (package.inits[-1] for package in packages.values())
    assert (wandb["id"], wandb["resume"], trackio["resume"]) == (number, "allow", "allow")
    assert trackio["name"] == packages["trackio"].inits[0]["name"]
    assert packages["wandb"].points[7][0] == 768


def test_a_cell_is_named_by_its_size_batch_rate_and_seed(
    cache: Path, tmp_path: Path, packages: dict[str, StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    number = run(cache, tmp_path, "first", *SHORT)["run_id"]
    run(cache, tmp_path, f"grid/{number}", *SHORT, "log.to=[tensorboard,wandb]")
    (given,) = packages["wandb"].inits
    assert (given["project"], given["group"], given["name"]) == ("mine", "grid", "1x32_B128_lr0.003_seed0")
    assert list((tmp_path / "grid" / number).rglob("events*"))


def test_cells_of_one_name_are_two_runs_in_trackio(cache: Path, tmp_path: Path, packages: dict[str, StandIn]) -> None:
    """Their names alone differ there: trackio continues the latest run of a name."""
    for name, end in (("a/x", 640), ("b/x", 640), ("a/x", 1280)):
        run(cache, tmp_path, name, *SHORT, "log.to=[trackio]", f"train.tokens={end}")
    first, other, again = (given["name"] for given in packages["trackio"].inits)
    assert first == again != other


def test_a_fault_of_a_tracker_ends_no_run(
    cache: Path, tmp_path: Path, packages: dict[str, StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    packages["wandb"].broken = 2
    assert run(cache, tmp_path, "x", *SHORT, "log.to=[wandb]")["status"] == "done"
    said = [line for line in capsys.readouterr().err.splitlines() if "wandb" in line]
    assert said == ["warning: log.to: wandb has no more of this run until it is started again: no server"]


@pytest.mark.parametrize("package", [None, SimpleNamespace()], ids=["absent", "a folder"])
def test_a_tracker_that_is_not_installed_is_one_line(
    package: object, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", package)
    with pytest.raises(UserError, match="wandb is not installed; pip install wandb, or leave it out"):
        run(cache, tmp_path, "x", *SHORT, "log.to=[wandb]")
    assert not (tmp_path / "x").exists()


def test_a_run_with_wandb_offline(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run(cache, tmp_path, "x", *SHORT, "log.to=[wandb]")
    run(cache, tmp_path, "x", *SHORT, "train.tokens=1280", "log.to=[wandb]")
    number = (tmp_path / "x" / FILE).read_text()
    first, second = sorted(tmp_path.glob("x/wandb/offline-run-*/*.wandb"))
    assert first.stem == second.stem == f"run-{number}"
    assert b"validation/ema_val_loss" in second.read_bytes()
    assert KEY.encode() not in texts(tmp_path)


def test_two_stacked_runs_with_trackio(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trackio has one run at a time in a context; the two do not end each other's."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setenv("TRACKIO_PROJECT", f"test-{os.getpid()}")
    both = [overrides(cache, tmp_path, f"grid/{lr}", *SHORT, f"optim.lr={lr}") for lr in (1e-3, 2e-3)]
    configs = [load_config(None, [*words, "log.to=[trackio]"]) for words in both]
    assert train_stacked(configs) == 0
    grown = load_config(None, [*both[0], "log.to=[trackio]", "train.tokens=1280"])
    assert train(grown) == 0
    for name, last in (("0.001", 1280), ("0.002", 640)):
        digits = (tmp_path / "grid" / name / FILE).read_text()[:6]
        steps = [row["step"] for row in SQLiteStorage.get_logs(f"test-{os.getpid()}", f"{name}_{digits}")]
        assert steps[-1] == last
        assert sorted(set(steps)) == list(range(128, last + 1, 128))
