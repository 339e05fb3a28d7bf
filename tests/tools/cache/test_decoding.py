"""What decodes a cache's videos, and what the command says where some or all cannot be decoded."""

import json
import sys
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from tests.data.video.odd_videos import packed
from tests.data.video.videos import damage
from tests.data.video.videos import make_video as noisy_video
from tests.tools.cache.test_latents import files_of, make_video, run  # noqa: F401
from videoscaling import ROOT
from videoscaling.data.latents import LatentCache
from videoscaling.data.video import decode

CODING = {"g": "10", "bf": "0", "sc_threshold": "0"}


def test_a_clip_that_cannot_be_decoded_is_counted_by_itself(run, tmp_path):
    folder, out = tmp_path / "videos", tmp_path / "cache"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        noisy_video(folder / name, frames=60, coding=CODING)
    damage(folder / "b.mp4", [31])
    words = ("--source", folder, "--frames", 5, "--validation", 0, "--max-rejected", 0, "--out", out)
    status, printed, stderr = run(*words, "--json")
    assert status == 0, stderr
    found = json.loads(printed)
    assert (found["train"], found["rejected"], found["rejected_clips"]) == (34, {}, {"undecodable": 2})
    rows = [json.loads(line) for line in (out / "rejected.jsonl").open()]
    assert [(row["source"], row["clip"]) for row in rows] == [("b.mp4", "b.mp4#30"), ("b.mp4", "b.mp4#35")]
    assert LatentCache(out).train_size == 34
    assert run("--verify", *words)[0] == 0
    assert "single clips rejected, of videos that are kept: 2 undecodable" in run(*words)[1]


def test_an_index_without_lost_clips_does_not_mention_them(run, tmp_path):
    make_video(tmp_path / "videos" / "a.mp4")
    assert run("--source", tmp_path / "videos", "--validation", 0, "--out", tmp_path / "x")[0] == 0
    assert "rejected_clips" not in json.loads((tmp_path / "x" / "index.json").read_text())


def test_a_dry_run_without_a_usable_clip_is_one_line(run, tmp_path):
    """The header is whole, and every frame is damaged."""
    folder = tmp_path / "videos"
    folder.mkdir()
    damage(noisy_video(folder / "a.mp4", frames=20, coding=CODING), range(20))
    for words in (("--dry-run",), ("--dry-run", "--json")):
        status, printed, stderr = run("--source", folder, "--validation", 0, *words, "--out", tmp_path / "x")
        assert (status, printed) == (2, "")
        assert stderr.splitlines()[-1] == "error: no clip can be decoded of the 1 video tried (1 undecodable)"
        assert "Traceback" not in stderr
    assert not (tmp_path / "x").exists()


def test_a_folder_of_packed_videos_gives_their_clips(run, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    packed(folder / "a.avi", 39)
    words = ("--source", folder, "--validation", 0, "--out", tmp_path / "x", "--json")
    status, printed, stderr = run(*words, "--dry-run")
    assert status == 0, stderr
    assert json.loads(printed)["train"] == 2
    status, printed, _ = run(*words)
    assert (status, json.loads(printed)["train"], json.loads(printed)["rejected"]) == (0, 2, {})


def fake_torchcodec(monkeypatch, works: bool) -> None:
    """A package of that name whose decoder returns PyAV's frames, or fails as one without FFmpeg's libraries does."""
    import importlib.machinery

    package = ModuleType("torchcodec")
    package.__spec__ = importlib.machinery.ModuleSpec("torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    if works:
        monkeypatch.setitem(decode.BACKENDS, "torchcodec", decode.BACKENDS["pyav"])
    else:
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)


@pytest.mark.parametrize("works", [True, False])
def test_torchcodec_is_the_default_where_it_decodes(monkeypatch, works):
    fake_torchcodec(monkeypatch, works)
    assert decode.default_backend() == ("torchcodec" if works else "pyav")


def test_without_torchcodec_pyav_is_the_default(monkeypatch):
    monkeypatch.setattr(decode.importlib.util, "find_spec", lambda name: None)
    assert decode.default_backend() == "pyav"


@pytest.mark.parametrize(("system", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")])
def test_the_requirements_ask_for_wheels_that_exist(system, machine):
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    required = {one.name: one for one in map(Requirement, filter(None, lines))}
    environment = {"sys_platform": system, "platform_machine": machine}
    here = {name for name, one in required.items() if one.marker is None or one.marker.evaluate(environment)}
    assert ("decord" in here) == (machine == "x86_64")
    assert {"av", "torch"} <= here
    assert not {"torchcodec", "xformers"} & here


def test_a_cache_is_continued_with_the_decoder_that_it_was_begun_with(run, tmp_path, monkeypatch):
    """The default then was decord, and is what is installed now."""
    make_video(tmp_path / "videos" / "a.mp4")
    words = ("--source", tmp_path / "videos", "--validation", 0, "--out", tmp_path / "x")
    monkeypatch.setattr("videoscaling.data.video.decode.default_backend", lambda: "torchcodec")
    assert run(*words, "--backend", "pyav")[0] == 0
    before = files_of(tmp_path / "x")
    status, _, stderr = run(*words)
    assert (status, "already finished" in stderr) == (0, True)
    assert files_of(tmp_path / "x") == before
    # Another is asked for by name.
    pytest.importorskip("decord")
    status, _, stderr = run(*words, "--backend", "decord")
    assert status == 2
    assert "backend is 'pyav' there and 'decord' now" in stderr
