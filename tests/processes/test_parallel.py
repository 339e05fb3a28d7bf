"""Sharded or replicated, on one process or two, begun under one and ended under another: the same numbers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.processes.trainings import average_watched, together, train_on_nodes, weights_before_training
from tests.processes.watched_steps import watch
from tests.training.test_trainer import losses, metrics, overrides, result
from videoscaling.training.checkpoint import find_checkpoint, read_tensors
from videoscaling.training.config import Config, load_config
from videoscaling.training.model import build_model
from videoscaling.training.train import prepare

# 50 steps of 4 clips, one at a time, every gradient clipped; half-way there is a milestone, and a checkpoint.
SETTINGS = (
    "model.size=2x32",
    "train.tokens=6400",
    "train.milestones=[3200]",
    "train.micro_batch=1",
    "optim.clip=0.05",
    "optim.warmup_tokens=384",
)
HALF = ("train.tokens=3200",)
# Layouts of first halves, with those of their second halves.
THEN = {"one": ("fsdp", "zero1"), "zero1": ("zero1", "fsdp"), "fsdp": ("one", "ddp", "fsdp", "zero1")}


@pytest.fixture(scope="module")
def runs(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole runs under each layout; and first halves, gone on with under another."""
    out = tmp_path_factory.mktemp("parallel")

    def run(name: str, parallel: str, world: int, *more: str, node: int | None = None) -> None:
        keys = overrides(cache, out, name, *SETTINGS, f"train.parallel={parallel}", *more)
        text = together(out / "log" / name, train_on_nodes, keys, node or world, world=world)
        assert "view tensor" not in text

    run("one", "ddp", 1)
    run("one_recomputed", "ddp", 1, "train.activation_checkpointing=true")
    for parallel in ("ddp", "zero1", "fsdp"):
        run(parallel, parallel, 2)
    run("hsdp", "hsdp", 4, node=2)
    run("fsdp_recomputed", "fsdp", 2, "train.activation_checkpointing=true")
    worlds = {"one": 1, "ddp": 2, "zero1": 2, "fsdp": 2}
    for first, others in THEN.items():
        run(f"{first}_then", "ddp" if first == "one" else first, worlds[first], *HALF)
        for other in others:
            shutil.copytree(out / f"{first}_then", out / f"{first}_then_{other}")
            run(f"{first}_then_{other}", "ddp" if other == "one" else other, worlds[other])
    return out


pytestmark = pytest.mark.slow  # a dozen trainings come first, 30 s

OTHERS = ("ddp", "zero1", "fsdp", "hsdp", *(f"{first}_then_{other}" for first in THEN for other in THEN[first]))


@pytest.mark.parametrize("name", OTHERS)
def test_losses_and_average_are_those_of_one_process(runs: Path, name: str) -> None:
    assert len(losses(runs / name)) == 50
    assert [m["tokens"] for m in result(runs / name)["milestones"]] == [3200, 6400]
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
        mine, one = (read_tensors(path, kind) for path in (ours, theirs))
        assert mine.keys() == one.keys()
        for key, value in mine.items():
            assert value.dtype == one[key].dtype
            # Adam divides by the root of the second moment: where that is near nothing, rounding is all there is.
            torch.testing.assert_close(value, one[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("parallel", ["zero1", "fsdp"])
def test_resuming_in_the_same_layout_changes_no_bit(runs: Path, parallel: str) -> None:
    assert metrics(runs / f"{parallel}_then_{parallel}") == metrics(runs / parallel)
    ours, theirs = (find_checkpoint(runs / run) for run in (f"{parallel}_then_{parallel}", parallel))
    # At a milestone the average is whole, and the rest in pieces.
    files = [
        "ema.safetensors",
        *(f"{kind}.piece-{i}-of-2.safetensors" for kind in ("model", "optimizer") for i in "01"),
    ]
    assert sorted(path.name for path in ours.glob("*.safetensors")) == files
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in files)


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


def test_a_sharded_step_gathers_once_in_bfloat16_and_keeps_no_weights(cache: Path, tmp_path: Path) -> None:
    """Three micro-batches: every group of parameters is gathered and reduced once, not in each pass of each."""
    keys = overrides(cache, tmp_path, "x", *SETTINGS, "train.parallel=fsdp", "train.dtype=bfloat16")
    keys += ["model.size=2x64", "train.batch_tokens=192"]
    together(tmp_path / "log", watch, keys, str(tmp_path / "account"), world=2)
    found = json.loads((tmp_path / "account").read_text())
    blocks = 2  # their matrices; the rest is one group of float32
    gathers = {"allgather float32": 1, "allgather bfloat16": blocks}
    assert found["calls"] == gathers | {"reduce_scatter float32": blocks + 1}
    gathered = found["bytes"]["allgather bfloat16"] / 2 + found["bytes"]["allgather float32"] / 4
    assert gathered == found["bytes"]["reduce_scatter float32"] / 4 == found["parameters"]
    # The forward pass saved the blocks' matrices, freed with the gathered weights, and the cast of one of the text's.
    assert found["seen"] == 7 * blocks + 1
    assert found["held"] == 2 * 64**2
