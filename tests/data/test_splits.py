"""Which clips go where: decided alike by everybody, from few videos, and kept when more are added."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.data.splits_before import draw_before
from tests.data.video.videos import make_video, source
from videoscaling.data import splits as drawing
from videoscaling.data.cache_report import split_text
from videoscaling.data.clip_groups import ClipGroup
from videoscaling.data.guard import first_frame
from videoscaling.data.sources.listing import list_sources
from videoscaling.data.sources.source import Rejected, Source
from videoscaling.data.splits import Split, VideoScan, draw, hash_order
from videoscaling.data.video.clips import ClipOptions, Clips, Shape, load_clips
from videoscaling.utils.errors import UserError

READING = ClipOptions(Shape(frames=5, size=32, stride=2), 4)
ANY_LENGTH = replace(READING, clips=10_000)


class Opened(list):
    """Names of videos; ``counts`` are the clips of those that have not four."""

    counts: dict[str, int]


@pytest.fixture
def opened(monkeypatch):
    """Videos that need not exist, of four clips each (none in "bad*"); the names of those that were opened. Clips are
    9 frames long, 24 frames a second."""
    names, counts = Opened(), {}
    names.counts = counts

    def stand_in(source, clip_options, starts=None, decode=True):
        def load():
            names.append(source.name)
            if source.name.startswith("bad"):
                raise Rejected("truncated", "")
            count = counts.get(source.video, 4)
            keys = [f"{source.name}#{9 * i}" for i in range(count)]
            return Clips(keys, [""] * count, torch.empty(count, 0), 12.0, 9 * count / 24)

        return ClipGroup(source.name, [f"{source.name}#{start}" for start in starts or ()], load)

    monkeypatch.setattr(drawing, "video_group", stand_in)
    return names


def sources_of(*names):
    return [Source(name, Path(name), "") for name in names]


def numbered(count):
    return sources_of(*(f"{i}.mp4" for i in range(count)))


def drawn(sources, *options, **more):
    return draw(VideoScan(sources, READING, 0, 60), READING, *options, **more).units


def names_of(units):
    return [unit.source for unit in units]


def keys_of(units):
    return [key for unit in units for key in unit.keys]


def test_a_video_is_in_one_split_and_the_frozen_list_stays(opened):
    split = drawn(numbered(20))
    assert not set(names_of(split["train"])) & set(names_of(split["validation"]))
    assert len(split["train"]) + len(split["validation"]) == 20
    assert len(keys_of(split["validation"])) == 8  # a tenth of the 80 clips
    assert names_of(split["train"]) == sorted(names_of(split["train"]))
    backwards = drawn(numbered(20)[::-1])
    assert [names_of(part) for part in backwards.values()] == [names_of(part) for part in split.values()]
    frozen = keys_of(split["validation"])
    grown = drawn(numbered(200), frozen=frozen)
    assert keys_of(grown["validation"]) == frozen
    assert not set(names_of(grown["train"])) & set(names_of(split["validation"]))
    assert len(grown["train"]) == 198
    with pytest.raises(UserError, match="of the frozen validation list cannot be read .*not among these videos"):
        drawn(sources_of("0.mp4", "new.mp4"), frozen=frozen)


def test_the_number_of_clips_is_kept(opened):
    for train, validation in ((1, 1), (7, 6), (None, 5), (30, 0)):
        split = drawn(numbered(9), train, validation)
        assert len(keys_of(split["validation"])) == validation
        left = 4 * (9 - len(split["validation"]))
        clips = sum(len(unit.keys) or 4 for unit in split["train"])
        assert clips == min(left, left if train is None else train)
    # A longer list begins with the shorter one.
    longer, shorter = (keys_of(drawn(numbered(9), None, n)["validation"]) for n in (9, 5))
    assert longer[:5] == shorter
    for sources in (numbered(1), [*numbered(1), *sources_of("bad.mp4")]):
        with pytest.raises(UserError, match="no video is left for training"):
            drawn(sources, None, 3)
    assert names_of(drawn(numbered(1), validation=0)["train"]) == ["0.mp4"]


def test_of_many_videos_few_are_opened(opened):
    drawn(numbered(1000), None, 20)
    assert len(opened) == drawing.SAMPLE
    del opened[:]
    scan = VideoScan(numbered(1000), READING, 0, 60)
    split = draw(scan, READING, 500, 400).units
    assert len(opened) == scan.opened == 225  # 400 / 4 and 500 / 4 of them
    assert opened == [source.name for source in hash_order(numbered(1000))][:225]
    assert (len(split["validation"]), len(split["train"]), scan.clips_per_video) == (100, 125, 4)
    default = drawn(numbered(10_000))
    assert len(keys_of(default["validation"])) == drawing.VALIDATION_CLIPS


def test_rejected_videos_among_those_opened_stay_to_be_reported_once(opened):
    names = [f"{'bad' if i % 3 == 0 else ''}{i}.mp4" for i in range(60)]
    scan = VideoScan(sources_of(*names), READING, 0, 60)
    split = draw(scan, READING).units
    assert sorted(names_of(split["train"]) + names_of(split["validation"])) == sorted(names)
    assert not any(name.startswith("bad") for name in names_of(split["validation"]))
    assert sorted(row["source"] for row in scan.rejected) == sorted(names[::3])
    # Of a bounded cache, those that were looked at on the way.
    bounded = draw(scan, READING, 40, 8).units
    seen = names_of(bounded["train"])
    assert sum(len(unit.keys) or 4 for unit in bounded["train"] if not unit.source.startswith("bad")) == 40
    assert any(name.startswith("bad") for name in seen)


def test_ranges_of_one_video_are_never_parted(opened):
    sources = [Source(f"{i}.mp4@{t}-{t + 9}", Path(f"{i}.mp4"), "", t, t + 9) for i in range(12) for t in (0, 10, 20)]
    for validation in (None, 3, 5):
        split = drawn(sources, None, validation)
        videos = [{name.partition("@")[0] for name in names_of(split[part])} for part in ("train", "validation")]
        assert not videos[0] & videos[1]


def test_a_file_of_two_names_is_in_one_split(opened, tmp_path):
    sources = []
    for i in range(12):
        path = tmp_path / f"{i}.mp4"
        path.write_bytes(b"")
        (tmp_path / f"again{i}.mp4").symlink_to(path)
        (tmp_path / f"third{i}.mp4").hardlink_to(path)
        sources += [Source(f"{name}{i}.mp4", tmp_path / f"{name}{i}.mp4", "") for name in ("", "again", "third")]
    for options in ({}, {"validation": 5}, {"train": 20}, {"frozen": ["again3.mp4#0", "7.mp4#9"]}):
        split = drawn(sources, **options)
        files = [{(tmp_path / name).resolve().stat().st_ino for name in names_of(part)} for part in split.values()]
        assert files[0]
        assert files[1]
        assert not files[0] & files[1]
    # Of a tar, members are files.
    shard = [Source(f"x.tar/{i}.mp4", tmp_path / "0.mp4", "", offset=512 * i, size=9) for i in range(20)]
    assert sum(map(len, drawn(shard).values())) == 20


def test_units_load_the_clips_of_their_keys(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / name, frames=40)
    (tmp_path / "a.txt").write_text("a fog")
    scan = VideoScan(list_sources(tmp_path), READING, 0, 60)
    units = draw(scan, READING).units
    assert scan.fps == 12
    for unit in [*units["train"], *units["validation"]]:
        loaded = unit.load()
        assert loaded.captions == ["a fog" if unit.source == "a.mp4" else ""] * len(loaded.keys)
        assert loaded.keys == scan.found[unit.source].keys
        for key, clip in zip(loaded.keys, loaded.pixels):
            name, start = key.split("#")
            alone = load_clips(source(tmp_path / name), READING, [int(start)])
            assert torch.equal(clip, alone.pixels[0])
    # A video that vanishes between the survey and its turn is rejected, not fatal.
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(Rejected):
        next(u for part in units.values() for u in part if u.source == "a.mp4").load()


def split_of(opened, counts, *options, sources=None, **more) -> tuple[Split, int]:
    """The split of videos with these numbers of clips, and how many clips there are."""
    opened.counts.clear()
    opened.counts.update({f"{i}.mp4": count for i, count in enumerate(counts)})
    sources = sources or numbered(len(counts))
    return draw(VideoScan(sources, ANY_LENGTH, 0, 60), ANY_LENGTH, *options, **more), sum(counts)


def trained(split, opened):
    return [
        key
        for unit in split.units["train"]
        for key in unit.keys or [f"{unit.source}#{9 * i}" for i in range(opened.counts.get(unit.source, 4))]
    ]


@pytest.mark.parametrize(
    "counts",
    [
        [891, 11, 12, 11, 12],
        [11, 12, 891, 11, 12],
        [11, 891, 12, 11, 891],
        [16, 1, 1, 1, 2],
        [40],
        [3],
        [10],
        [14],
        [4, 900],
        [300, *[4] * 80],
        pytest.param([9000], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_cap_holds_whatever_a_long_video_has_and_most_of_it_is_trained_on(opened, counts):
    split, total = split_of(opened, counts)
    validation, training = keys_of(split.units["validation"]), trained(split, opened)
    least = 2 if total >= 10 else 1  # training needs two
    assert least <= len(validation) <= max(least, min(total // 10, 512))
    assert len(validation) >= min(total // 10, 512) // 2
    assert len(training) >= total // 3
    assert not set(validation) & set(training)
    assert split.wanted == len(validation)
    assert split.unused == total - len(validation) - len(training)
    # Between a validated clip and a trained one of the same video lies the gap, which is a clip's span at least.
    gap = round(split.gap_seconds * 24)
    assert (gap >= 9) == bool(split.parted)
    for name in split.parted:
        of_video = [[key for key in keys if key.startswith(f"{name}#")] for keys in (validation, training)]
        starts = [sorted(map(first_frame, keys)) for keys in of_video]
        assert starts[0]
        assert min(abs(a - b) for a in starts[0] for b in starts[1]) >= 9 + gap
        assert starts[0] == list(range(starts[0][0], starts[0][-1] + 1, 9))  # one stretch of time
    # The same for every caller, in any order the videos are listed.
    again, _ = split_of(opened, counts, sources=numbered(len(counts))[::-1])
    assert [[(u.source, u.keys) for u in part] for part in again.units.values()] == [
        [(u.source, u.keys) for u in part] for part in split.units.values()
    ]


def test_a_number_of_clips_takes_no_more_of_a_film_than_it_says(opened):
    split, _ = split_of(opened, [891, 11, 12, 11, 12], None, 20)
    assert len(keys_of(split.units["validation"])) == 20
    assert len(trained(split, opened)) > 800
    limited, _ = split_of(opened, [891], 100, 20)
    assert (len(trained(limited, opened)), len(keys_of(limited.units["validation"]))) == (100, 20)


def test_a_film_listed_in_ranges_is_split_between_them(opened):
    sources = [Source(f"film.mp4@{t}-{t + 5}", Path("film.mp4"), "", t, t + 5) for t in range(0, 1000, 5)]
    split = draw(VideoScan(sources, ANY_LENGTH, 0, 60), ANY_LENGTH)
    ranges = [
        [float(unit.source.partition("@")[2].partition("-")[0]) for unit in part] for part in split.units.values()
    ]
    assert len(keys_of(split.units["validation"])) == 80
    assert len(ranges[0]) > 100
    assert split.gap_seconds == 10
    assert min(abs(a - b) for a in ranges[0] for b in ranges[1]) >= 15  # 5 s long, 10 s apart
    assert (split.parted, split.rule, split.about["by"]) == (["film.mp4"], "parted", "time")


def test_the_list_of_a_parted_film_is_carried_on(opened):
    first, _ = split_of(opened, [891])
    frozen = keys_of(first.units["validation"])
    opened.counts["1.mp4"] = 7
    more = draw(VideoScan(numbered(2), ANY_LENGTH, 0, 60), ANY_LENGTH, frozen=frozen)
    assert keys_of(more.units["validation"]) == frozen
    assert set(trained(more, opened)) == {*trained(first, opened), *(f"1.mp4#{9 * i}" for i in range(7))}
    # Where others outweigh it, the film is validated on alone.
    many = draw(VideoScan(numbered(2000), ANY_LENGTH, 0, 60), ANY_LENGTH, frozen=frozen)
    assert not many.parted
    assert "0.mp4" not in names_of(many.units["train"])


@pytest.mark.parametrize("seed", range(8))
def test_caches_of_before_are_drawn_as_they_were(opened, seed):
    """The list and what is trained on of videos of ordinary lengths, and of any where the cache says no rule."""
    chance = random.Random(seed)
    for _ in range(40):
        count, longest = chance.randint(2, 90), chance.choice((1, 4, 16))
        counts = [chance.randint((longest + 1) // 2, longest) for _ in range(count)]
        options = chance.choice(((None, None), (None, chance.randint(0, count)), (chance.randint(1, 50), None)))
        for as_before, long in ((False, 0), (True, 0), (True, 900)):
            every = [*counts, long] if long else counts
            opened.counts.update({f"{i}.mp4": number for i, number in enumerate(every)})
            held, training = draw_before(VideoScan(numbered(len(every)), ANY_LENGTH, 0, 60), *options)
            if not training:  # refused before
                continue
            if not as_before and options[1] is None and sum(map(len, held.values())) == 1:
                continue  # one clip, which no training takes: where there are ten, two are drawn now
            split, _ = split_of(opened, every, *options, as_before=as_before)
            assert {unit.source: unit.keys for unit in split.units["validation"]} == held
            assert {unit.source: unit.keys for unit in split.units["train"]} == {
                name: keys or [] for name, keys in training.items()
            }
            assert split.rule is None


def test_the_report_says_that_one_validation_clip_is_too_few():
    split = {"by": "video", "wanted": 1, "parted": [], "gap_seconds": 0.0, "unused": 0}
    for clips in (0, 1):  # none is left of a video that cannot be decoded
        assert "too few to train on: train.py needs two (--validation 2" in split_text(split, clips)[1]
    assert len(split_text(split, 2)) == 1
    assert len(split_text(split | {"wanted": 0}, 0)) == 1


def test_the_report_says_why_more_clips_are_validated_on_than_were_to_be():
    split = {"by": "video", "wanted": 3, "parted": [], "gap_seconds": 0.0, "unused": 0}
    text = "  validation: 7 clips for the 3 wanted, as the last video drawn is not divided, split by video"
    assert split_text(split, 7) == [text]
    assert split_text(split, 3) == ["  validation: 3 clips, split by video"]
