"""Sharded or replicated, on one process or two, begun under one and ended under another: the same numbers."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.processes.trainings import average_watched, together, train_it, weights_before_training
from tests.training.test_trainer import losses, metrics, overrides, result
from videoscaling.training.checkpoint import find_checkpoint
from videoscaling.training.config import Config, load_config
from videoscaling.training.model import build_model
from videoscaling.training.train import prepare

# 30 steps of 4 clips, one at a time, every gradient clipped; half-way there is a milestone, and a checkpoint.
SETTINGS = (
    "model.size=2x32",
    "train.tokens=3840",
    "train.milestones=[1920]",
    "train.micro_batch=1",
    "optim.clip=0.05",
    "optim.warmup_tokens=384",
)
HALF = ("train.tokens=1920",)


@pytest.fixture(scope="module")
def runs(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole runs under each layout; and first halves, gone on with under another."""
    out = tmp_path_factory.mktemp("parallel")

    def run(name: str, parallel: str, world: int, *more: str) -> None:
        keys = overrides(cache, out, name, *SETTINGS, f"train.parallel={parallel}", *more)
        text = together(out / "log" / name, train_it, keys, world=world)
        assert "view tensor" not in text

    run("one", "ddp", 1)
    run("one_recomputed", "ddp", 1, "train.activation_checkpointing=true")
    run("ddp", "ddp", 2)
    run("fsdp", "fsdp", 2)
    run("fsdp_recomputed", "fsdp", 2, "train.activation_checkpointing=true")
    run("fsdp_then_ddp", "fsdp", 2, *HALF)
    for name in ("fsdp_then_fsdp", "fsdp_then_one"):
        shutil.copytree(out / "fsdp_then_ddp", out / name)
    run("fsdp_then_ddp", "ddp", 2)
    run("fsdp_then_fsdp", "fsdp", 2)
    run("fsdp_then_one", "ddp", 1)
    run("one_then_fsdp", "ddp", 1, *HALF)
    run("one_then_fsdp", "fsdp", 2)
    return out


pytestmark = pytest.mark.slow  # a dozen trainings come first, 30 s

OTHERS = ("ddp", "fsdp", "fsdp_then_ddp", "fsdp_then_fsdp", "fsdp_then_one", "one_then_fsdp")


@pytest.mark.parametrize("name", OTHERS)
def test_losses_and_average_are_those_of_one_process(runs: Path, name: str) -> None:
    assert len(losses(runs / name)) == 30
    assert [m["tokens"] for m in result(runs / name)["milestones"]] == [1920, 3840]
    np.testing.assert_allclose(losses(runs / name), losses(runs / "one"), rtol=1e-5)
    norms, wanted = ([line["grad_norm"] for line in metrics(runs / run)] for run in (name, "one"))
    np.testing.assert_allclose(norms, wanted, rtol=1e-4)
    assert min(wanted) > 0.05  # every step was clipped
    for ours, theirs in zip(result(runs / name)["milestones"], result(runs / "one")["milestones"]):
        for key in ("val_loss", "ema_val_loss"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_checkpoints_are_alike(runs: Path, name: str) -> None:
    """So each loads wherever another does; sample.py reads them no differently."""
    ours, theirs = (find_checkpoint(runs / run) for run in (name, "one"))
    for kind in ("model", "ema", "optimizer"):
        mine, one = (load_file(path / f"{kind}.safetensors") for path in (ours, theirs))
        assert mine.keys() == one.keys()
        for key, value in mine.items():
            assert value.dtype == one[key].dtype
            # Adam divides by the root of the second moment: where that is near nothing, rounding is all there is.
            torch.testing.assert_close(value, one[key], rtol=1e-3, atol=1e-5)


def test_resuming_in_the_same_layout_changes_no_bit(runs: Path) -> None:
    assert metrics(runs / "fsdp_then_fsdp") == metrics(runs / "fsdp")
    ours, theirs = (find_checkpoint(runs / run) for run in ("fsdp_then_fsdp", "fsdp"))
    for kind in ("model", "ema", "optimizer"):
        assert (ours / f"{kind}.safetensors").read_bytes() == (theirs / f"{kind}.safetensors").read_bytes()


def test_recomputing_activations_changes_no_bit(runs: Path) -> None:
    assert metrics(runs / "one_recomputed") == metrics(runs / "one")
    assert metrics(runs / "fsdp_recomputed") == metrics(runs / "fsdp")


def test_initialisation_is_the_same_on_any_number_of_processes(cache: Path, tmp_path: Path) -> None:
    wanted = build_model(*begun(cache, tmp_path), torch.device("cpu")).state_dict()
    for parallel in ("ddp", "fsdp"):
        keys = overrides(cache, tmp_path, "x", *SETTINGS, f"train.parallel={parallel}")
        together(tmp_path / "log", weights_before_training, keys, str(tmp_path / parallel), world=2)
        found = load_file(tmp_path / parallel)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


def begun(cache: Path, out: Path) -> tuple[Config, dict]:
    run, data = prepare(load_config(None, overrides(cache, out, "x", *SETTINGS)))
    return run.config, data.meta


def test_a_sharded_average_follows_its_shards(runs: Path, cache: Path, tmp_path: Path) -> None:
    """What a forward pass gathers must be let go: the next one is of weights that have moved on."""
    keys = overrides(cache, tmp_path, "x", *SETTINGS, "train.parallel=fsdp")
    together(tmp_path / "log", average_watched, keys, world=2)
    for ours, theirs in zip(result(tmp_path / "x")["milestones"], result(runs / "fsdp")["milestones"]):
        assert ours["ema_val_loss"] == pytest.approx(theirs["ema_val_loss"], rel=1e-6)
