"""The cache tool as a job: what it says beforehand, checks afterwards, and does as one of several."""

import json
import time
from functools import partial

import pytest

from tests.data.units import unit
from tests.data.video.videos import make_video
from tests.tools.cache.test_latents import PoolingVAE, files_of, run, videos  # noqa: F401
from videoscaling.data import verify
from videoscaling.data.clip_groups import ClipGroup
from videoscaling.data.latents import LatentCache
from videoscaling.data.work_share import this_share
from videoscaling.data.writer import Load, WorkShare
from videoscaling.utils.errors import UserError


def test_a_dry_run_says_what_the_cache_then_holds_and_writes_nothing(run, videos, tmp_path):
    out = tmp_path / "cache"
    status, printed, _ = run("--source", videos, "--out", out, "--dry-run", "--json")
    assert status == 0
    assert not out.exists()
    reported = json.loads(printed)
    assert (reported["videos"], reported["opened"], reported["kept"]) == (5, 5, 3)
    assert reported["rejected"] == {"too short": 1, "truncated": 1}
    made = json.loads(run("--source", videos, "--out", out, "--json")[1])
    for key in ("train", "validation", "tokens", "rejected"):
        assert reported[key] == made[key]
    clips = made["train"] + made["validation"]
    assert reported["hours"] == pytest.approx(clips * 17 / 24 / 3600)
    assert reported["bytes"] == 2 * clips * 3 * 5 * 4 * 4
    assert reported["seconds"] == pytest.approx(clips * (reported["decode"] + reported["encode"]))
    text = run("--source", videos, "--out", out, "--dry-run")[1]
    assert "5 videos: about 3 can be used" in text
    assert "rejected of 5: 1 truncated, 1 too short" in text
    slower = json.loads(run("--source", videos, "--out", out, "--stride", 2, "--dry-run", "--json")[1])
    clips = slower["train"] + slower["validation"]
    assert clips > 0
    assert slower["hours"] == pytest.approx(clips * 17 / 12 / 3600)  # 17 frames, each 1/12 s after the one before


def test_a_dry_run_outlives_a_video_that_hangs():
    units = [ClipGroup("hangs", [], partial(time.sleep, 600)), unit("x", 0, 2)]
    decode, encode = verify._speed(units, PoolingVAE(), Load(4, 2, 0.5))
    assert 0 < decode < 300  # of 600 that it would hang
    assert encode > 0


def test_a_dry_run_of_many_videos_opens_some(run, tmp_path, monkeypatch):
    monkeypatch.setattr("videoscaling.data.verify.OPENED", 4)
    monkeypatch.setattr("videoscaling.data.splits.SAMPLE", 4)
    monkeypatch.setattr("videoscaling.data.plan.SAMPLE", 4)
    (tmp_path / "videos").mkdir()
    for number in range(8):
        make_video(tmp_path / "videos" / f"{number}.mp4", frames=40)
    reported = json.loads(run("--source", tmp_path / "videos", "--out", "x", "--dry-run", "--json")[1])
    assert (reported["videos"], reported["opened"], reported["kept"]) == (8, 4, 8)
    assert (reported["train"], reported["validation"]) == (14, 2)


def test_verify_encodes_clips_again_and_names_what_differs(run, videos, tmp_path, monkeypatch):
    out = tmp_path / "cache"
    job = ("--source", videos, "--out", out)
    assert run(*job)[0] == 0
    before = files_of(out)
    status, printed, _ = run(*job, "--verify", "--batch", 3, "--json")
    reported = json.loads(printed)
    assert status == 0
    assert reported["clips"] == LatentCache(out).train_size + LatentCache(out).validation_size
    assert reported["largest_difference"] < 1e-3 < reported["tolerance"]
    assert files_of(out) == before
    status, _, reported = run(*job, "--verify", "--stride", 2)
    assert (status, "stride is 1 there and 2 now" in reported) == (2, True)
    # Another autoencoder under the same name: checksums cannot show it, clips can.
    from videoscaling.tools import cache_work

    class Brighter(type(cache_work.load_vae("x", "cpu", None))):
        def encode(self, clips):
            return super().encode(clips) * 1.05

    monkeypatch.setattr(cache_work, "load_vae", lambda spec, device, dtype: Brighter())
    assert run("--out", out, "--verify")[0] == 0
    status, _, reported = run(*job, "--verify")
    assert status == 2
    assert "differs by 0.0476 of its size" in reported


