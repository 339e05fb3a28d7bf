"""Checkpoints are whole or passed over, whatever happens to the disk."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_trainer import ENVIRONMENT, command, overrides, run
from training.checkpoint import checkpoint_paths, find_checkpoint, save_checkpoint
from training.config import load_config
from training.trainer import train
from utils.errors import UserError


def test_finished_ema_only_checkpoints_keep_the_average_alone(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "x", "checkpoint.final=ema", "checkpoint.every_steps=10")
    (only,) = checkpoint_paths(tmp_path / "x" / "checkpoints")
    assert sorted(p.name for p in only.glob("*.safetensors")) == ["ema.safetensors"]


def test_checkpoints_are_whole_or_passed_over(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole = run(cache, tmp_path, "whole", "checkpoint.every_steps=20", "train.tokens=12800")
    run(cache, tmp_path, "x", "checkpoint.every_steps=20", "train.tokens=6400")
    newest, before = checkpoint_paths(tmp_path / "x" / "checkpoints")
    content = (newest / "ema.safetensors").read_bytes()
    for cut in (0, 7, len(content) // 2, len(content) - 1):
        (newest / "ema.safetensors").write_bytes(content[:cut])
        with pytest.raises(UserError, match="damaged"):
            find_checkpoint(newest)
        assert find_checkpoint(tmp_path / "x") == before
        assert "trying the checkpoint before it" in capsys.readouterr().err
    # Going on from the one before gives the same numbers, and the damaged one does not come back.
    grown = run(cache, tmp_path, "x", "checkpoint.every_steps=20", "train.tokens=12800", "optim.warmup_tokens=640")
    assert [m["tokens"] for m in grown["milestones"]] == [6400, 12800]
    assert all(find_checkpoint(p) == p for p in checkpoint_paths(tmp_path / "x" / "checkpoints"))
    assert whole["milestones"][-1]["tokens"] == 12800
    (newest / "ema.safetensors").unlink(missing_ok=True)
    with pytest.raises(UserError, match="no such checkpoint"):
        find_checkpoint(tmp_path / "nowhere")


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path: Path) -> None:
    config = load_config(None, ["model.size=1x32"])
    before = save_checkpoint(tmp_path, 1, {"ema": {"w": torch.ones(4)}}, {}, config)

    class Full(dict):
        def items(self):
            raise OSError(28, "No space left on device", "x")

    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 2, {"ema": {"w": torch.ones(4)}, "model": Full()}, {}, config)
    assert find_checkpoint(before) == before
    assert [p.name for p in tmp_path.iterdir()] == [before.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_spares_the_checkpoint(cache: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs to be had: {mounted.stderr.decode()}")
    try:
        # A checkpoint of this model is about 0.6 MB: the third one no longer fits.
        settings = ("train.tokens=64000", "checkpoint.every_steps=20", "checkpoint.keep=9", "log.every_steps=1000")
        out = subprocess.run(
            command(cache, disk, "x", *settings), env=ENVIRONMENT, capture_output=True, text=True, timeout=60
        )
        assert out.returncode == 2, out.stderr
        assert out.stderr.startswith("error: disk full")
        assert out.stderr.count("\n") == 1
        kept = checkpoint_paths(disk / "x" / "checkpoints")
        assert kept
        assert all(find_checkpoint(path) == path for path in kept)
        assert not list((disk / "x" / "checkpoints").glob(".*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_checkpoint_of_another_model_is_refused(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "small", "train.tokens=640")
    run(cache, tmp_path, "large", "model.size=2x32", "train.tokens=640")
    small, large = (find_checkpoint(tmp_path / name) for name in ("small", "large"))
    tensors = {kind: load_file(small / f"{kind}.safetensors") for kind in ("model", "ema", "optimizer")}
    config = load_config(large / "config.yaml", [])
    save_checkpoint(large.parent, 20, tensors, json.loads((small / "state.json").read_text()), config)
    with pytest.raises(UserError, match="of another model"):
        train(load_config(None, overrides(cache, tmp_path, "large", "model.size=2x32", "train.tokens=6400")))
