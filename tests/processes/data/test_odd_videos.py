"""Two hundred odd videos and more: kept with the frames that ffmpeg plays, or rejected as truncated."""

import shutil
from collections import Counter

import numpy as np
import pytest

from tests.data.video.odd_videos import backends, played, shown_by, write_odd_videos
from tests.processes import launch
from videoscaling.data.sources.listing import list_sources
from videoscaling.data.sources.source import Rejected
from videoscaling.data.video.decode import frame_reader
from videoscaling.data.video.probe import probe


def played_by_the_binary(path) -> bytes:
    """The same from the program ffmpeg, turned as it turns them, as the bytes of RGB."""
    words = [
        "ffmpeg",
        "-v",
        "error",
        "-nostdin",
        "-i",
        path,
        "-map",
        "0:v:0",
        "-fps_mode",
        "passthrough",
        "-f",
        "rawvideo",
    ]
    return launch.run([*words, "-pix_fmt", "rgb24", "-"], text=False).stdout


@pytest.mark.slow
def test_odd_videos_are_kept_and_rejected_as_ffmpeg_plays_them(tmp_path):
    kinds = {path.name: kind for path, kind in write_odd_videos(tmp_path)}
    sources, table, wrong = list_sources(tmp_path), Counter(), []
    assert len(sources) == len(kinds) > 200
    usable = backends()
    for each in sources:
        kind = kinds[each.name]
        try:
            found = probe(each)
        except Rejected as error:
            table[kind, error.reason] += 1
            if (kind, error.reason) != ("truncated", "truncated"):
                wrong.append((each.name, str(error)))
            continue
        table[kind, "kept"] += 1
        if kind == "truncated":
            wrong.append((each.name, "kept"))
            continue
        expected = played(each.path)
        if kind == "matrix":
            expected = shown_by(tuple(map(int, each.path.stem.split("_")[3:])), expected)
        count, middle = len(expected), len(expected) // 2
        if len(found.times) != count:
            wrong.append((each.name, f"{len(found.times)} frames of {count}"))
            continue
        for backend in usable:
            exact = backend != "decord" or "ten_bit" not in each.name
            for numbers in (range(count), [count - 1], [middle, middle + 2], [count // 3], [0]):
                with frame_reader(each, found, backend) as read:
                    for asked in (numbers, [middle + 1]):
                        error = np.abs(read(asked).astype(int) - expected[list(asked)]).max()
                        if error > (0 if exact else 11):
                            wrong.append((each.name, backend, f"frames {asked} differ by up to {error}"))
        if shutil.which("ffmpeg"):
            # Another version, which interpolates colours otherwise: 3 levels on average.
            binary = np.frombuffer(played_by_the_binary(each.path), np.uint8)
            if binary.size != expected.size:
                wrong.append((each.name, f"the program ffmpeg plays {binary.size / expected[0].size:g} of {count}"))
            elif np.abs(binary.reshape(expected.shape) - expected.astype(int)).mean((1, 2, 3)).max() > 3:
                wrong.append((each.name, "the program ffmpeg plays other frames"))
    for (kind, became), count in sorted(table.items()):
        print(f"{kind:<16} {became:<12} {count:>4}")
    print(
        f"{len(sources)} videos; backends: {', '.join(usable)}; program ffmpeg: {shutil.which('ffmpeg') is not None}"
    )
    assert not wrong
