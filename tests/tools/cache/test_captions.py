"""What the cache tool says about captions, skipped files and names, and what its index keeps of it."""

import json
import os

import pytest
import torch

from tests.tools.cache.test_latents import files_of, make_video, run, videos  # noqa: F401
from videoscaling.data.index import read_index
from videoscaling.data.latents import LatentCache

SMALL = ("--size", 16, "--frames", 5, "--validation", 0)


def test_captions_and_skipped_files_are_counted(run, tmp_path):
    folder = tmp_path / "videos"
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        make_video(folder / name, frames=10)  # two clips each
    (folder / "a.TXT").write_text("word " * 100)  # the embedded encoder takes 63 and an end token
    (folder / "b.txt").write_text("word " * 63)
    (folder / "c.txt").write_text("word " * 64)
    for name in ("d.srt", "a.srt", "._a.mp4"):
        (folder / name).write_text("x")
    job = ("--source", folder, *SMALL, "--out")
    dry = json.loads(run(*job, tmp_path / "x", "--dry-run", "--json")[1])
    made = json.loads(run(*job, tmp_path / "x", "--json")[1])
    index = read_index(tmp_path / "x")
    assert dry["captions"] == made["captions"] == index["captions"] == {"missing": 2, "cut": 4}
    assert dry["skipped"] == made["skipped"] == index["about"]["skipped"] == {"._*": 1, ".srt": 2}
    for extra in ((), ("--dry-run",)):
        status, text, _ = run(*job, tmp_path / "x", *extra)
        assert status == 0
        assert "captions: 2 of 8 clips have none; 4 have one that is longer than the text encoder takes" in text
        assert "files skipped, by kind: 1 ._*, 2 .srt" in text
    # An index of before is reported as it is.
    for key in ("captions", "skipped", "unread_columns"):
        (index if key in index else index["about"]).pop(key)
    (tmp_path / "x/index.json").write_text(json.dumps(index))
    status, text, said = run(*job, tmp_path / "x")
    assert (status, "clips have none" in text) == (0, False)
    assert "already finished" in said


def test_a_table_without_captions_is_refused_and_the_options_help(run, videos, tmp_path):
    (tmp_path / "m.csv").write_text("file,about,views\na.mp4,video a.mp4,3\nb.mp4,video b.mp4,4\n")
    job = ["--source", tmp_path / "m.csv", "--root", videos, *SMALL, "--out", tmp_path / "x"]
    for options, message in (
        ([], "no column 'path' (there are: file, about, views); name it with --path-column NAME"),
        (["--path-column", "file"], "no column of captions (there are: file, about, views); name it with"),
        (["--path-column", "file", "--no-captions", "--caption-column", "about"], "exclude each other"),
    ):
        status, printed, said = run(*job, *options)
        assert (status, printed, said.count("error: ")) == (2, "", 1)
        assert message in said
    status, text, _ = run(*job, "--path-column", "file", "--caption-column", "about")
    assert status == 0
    assert "columns not read: views" in text
    rows = [json.loads(line) for line in (tmp_path / "x/captions.jsonl").open()]
    assert {row["caption"] for row in rows} == {"video a.mp4", "video b.mp4"}
    status, _, said = run("--source", "synthetic", "--caption-column", "x", "--out", tmp_path / "y")
    assert (status, "--caption-column: for videos" in said) == (2, True)


def test_no_captions_at_all_are_warned_of_unless_asked_for(run, tmp_path):
    folder = tmp_path / "videos"
    for name in ("a.mp4", "b.mp4"):
        make_video(folder / name, frames=10)
    (folder / "list.csv").write_text("path,caption\na.mp4,x\nb.mp4,y\n")
    job = ("--source", folder, *SMALL, "--out")
    status, text, said = run(*job, tmp_path / "x")
    assert (status, "captions: 4 of 4 clips have none" in text) == (0, True)
    assert "warning: no captions found for 2 videos; there are tables next to the videos (1 .csv), which" in said
    assert "warning" not in run(*job, tmp_path / "y", "--no-captions")[2]
    assert files_of(tmp_path / "x") == files_of(tmp_path / "y")


