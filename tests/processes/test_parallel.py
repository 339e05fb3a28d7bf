"""Sharded or replicated, on one process or two, begun under one and ended under another: the same numbers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.processes.trainings import (
    average_watched,
    together,
    train_it,
    train_on_nodes,
    weights_before_training,
    with_exact_gathers,
)
from tests.processes.watched_steps import watch
from tests.training.test_trainer import losses, metrics, overrides, result
from videoscaling.training.checkpoints.checkpoint import find_checkpoint, read_tensors
from videoscaling.training.config import Config, load_config
from videoscaling.training.model import build_model
from videoscaling.training.train import prepare

# 50 steps of 4 clips, one at a time, every gradient clipped; half-way there is a milestone, and a checkpoint.
SETTINGS = (
    "model.size=2x32",
    "model.heads=2",
    "train.tokens=6400",
    "train.milestones=[3200]",
    "train.micro_batch=1",
    "optim.clip=0.05",
    "optim.warmup_tokens=384",
)
HALF = ("train.tokens=3200",)
# By name: train.parallel, processes, and train.context_parallel.
LAYOUTS = {
    "one": ("ddp", 1, 1),
    "ddp": ("ddp", 2, 1),
    "zero1": ("zero1", 2, 1),
    "fsdp": ("fsdp", 2, 1),
    "hsdp": ("hsdp", 4, 1),
    "context": ("ddp", 2, 2),
    "context_zero1": ("zero1", 4, 2),
    "context_fsdp": ("fsdp", 2, 2),
}
# Layouts of first halves, with those of their second halves.
THEN = {
    "one": ("fsdp", "zero1", "context"),
    "zero1": ("zero1", "fsdp"),
    "fsdp": ("one", "ddp", "fsdp", "zero1"),
    "context": ("one", "fsdp"),
}


@pytest.fixture(scope="module")
def runs(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole runs under each layout; and first halves, continued under another."""
    out = tmp_path_factory.mktemp("parallel")

    def run(name: str, layout: str, *more: str) -> None:
        parallel, world, context = LAYOUTS[layout]
        sharing = (f"train.parallel={parallel}", f"train.context_parallel={context}", f"train.micro_batch={context}")
        keys = overrides(cache, out, name, *SETTINGS, *sharing, *more)
        text = together(out / "log" / name, train_on_nodes, keys, min(world, 2), world=world)
        assert "view tensor" not in text

    for layout in LAYOUTS:
        run(layout, layout)
    for layout in RECOMPUTED:
        run(f"{layout}_recomputed", layout, "train.activation_checkpointing=true")
    if shutil.which("g++"):
        run("context_fsdp_compiled", "context_fsdp", "train.compile=true")
    for first, others in THEN.items():
        run(f"{first}_then", first, *HALF)
        for other in others:
            shutil.copytree(out / f"{first}_then", out / f"{first}_then_{other}")
            run(f"{first}_then_{other}", other)
    return out


pytestmark = pytest.mark.slow  # two dozen trainings come first

RECOMPUTED = ("one", "fsdp", "context")
OTHERS = (
    *list(LAYOUTS)[1:],
    *(f"{first}_then_{other}" for first in THEN for other in THEN[first]),
    pytest.param(
        "context_fsdp_compiled",
        marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
    ),
)


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
    for layout in RECOMPUTED:
        assert metrics(runs / f"{layout}_recomputed") == metrics(runs / layout)


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


def test_slices_gather_the_blocks_matrices_in_bfloat16(cache: Path, tmp_path: Path) -> None:
    """Once a step of three micro-batches; all else in float32, and all gradients are reduced in it. Of the average a
    process has its half, and the whole of it only when it is asked for."""
    keys = overrides(cache, tmp_path, "x", *SETTINGS, "train.parallel=zero1", "train.dtype=bfloat16")
    keys += ["model.size=2x64", "train.batch_tokens=192"]
    together(tmp_path / "log", watch, keys, str(tmp_path / "account"), world=2)
    found = json.loads((tmp_path / "account").read_text())
    assert found["calls"] == {"allgather bfloat16": 1, "allgather float32": 2, "reduce_scatter float32": 3}
    assert found["bytes"]["allgather bfloat16"] == 2 * 2 * 16 * 64**2
    gathered = found["bytes"]["allgather bfloat16"] / 2 + found["bytes"]["allgather float32"] / 4
    assert gathered == found["bytes"]["reduce_scatter float32"] / 4 == pytest.approx(found["parameters"], rel=0.02)
    half = 4 * found["parameters"] // 2
    assert found["average"] == [pytest.approx(half, rel=0.02), pytest.approx(3 * half, rel=0.02)]


def test_slices_gathered_in_bfloat16_change_no_bit(cache: Path, tmp_path: Path) -> None:
    """The blocks cast their matrices in any case; what is saved, and continued from, are the float32 slices."""
    for name, ends in {"exact": ["6400"], "zero1": ["6400"], "resumed": ["3200", "6400"]}.items():
        keys = overrides(cache, tmp_path, name, *SETTINGS, "train.parallel=zero1", "train.dtype=bfloat16")
        for end in ends:
            target = with_exact_gathers if name == "exact" else train_it
            together(tmp_path / "log" / name / end, target, [*keys, f"train.tokens={end}"], world=2)
    wanted = metrics(tmp_path / "exact")
    assert len(wanted) == 50
    assert metrics(tmp_path / "zero1") == metrics(tmp_path / "resumed") == wanted
    for kind in ("model", "ema", "optimizer"):
        ours, theirs = (read_tensors(find_checkpoint(tmp_path / name), kind) for name in ("zero1", "exact"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


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
