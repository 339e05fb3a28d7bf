"""The cache tool with --shots: what it counts, and what it says before it decodes whole videos."""

import json

from tests.commands import call
from tests.data.video.videos import cut, make_cut_video
from tests.tools.cache.test_latents import run  # noqa: F401
from videoscaling.data import shot_sources

SHOTS = ("--shots", "histogram", "--frames", 9, "--no-captions", "--max-rejected", 0.05)


def test_the_videos_that_may_be_rejected_are_counted_as_videos_and_not_as_shots(run, tmp_path, monkeypatch):
    """Two of five videos are two of 62 sources once the others are shots."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder, out = tmp_path / "videos", tmp_path / "cache"
    folder.mkdir()
    for number in range(4):
        make_cut_video(folder / f"{number}.mp4", [10] * 20)
    cut(folder / "3.mp4", 0.5)
    make_cut_video(folder / "4.mp4", [5, 5])  # no shot has the frames of a clip
    job = ("--source", folder, "--out", out, *SHOTS)
    status, _, reported = run(*job)
    assert status == 2
    assert "2 of 5 videos cannot be used (1 truncated, 1 too short); --max-rejected 0.4 accepts so many" in reported
    rows = {row["source"]: row for row in map(json.loads, (out / "rejected.jsonl").read_text().splitlines())}
    assert rows.keys() == {"3.mp4", "4.mp4"}
    assert rows["4.mp4"]["detail"] == "2 shots of at most 5 frames; a clip spans 9"
    assert run(*job, "--max-rejected", 0.4)[0] == 0
    index = json.loads((out / "index.json").read_text())
    assert index["rejected"] == {"too short": 1, "truncated": 1}
    assert index["about"]["shots"] == {
        "rule": "histogram",
        "videos": 4,
        "shots": 62,
        "too_short": 2,
        "clips_left_out": 6 + 1,
    }


def test_what_needs_no_video_is_said_before_shots_are_found(tmp_path, monkeypatch):
    make_cut_video(tmp_path / "x.mp4", [30, 30])
    monkeypatch.setattr(shot_sources, "find_shots", lambda *args: 1 / 0)
    (tmp_path / "ranges.csv").write_text("path,start,end\nx.mp4,0,1\n")
    for wrong, message in (
        (("--size", 36), "height 36: this VAE takes multiples of 8"),
        (("--text", tmp_path), "no config.json"),
        (("--source", tmp_path / "ranges.csv", "--text", tmp_path), "x.mp4@0-1 has one; leave --shots out"),
        (("--frames", 8), "8 frames: this VAE takes 4k + 1"),
    ):
        words = ("--source", tmp_path, "--out", tmp_path / "cache", "--workers", 0, *SHOTS, *wrong)
        done = call("tools/cache_latents.py", *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr
