"""Two hundred files as they lie about in real folders: whatever they are, none stops a job, and good ones are kept."""

import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.data.video.videos import make_sound, make_video, turn
from videoscaling.data.clip_groups import video_group
from videoscaling.data.sources.listing import list_sources
from videoscaling.data.sources.source import Rejected
from videoscaling.data.video.clips import ClipOptions, Clips, Shape
from videoscaling.data.video.decode_workers import decoded

READING = ClipOptions(Shape(frames=5, size=32, stride=2), clips=3)
LIMIT = 20.0
BASES = {
    "plain.mp4": {},
    "fast_start.mp4": {"options": {"movflags": "faststart"}},
    "fragments.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}},
    "x.mkv": {},
    "x.webm": {"codec": "libvpx-vp9", "coding": {"cpu-used": "8", "deadline": "realtime"}},
    "x.avi": {"codec": "mpeg4"},
    "x.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "x.ts": {},
    "x.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}
GOOD = {
    "odd.mp4": {"height": 47, "width": 61, "pix_fmt": "yuv444p"},
    "tall.mp4": {"height": 90, "width": 34},
    "grey.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "ten_bit.mp4": {"pix_fmt": "yuv420p10le"},
    "sound_first.mp4": {"sound_first": True},
    "varying.mp4": {"times": [i + i // 3 for i in range(30)]},
    "open_groups.mp4": {"coding": {"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}},
    "lossless.mkv": {"codec": "ffv1", "pix_fmt": "bgr0"},
}


def two_hundred(folder) -> dict[str, set[str | None]]:
    """What may become of each file by name: reasons for its rejection, or None where it is to be kept."""
    chance, expected = np.random.default_rng(5), {}
    folder.mkdir()

    def write(name: str, content: bytes, *reasons: str | None) -> None:
        name = f"{len(expected):03d}_{name}"
        (folder / name).write_bytes(content)
        expected[name] = set(reasons)

    bases = {name: make_video(folder / name, **video).read_bytes() for name, video in BASES.items()}
    good = {name: make_video(folder / name, **video).read_bytes() for name, video in GOOD.items()}
    for name in (*bases, *good):
        (folder / name).unlink()
    for name, content in (bases | good).items():
        write(name, content, None)
    for name, content in bases.items():
        # Truncated anywhere. What no header says is missing is used, or too little.
        declared = name not in ("fragments.mp4", "x.ts")
        for part in chance.random(8):
            reasons = (
                ("truncated",) if declared else (None, "truncated", "too short", "undecodable", "no video stream")
            )
            short = ("unreadable",) if part * len(content) < 200 or not declared else ()
            write(f"cut_{name}", content[: int(part * len(content))], *reasons, *short)
        # Bytes changed in the middle: a decoder notices, or conceals it.
        for _ in range(5):
            noise, at = bytearray(content), int(chance.integers(0, len(content) - 500))
            noise[at : at + 500] = chance.bytes(500)
            every = ("truncated", "unreadable", "undecodable", "no video stream", "too short", "too small", "crashed")
            write(f"noise_{name}", bytes(noise), None, *every, "too slow")
        # Another kind's ending; ffmpeg looks at what is inside.
        write(f"named_{name}.mp4" if name != "plain.mp4" else "named.avi", content, None)
    for i in range(8):
        write(f"empty{list(BASES)[i]}", b"", "unreadable")
        write(f"zeros{list(BASES)[i]}", bytes(int(chance.integers(1, 20000))), "unreadable", "no video stream")
        write(f"text{list(BASES)[i]}", b"Dear diary, no video today.\n" * 50, "unreadable", "no video stream")
    for turns in (1, 2, 3):
        path = turn(make_video(folder / "turned.mp4", width=66 + 2 * turns), turns)
        write("turned.mp4", path.read_bytes(), None)
        path.unlink()
    for name, video, reason in (
        ("one.mp4", {"frames": 1}, "too short"),
        ("eight.mkv", {"frames": 8}, "too short"),
        ("one.gif", {"frames": 1, "codec": "gif", "pix_fmt": "rgb8"}, "too short"),
        ("narrow.mov", {"width": 1, "codec": "png", "pix_fmt": "rgb24"}, "too small"),
        ("flat.mov", {"height": 1, "codec": "png", "pix_fmt": "rgb24"}, "too small"),
        ("small.mp4", {"height": 30, "width": 300}, "too small"),
    ):
        path = make_video(folder / name, **video)
        write(name, path.read_bytes(), reason)
        path.unlink()
    path = make_sound(folder / "sound.mp4")
    write("sound.mp4", path.read_bytes(), "no video stream")
    path.unlink()
    while len(expected) < 200:
        name = f"{len(expected):03d}_gone.mp4"
        (folder / name).symlink_to(folder / "nowhere.mp4")
        expected[name] = {"missing"}
    return expected


@pytest.mark.slow
def test_two_hundred_files(tmp_path):
    expected = two_hundred(tmp_path / "files")
    sources = list_sources(tmp_path / "files")
    assert len(sources) == len(expected) == 200
    begun, became, longest = time.monotonic(), {}, 0.0
    for source, answer in zip(sources, decoded([video_group(s, READING) for s in sources], 2, LIMIT), strict=True):
        longest, begun = max(longest, time.monotonic() - begun), time.monotonic()
        became[source.name] = answer.reason if isinstance(answer, Rejected) else None
        if isinstance(answer, Clips):
            assert answer.pixels.shape[1:] == (3, 5, 32, 32)
            assert len(answer.keys) == len(answer.pixels) > 0
    wrong = {name: became[name] for name, allowed in expected.items() if became[name] not in allowed}
    assert not wrong
    kept = sum(reason is None for reason in became.values())
    assert kept >= sum(allowed == {None} for allowed in expected.values()) > 25
    print(f"{kept} kept, {dict(Counter(filter(None, became.values())))}; the longest took {longest:.1f} s")


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_clips(tmp_path):
    """The sum of two workers' own memory. A clip has 27 KB of pixels; allocators wander by 1 KB a clip."""
    pytest.importorskip("decord")
    files = []
    for i, backend in enumerate(["decord", "pyav"]):
        path = make_video(tmp_path / f"{i}.mp4", frames=200, height=64, width=64, coding={"g": "12"})
        files.append(video_group(list_sources(tmp_path)[i], ClipOptions(Shape(9, 32), clips=20, backend=backend)))
        assert path.exists()
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "0.mp4").read_bytes()[:9000])
    files.append(video_group(next(s for s in list_sources(tmp_path) if s.name == "bad.mp4"), READING))
    clips, seen = 0, []
    for number, answer in enumerate(decoded((files[i % 3] for i in range(750)), 2, 60)):
        clips += len(answer.keys) if isinstance(answer, Clips) else 0
        if number % 10 == 0:
            seen.append((clips, memory_of_workers()))
    assert clips == 10_000
    later = np.array([row for row in seen if row[0] > clips / 4])
    slope = np.polyfit(later[:, 0], later[:, 1], 1)[0]
    print(f"{slope:.0f} bytes a clip; {later[0, 1] / 2**20:.0f} MiB, at the end {later[-1, 1] / 2**20:.0f} MiB")
    assert slope < 4096


def memory_of_workers() -> int:
    """Resident bytes of this process's workers."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            if int(fields["PPid"]) == os.getpid():
                total += int(fields.get("VmRSS", "0 kB").split()[0]) * 1024
    return total