def test_what_every_process_of_a_torchrun_finds_is_printed_by_the_first(run, tmp_path, monkeypatch):
    """Of eight processes each printed the summary of a cache that was finished, and its checksums' verdict."""
    job = ("--source", "synthetic", "--clips", 4, "--validation", 2, "--out", tmp_path / "cache")
    assert run(*job)[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("1", (0, 0)), ("0", (1, 1))):
        monkeypatch.setenv("RANK", rank)
        status, printed, stderr = run(*job, "--json")
        assert (status, (printed.count("\n"), stderr.count("\n"))) == (0, lines)
        for more in (job, ("--out", tmp_path / "cache")):
            status, printed, stderr = run(*more, "--verify")
            assert (status, printed.count("\n"), stderr) == (0, lines[0], "")


def test_a_dry_run_of_several_processes_is_printed_by_the_first(run, videos, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        status, printed, _ = run("--source", videos, "--out", tmp_path / "cache", "--dry-run", "--json")
        assert (status, printed.count("\n")) == (0, rank == "0")


def test_what_is_rejected_beyond_the_default_stops_the_job(run, videos, tmp_path):
    status, _, reported = run("--source", videos, "--out", tmp_path / "x", "--max-rejected", 0.05)
    assert status == 2
    assert "2 of 5 videos cannot be used (1 truncated, 1 too short); --max-rejected 0.4 accepts so many" in reported
    rows = [json.loads(line) for line in (tmp_path / "x" / "rejected.jsonl").open()]
    assert [row["source"] for row in rows] == ["cut.mp4", "short.mp4"]


@pytest.mark.slow
def test_workers_and_shares_make_the_same_bytes(run, videos, tmp_path, monkeypatch):
    monkeypatch.setattr("videoscaling.data.writer.SHARD_CLIPS", 1)
    job = ("--source", videos, "--json", "--out")
    assert run(*job, tmp_path / "whole")[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    status, printed, _ = run(*job, tmp_path / "shared")
    assert status == 0
    assert json.loads(printed) == {"out": str(tmp_path / "shared"), "finished": False, "shards": 5, "shards_there": 2}
    with pytest.raises(UserError, match="unfinished"):
        LatentCache(tmp_path / "shared")
    assert "2 of 5 shards are there" in run("--source", videos, "--out", tmp_path / "shared")[1]
    monkeypatch.setenv("RANK", "0")
    assert json.loads(run(*job, tmp_path / "shared", "--workers", 1)[1])["train"] > 0
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("env", "share"),
    [
        ({}, (0, 1)),
        ({"RANK": 3, "WORLD_SIZE": 8}, (3, 8)),
        ({"ID": 4, "MIN": 0, "COUNT": 10}, (4, 10)),
        ({"ID": 3, "MIN": 1, "COUNT": 4}, (2, 4)),
        ({"ID": 6, "MIN": 0, "COUNT": 4, "STEP": 3}, (2, 4)),
        ({"ID": 1, "MIN": 0, "COUNT": 2, "RANK": 3, "WORLD_SIZE": 8}, (11, 16)),  # a torchrun in each task
    ],
)
def test_shares_of_torchrun_and_of_slurm_arrays(monkeypatch, env, share):
    for name, value in env.items():
        monkeypatch.setenv(name if "R" in name and name != "STEP" else f"SLURM_ARRAY_TASK_{name}", str(value))
    assert this_share() == WorkShare(*share)


def test_an_array_with_gaps_is_refused(monkeypatch):
    for name, value in {"ID": 7, "MIN": 0, "COUNT": 3}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    with pytest.raises(UserError, match="--array=0-2"):
        this_share()


# -- real clips ----------------------------------------------------------------------------------------------------