def test_a_slurm_array_is_warned_of(run, videos, tmp_path, monkeypatch):
    for name, value in {"ID": 1, "MIN": 0, "COUNT": 4}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    job = ("--source", videos, "--json", "--out", tmp_path / "x")
    status, printed, said = run(*job)
    assert (status, json.loads(printed)["finished"]) == (0, False)
    assert "this process makes 1/4 of the cache (share 1/4)" in said
    status, printed, said = run(*job, "--share", "none")
    assert (status, "warning" in said, "train" in json.loads(printed)) == (0, False, True)


@pytest.mark.parametrize(("backend", "workers"), [("decord", 1), ("pyav", 0)], ids=["decord", "pyav"])
def test_names_that_are_not_utf8_are_kept(run, tmp_path, backend, workers):
    if backend == "decord":
        pytest.importorskip("decord")
    folder = tmp_path / "videos"
    plain = [make_video(folder / name, frames=10) for name in ("a.mp4", "b.mp4")]
    name = os.fsdecode(b"caf\xe9")
    plain[0].rename(folder / f"{name}.mp4")
    (folder / f"{name}.txt").write_text("a ball")
    (folder / f"{name}-broken.mp4").write_text("no video")
    (folder / "b.txt").write_text("a dog")
    job = ("--source", folder, "--backend", backend, "--size", 16, "--frames", 5, "--out")
    status, _, said = run(*job, tmp_path / "x", "--validation", 2, "--workers", workers)
    assert (status, "Traceback" in said) == (0, False)
    assert name == "caf\udce9"
    rows = [json.loads(line) for line in (tmp_path / "x/captions.jsonl").open()]
    assert {row["key"]: row["caption"] for row in rows} == {
        f"{name}.mp4#0": "a ball",
        f"{name}.mp4#5": "a ball",
        "b.mp4#0": "a dog",
        "b.mp4#5": "a dog",
    }
    (rejected,) = [json.loads(line) for line in (tmp_path / "x/rejected.jsonl").open()]
    assert (rejected["source"], rejected["reason"]) == (f"{name}-broken.mp4", "unreadable")
    cache = LatentCache(tmp_path / "x")
    assert len(cache.validation_keys) == cache.train_size == 2
    assert cache.train(torch.arange(2))[0].isfinite().all()
    assert run(*job, tmp_path / "x", "--validation", 2, "--verify")[0] == 0
    assert run(*job, tmp_path / "y", "--validation", tmp_path / "x")[0] == 0
    assert run(*job, tmp_path / "z", "--max-rejected", 0.1)[0] == 2
    assert json.loads((tmp_path / "z/rejected.jsonl").read_text())["source"] == f"{name}-broken.mp4"


def test_a_cache_of_other_videos_or_captions_says_which(run, tmp_path):
    """Not by a hash, which does not show what differs."""
    folder = tmp_path / "videos"
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        make_video(folder / name, frames=10)
    job = ("--source", folder, *SMALL, "--out", tmp_path / "x")
    assert run(*job)[0] == 0
    assert "already finished" in run(*job, "--no-captions")[2]  # no video has a caption: the same cache
    (folder / "a.txt").write_text("a caption")
    status, _, said = run(*job)
    assert (status, "of as many videos, a name, size or caption differs (see --no-captions and" in said) == (2, True)
    (folder / "a.mp4").unlink()
    status, _, said = run(*job)
    assert (status, "made otherwise: videos is 3 there and 2 now. Choose" in said) == (2, True)


def test_the_settings_of_a_cache_have_no_new_keys(run, videos, tmp_path):
    """A key more would be another fingerprint, and every cache another one."""
    assert run("--source", videos, "--out", tmp_path / "x")[0] == 0
    assert set(read_index(tmp_path / "x")["settings"]) == {
        "format",
        "frames",
        "height",
        "width",
        "source",
        "videos",
        "videos_hash",
        "clips",
        "clips_per_video",
        "fps_wanted",
        "hop",
        "backend",
        "validation",
        "stride",
        "vae_fingerprint",
        "text_fingerprint",
    }
