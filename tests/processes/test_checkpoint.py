"""A disk that is full while a run saves."""

import os
from pathlib import Path

import pytest

from tests.processes import launch
from tests.training.test_trainer import command
from videoscaling.training.checkpoints.checkpoint import checkpoint_paths, find_checkpoint


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_spares_the_checkpoint(cache: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = launch.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk])
    if mounted.returncode:
        pytest.skip(f"no tmpfs available: {mounted.stderr}")
    try:
        # A checkpoint of this model is about 0.6 MB: the third one no longer fits.
        settings = ("train.tokens=32000", "checkpoint.every_steps=20", "checkpoint.keep=9", "log.every_steps=1000")
        out = launch.run(command(cache, disk, "x", *settings))
        assert out.returncode == 2, out.stderr
        assert out.stderr.startswith(f"error: {disk}/x/checkpoints/")
        assert ": disk full; free some space" in out.stderr
        assert out.stderr.count("\n") == 1
        kept = checkpoint_paths(disk / "x" / "checkpoints")
        assert kept
        assert all(find_checkpoint(path) == path for path in kept)
        assert not list((disk / "x" / "checkpoints").glob(".*"))
    finally:
        launch.end_all()
        assert launch.run(["umount", disk]).returncode == 0
