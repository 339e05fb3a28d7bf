import pytest
import torch

from data.clips import Reading, Shape, load_clips, to_float, windows
from data.listing import list_sources
from data.media import Rejected
from data.probe import Probe
from data.sources import Survey, read_frozen, split_videos, survey, video_units
from tests.data.videos import make_video, source
from utils.errors import UserError

SHAPE = Shape(frames=5, size=32, stride=2)


def surveyed(names, frames=40):
    """A survey of videos that need not exist."""
    names = list(names)
    probes = {name: Probe(tuple(range(frames)), 24.0, 48, 64) for name in names}
    return Survey(probes, dict.fromkeys(names, windows(frames, 48, 64, Reading(SHAPE, 4))), [])


def keys(videos):
    return [f"{name}#{start}" for name, starts in videos.items() for start in starts]


def test_a_video_is_in_one_split_and_the_frozen_list_stays(tmp_path):
    first = surveyed([f"{i}.mp4" for i in range(20)])
    split = split_videos(first, SHAPE)
    assert not set(split["train"]) & set(split["validation"])
    assert set(split["train"]) | set(split["validation"]) == set(first.starts)
    assert len(keys(split["validation"])) == 8  # a tenth of the 80 clips
    backwards = split_videos(surveyed(reversed(first.starts)), SHAPE)
    assert backwards["validation"] == split["validation"]  # drawn by name, not by place
    frozen = keys(split["validation"])
    larger = surveyed([f"{i}.mp4" for i in range(200)])
    grown = split_videos(larger, SHAPE, frozen=frozen)
    assert keys(grown["validation"]) == frozen
    assert set(grown["train"]) == set(larger.starts) - set(split["validation"])
    with pytest.raises(UserError, match="frozen validation list cannot be had"):
        split_videos(surveyed(["0.mp4", "new.mp4"]), SHAPE, frozen=frozen)


def test_the_number_of_clips_is_kept():
    some = surveyed([f"{i}.mp4" for i in range(9)])
    for train, validation in ((1, 1), (7, 6), (None, 5), (30, 0)):
        split = split_videos(some, SHAPE, train, validation)
        assert len(keys(split["validation"])) == validation
        left = sum(len(some.starts[name]) for name in set(some.starts) - set(split["validation"]))
        assert len(keys(split["train"])) == min(left, left if train is None else train)
    # A longer list begins with the shorter one.
    longer, shorter = (keys(split_videos(some, SHAPE, validation=n)["validation"]) for n in (9, 5))
    assert longer[:5] == shorter
    with pytest.raises(UserError, match="no video is left for training"):
        split_videos(surveyed(["one.mp4"]), SHAPE)
    assert split_videos(surveyed(["one.mp4"]), SHAPE, validation=0)["train"] == {"one.mp4": [0, 9, 18, 27]}


def test_units_load_the_clips_of_their_keys(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / name, frames=40)
    (tmp_path / "a.txt").write_text("a fog")
    sources = list_sources(tmp_path)
    found = survey(sources, SHAPE, 4)
    units = video_units(sources, found, split_videos(found, SHAPE), SHAPE)
    for unit in [*units["train"], *units["validation"]]:
        captions, loaded = unit.load()
        assert captions == ["a fog" if unit.source == "a.mp4" else ""] * len(unit.keys)
        for key, clip in zip(unit.keys, loaded):
            name, start = key.split("#")
            alone = load_clips(source(tmp_path / name), Reading(SHAPE), [int(start)])
            assert torch.equal(clip, to_float(alone.pixels)[0])
    # A video that vanishes between the survey and its turn is rejected, not fatal.
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(Rejected):
        next(u for part in units.values() for u in part if u.source == "a.mp4").load()


def test_an_altered_frozen_list_is_refused(tmp_path):
    (tmp_path / "validation.json").write_text('{"hash": "0", "keys": ["a#0"]}')
    with pytest.raises(UserError, match="altered"):
        read_frozen(tmp_path)
    (tmp_path / "validation.json").write_text("[]")
    with pytest.raises(UserError, match="not a validation list"):
        read_frozen(tmp_path / "validation.json")
