from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.data.video.videos import cut, make_cut_video
from videoscaling.data import shot_sources
from videoscaling.data.guard import first_frame
from videoscaling.data.shot_sources import ShotCounts, ShotOptions, split_into_shots
from videoscaling.data.sources.listing import list_sources
from videoscaling.data.splits import VideoScan, draw
from videoscaling.data.video.clips import ClipOptions, Shape, load_clips
from videoscaling.data.video.shots import Shot
from videoscaling.data.work_share import WorkShare
from videoscaling.utils.errors import UserError

OPTIONS = ShotOptions("histogram", WorkShare(), workers=0, limit_seconds=60)
CLIPS = ClipOptions(Shape(frames=9, size=32))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """A video of three shots, the second too short for a clip."""
    path = tmp_path / "videos"
    path.mkdir()
    make_cut_video(path / "x.mp4", (30, 5, 25))
    (path / "x.txt").write_text("three colours")
    return path


def test_each_shot_is_a_source_and_the_short_one_is_counted(folder):
    listed, counts = split_into_shots(list_sources(folder), OPTIONS, CLIPS)
    assert [(s.name, s.caption) for s in listed] == [
        ("x.mp4@0-1.25", "three colours"),
        ("x.mp4@1.458333-2.5", "three colours"),
    ]
    # Of 60 frames in a row six clips could be cut; of 30 and 25 three and two are.
    assert counts == ShotCounts("histogram", videos=1, shots=3, too_short=1, clips_left_out=1)
    numbered, _ = split_into_shots(list_sources(folder), OPTIONS, CLIPS, numbered=True)
    assert numbered[1].caption == "three colours, shot 3 of 3"


def test_no_clip_crosses_a_cut(folder):
    for source, frames in zip(split_into_shots(list_sources(folder), OPTIONS, CLIPS)[0], (30, 25)):
        clips = load_clips(source, replace(CLIPS, window_step=1, clips=99))
        assert len(clips.keys) == frames - 8
        for clip in clips.pixels.float():
            colours = clip.median(dim=3).values.median(dim=2).values  # [3, F]: the bar is narrow
            assert (colours.max(dim=1).values - colours.min(dim=1).values).max() < 20


def test_resampling_counts_the_frames_that_are_left(folder):
    options = ClipOptions(Shape(frames=9, size=32), fps=12)
    listed, counts = split_into_shots(list_sources(folder), OPTIONS, options)
    assert counts.too_short == 1
    assert [len(load_clips(source, options).keys) for source in listed] == [1, 1]
    assert counts.clips_left_out == 3 - 2


def test_shots_are_kept_and_found_again_where_they_cannot_be_read(folder, cache, monkeypatch):
    first = split_into_shots(list_sources(folder), OPTIONS, CLIPS)
    kept = list(cache.rglob("*.json"))
    assert len(kept) == 1
    find, asked = shot_sources.find_shots, []
    monkeypatch.setattr(shot_sources, "find_shots", lambda *args: asked.append(args) or find(*args))
    assert split_into_shots(list_sources(folder), OPTIONS, CLIPS) == first
    assert not asked
    kept[0].write_text('[["x"]]')
    assert split_into_shots(list_sources(folder), OPTIONS, CLIPS) == first
    (folder / "x.mp4").touch()
    assert split_into_shots(list_sources(folder), OPTIONS, CLIPS) == first
    assert len(asked) == 2


def test_processes_begin_at_different_videos(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(
        shot_sources, "find_shots", lambda source, rule: order.append(source.name) or [Shot(0.0, 2.0, 48)]
    )
    for name in "abcdef":
        (tmp_path / f"{name}.mp4").touch()
    sources = list_sources(tmp_path)
    for rank in (1, 0):
        split_into_shots(sources, replace(OPTIONS, share=WorkShare(rank, 2)), CLIPS)
    assert order == ["d.mp4", "e.mp4", "f.mp4", "a.mp4", "b.mp4", "c.mp4"]


def test_a_cache_folder_that_cannot_be_written_costs_time_alone(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert split_into_shots(list_sources(folder), OPTIONS, CLIPS)[1].shots == 3


def test_a_video_that_cannot_be_decoded_is_rejected_for_its_own_reason(folder):
    cut(make_cut_video(folder / "y.mp4", (30, 30)), 0.6)
    listed, counts = split_into_shots(list_sources(folder), OPTIONS, CLIPS)
    assert [(s.name, s.reason) for s in listed if s.fault] == [("y.mp4", "truncated")]
    assert (counts.videos, len(listed)) == (1, 3)
    scan = VideoScan(listed, CLIPS, workers=0, limit_seconds=60)
    scan.open(3)
    assert [(row["source"], row["reason"]) for row in scan.rejected] == [("y.mp4", "truncated")]


def test_pictures_stay_and_ranges_are_refused(folder):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "p.png")
    listed, _ = split_into_shots(list_sources(folder), OPTIONS, CLIPS)
    assert "p.png" in [source.name for source in listed]
    table = folder / "t.csv"
    table.write_text("path,caption,start,end\nx.mp4,a,0,1\n")
    with pytest.raises(UserError, match="x.mp4@0-1 has one; leave --shots out"):
        split_into_shots(list_sources(table), OPTIONS, CLIPS)


def test_validation_takes_whole_shots_from_the_middle_of_one_film_with_a_gap(tmp_path):
    make_cut_video(tmp_path / "film.mp4", [20] * 40)
    listed, _ = split_into_shots(list_sources(tmp_path), OPTIONS, CLIPS)
    split = draw(VideoScan(listed, CLIPS, workers=0, limit_seconds=60), CLIPS)
    shot_of = {source.name: round(source.start * 24 / 20) for source in listed}
    held = sorted(shot_of[unit.source] for unit in split.units["validation"])
    trained = sorted(shot_of[unit.source] for unit in split.units["train"])
    assert held == [18, 19, 20, 21]  # a tenth of 80 clips
    assert all(unit.keys for unit in split.units["validation"])
    # A twentieth of the film's 33 s: two shots on either side.
    assert trained == [*range(16), *range(24, 40)]
    assert split.parted == ["film.mp4"]
    assert split.gap_seconds == pytest.approx(40 * 20 / 24 / 20, abs=0.05)
    assert split.unused == 8
    assert all(first_frame(key) in (0, 9) for unit in split.units["validation"] for key in unit.keys)
