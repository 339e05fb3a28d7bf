from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.video.test_decode import every_frame
from tests.data.video.videos import damage, make_video, source, turn
from videoscaling.data.sources.listing import list_sources
from videoscaling.data.sources.source import Rejected, Source
from videoscaling.data.video import clips
from videoscaling.data.video.clips import ClipOptions, Shape, load_clips, resize_and_crop, shown, to_float, windows
from videoscaling.data.video.probe import Probe, probe

SHAPE = Shape(frames=5, size=32, stride=2)


def reason(call, *args) -> str:
    with pytest.raises(Rejected) as caught:
        call(*args)
    return caught.value.reason


def test_a_clip_is_resized_cropped_and_scaled(tmp_path):
    from torchvision.transforms import Resize

    path = make_video(tmp_path / "x.mp4", height=48, width=80)
    loaded = load_clips(source(path), ClipOptions(SHAPE), [3])
    assert loaded.keys == ["x.mp4#3"]
    assert loaded.pixels.dtype == torch.uint8
    clip = to_float(loaded.pixels)
    assert clip.shape == (1, 3, 5, 32, 32)
    assert clip.dtype == torch.float32
    assert -1 <= clip.min() < clip.max() <= 1
    frames = torch.from_numpy(every_frame(path)[[3, 5, 7, 9, 11]]).permute(0, 3, 1, 2)
    other = Resize(32, antialias=True)(frames.float() / 127.5 - 1)  # 32 x 53
    # Resized as float there, as 8-bit here: half a level of rounding, and as much again in two passes.
    torch.testing.assert_close(clip[0], other[:, :, :, 10:42].permute(1, 0, 2, 3), atol=2.5 / 127.5, rtol=0)
    assert to_float(clip) is clip


@pytest.mark.parametrize(
    ("height", "width", "size"), [(48, 64, 32), (61, 47, 32), (33, 500, 32), (32, 32, 32), (99, 61, 60)]
)
def test_resizing_is_torchvisions_to_the_bit(height, width, size):
    """Whose import takes as long as torch's, in each worker."""
    from torchvision.transforms.v2.functional import center_crop, resize

    pictures = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)
    frames = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    resized = resize(frames, [size], antialias=True)
    expected = center_crop(resized, [size, size])
    assert torch.equal(resize_and_crop(pictures, (size, size)), expected.permute(1, 0, 2, 3))


def test_without_decoding_a_source_says_what_it_would_give(tmp_path):
    path = make_video(tmp_path / "x.mp4", frames=48)
    clip_options = ClipOptions(SHAPE, clips=3)
    loaded, promised = (load_clips(source(path), clip_options, decode=decode) for decode in (True, False))
    assert promised.keys == loaded.keys == ["x.mp4#0", "x.mp4#9", "x.mp4#27"]
    assert promised.pixels.shape == (3, 0)
    assert (promised.fps, promised.seconds) == (loaded.fps, loaded.seconds) == (12, 2)
    assert reason(load_clips, source(path), clip_options, [0, 40]) == "too short"


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_window_that_fails_costs_its_clip_alone(tmp_path, codec, backend):
    if backend == "decord":
        pytest.importorskip("decord")
    # Key frames every ten frames and nowhere else: the two encoders' thresholds have opposite ends.
    coding = {"g": "10", "bf": "0", "sc_threshold": "0" if codec == "libx264" else "1000000000"}
    path = make_video(tmp_path / "x.mp4", frames=60, codec=codec, coding=coding)
    clip_options = ClipOptions(Shape(5, 48), backend=backend)
    whole = load_clips(source(path), clip_options)
    assert (len(whole.keys), list(whole.rejected)) == (12, [])
    damage(path, [31])  # the second of ten frames that hang on each other
    loaded = load_clips(source(path), clip_options)
    lost = [row["clip"] for row in loaded.rejected]
    assert lost == ["x.mp4#30", "x.mp4#35"]
    assert {row["reason"] for row in loaded.rejected} == {"undecodable"}
    assert {row["source"] for row in loaded.rejected} == {"x.mp4"}
    kept = [number for number, key in enumerate(whole.keys) if key not in lost]
    assert loaded.keys == [whole.keys[number] for number in kept]
    assert torch.equal(loaded.pixels, whole.pixels[kept])
    assert reason(load_clips, source(path), clip_options, [31]) == "undecodable"


@pytest.mark.parametrize(("stride", "hop"), [(1, 1), (2, 1), (2, 3), (1, 9)])
def test_overlapping_clips_are_those_alone_and_each_frame_is_decoded_once(tmp_path, monkeypatch, stride, hop):
    path = make_video(tmp_path / "x.mp4", frames=40)
    clip_options = ClipOptions(Shape(5, 48, stride), clips=99, window_step=hop)
    starts = range(0, 40 - 4 * stride, hop)
    alone = [load_clips(source(path), clip_options, [start]) for start in starts]
    decoded = []
    monkeypatch.setattr(
        clips, "_resized", lambda picture, sides, made=clips._resized: decoded.append(1) or made(picture, sides)
    )
    together = load_clips(source(path), clip_options)
    assert together.keys == [key for one in alone for key in one.keys]
    assert torch.equal(together.pixels, torch.cat([one.pixels for one in alone]))
    assert len(decoded) == len({start + stride * frame for start in starts for frame in range(5)})


def test_windows_do_not_overlap_and_spread_over_the_video():
    def starts(frames, window_step=None, height=48, clips=4):
        return windows(frames, height, 64, ClipOptions(SHAPE, clips=clips, window_step=window_step))

    assert starts(9) == [0]  # 5 frames, 2 apart, span 9
    assert starts(35) == [0, 9, 18]
    for frames in (90, 200, 1001):
        found = starts(frames)
        assert len(found) == 4
        assert found[0] == 0
        assert min(np.diff(found)) >= SHAPE.span
        assert frames * 0.7 < found[-1] + SHAPE.span <= frames
    assert starts(21, window_step=4) == [0, 4, 8, 12]
    assert starts(20, window_step=4) == [0, 4, 8]
    assert starts(60, window_step=20) == [0, 20, 40]
    assert starts(58, window_step=3, clips=100) == list(range(0, 50, 3))
    assert reason(starts, 8) == "too short"
    assert reason(starts, 90, None, 31) == "too small"


def video(times, tick=Fraction(1, 1000)) -> Probe:
    return Probe(tuple(times), 0.0, 48, 64, tick)


def at(times, fps, start=None, end=None, tick=Fraction(1, 1000)) -> list[int]:
    return shown(video(times, tick), Source("x", None, "", start, end), fps).tolist()


def test_frames_are_resampled_by_their_times():
    regular = [1000 + 40 * i for i in range(26)]  # 25 a second, for a second
    assert at(regular, None) == list(range(26))
    assert at(regular, 25) == list(range(26))
    assert at(regular, 12.5) == list(range(0, 26, 2))
    assert at(regular, 10) == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25]
    assert at(regular, 1) == [0, 25]
    # 29.97 for 30: one frame of a thousand is shown twice, none is missed.
    film = at([1001 * i for i in range(1500)], 30, tick=Fraction(1, 30000))
    assert sorted(set(film)) == list(range(1500))
    assert len(film) == 1501
    # A second at 50 frames and one at 10: by time, both give ten.
    varying = [20 * i for i in range(50)] + [1000 + 100 * i for i in range(11)]
    assert at(varying, 10) == [*range(0, 50, 5), *range(50, 61)]
    assert reason(at, regular, 30) == "too few frames"
    assert at(regular[:1], 30) == [0]


def test_a_range_is_in_seconds_from_the_first_frame():
    regular = [1000 + 40 * i for i in range(26)]
    assert at(regular, None, 0.2, 0.4) == [5, 6, 7, 8, 9]
    assert at(regular, None, 0.2) == list(range(5, 26))
    assert at(regular, None, None, 0.08) == [0, 1]
    assert at(regular, 12.5, 0.2, 0.4) == [5, 7, 9]
    assert at(regular, None, 7) == []
    rounded = [round(1000 / 24 * i) for i in range(48)]  # 24 a second in milliseconds
    assert at(rounded, None, 0.5, 1) == list(range(12, 24))


def test_ends_of_shots_are_found_on_a_clock_finer_than_they_are() -> None:
    times = [333_667 * i for i in range(100)]  # 29.97 a second, in units of 100 ns
    edges = [round(time / 1e7, 6) for time in times]
    for first, last in ((3, 4), (10, 47), (48, 99)):
        assert at(times, None, edges[first], edges[last], Fraction(1, 10**7)) == list(range(first, last))


def test_resampled_clips_show_the_moments_asked_for(tmp_path):
    times = [i + i // 3 for i in range(60)]  # every fourth is missing
    path = make_video(tmp_path / "x.mp4", frames=60, times=times)
    clip_options = ClipOptions(Shape(5, 48), fps=6)
    loaded = load_clips(source(path), clip_options)
    every = every_frame(path)
    moments = {key: [4 * (int(key.split("#")[1]) + i) for i in range(5)] for key in loaded.keys}
    assert list(moments) == ["x.mp4#0", "x.mp4#5", "x.mp4#10", "x.mp4#15"]
    assert loaded.fps == 6
    for pixels, wanted in zip(loaded.pixels, moments.values()):
        numbers = [min(range(60), key=lambda n: (abs(times[n] - moment), n)) for moment in wanted]
        assert np.array_equal(pixels.permute(1, 2, 3, 0).numpy(), every[numbers][:, :, 8:56])


def test_a_range_is_cut_from_the_middle(tmp_path):
    path = make_video(tmp_path / "x.mp4", frames=60)
    ranged = Source("x.mp4@1-2", path, "a ball", 1, 2)
    loaded = load_clips(ranged, ClipOptions(Shape(12, 48)))
    assert loaded.keys == ["x.mp4@1-2#0", "x.mp4@1-2#12"]
    assert loaded.captions == ["a ball"] * 2
    assert loaded.seconds == 1
    expected = every_frame(path)[24:36][:, :, 8:56]
    assert np.array_equal(loaded.pixels[0].permute(1, 2, 3, 0).numpy(), expected)
    assert reason(load_clips, Source("x.mp4@5-6", path, "", 5, 6), ClipOptions(Shape(2, 32))) == "too short"


def test_pictures_are_clips_of_one_frame(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    image = Image.fromarray(colours)
    image.save(tmp_path / "x.png")
    image.save(tmp_path / "lossless.webp", lossless=True)
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    deep = colours[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "sixteen_bit.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "lossy.jpg")
    one = ClipOptions(Shape(1, 48))
    loaded = {each.name: load_clips(each, one) for each in list_sources(tmp_path)}
    assert len(loaded) == 8
    crop = torch.from_numpy(colours[:, 8:56]).permute(2, 0, 1)
    for name in ("x.png", "lossless.webp", "alpha.png"):
        assert loaded[name].keys == [f"{name}#0"]
        assert torch.equal(loaded[name].pixels, crop[None, :, None])
    assert torch.equal(loaded["turned.png"].pixels[0, :, 0], torch.rot90(crop, -1, (1, 2)))
    assert torch.equal(loaded["sixteen_bit.png"].pixels[0, :, 0], crop[:1].expand(3, -1, -1))
    for name in ("grey.png", "lossy.jpg"):
        assert (loaded[name].pixels[0, :, 0].float().mean() - crop.float().mean()).abs() < 4
    assert reason(load_clips, source(tmp_path / "x.png"), ClipOptions(Shape(2, 48))) == "too short"
    assert reason(load_clips, source(tmp_path / "x.png"), ClipOptions(Shape(1, 49))) == "too small"
    (tmp_path / "cut.png").write_bytes((tmp_path / "x.png").read_bytes()[:5000])
    assert reason(load_clips, source(tmp_path / "cut.png"), one) == "truncated"
    (tmp_path / "text.png").write_text("no picture")
    assert reason(load_clips, source(tmp_path / "text.png"), one) == "unreadable"
    assert reason(load_clips, source(tmp_path / "gone.png"), one) == "missing"


def test_pictures_and_one_frame_videos_give_clips_of_one_frame(tmp_path):
    path = make_video(tmp_path / "x.mp4", frames=3)
    assert load_clips(source(path), ClipOptions(Shape(1, 32))).pixels.shape == (3, 3, 1, 32, 32)
    assert probe(source(path)).fps == 24


@pytest.mark.parametrize("sides", [(16, 40), (40, 16), (24, 32), (48, 64)])
def test_a_rectangle_is_the_largest_centred_part_of_its_shape(sides):
    rows, columns = np.mgrid[:48, :64]
    picture = np.stack([4 * rows, 3 * columns, 0 * rows], axis=-1).astype(np.uint8)
    cropped = resize_and_crop(picture[None], sides)[:, 0].double().numpy()
    assert cropped.shape == (3, *sides)
    scale = max(sides[0] / 48, sides[1] / 64)  # pixels may be cut in two, not more
    for channel, axis, step in ((0, 0, 4), (1, 1, 3)):
        line = cropped[channel].mean(axis=1 - axis)
        assert np.ptp(line) == pytest.approx(step * (sides[axis] / scale - 1), abs=2 * step / min(scale, 1))
        assert line.mean() == pytest.approx(step * ((48, 64)[axis] - 1) / 2, abs=step / scale)


def test_a_rectangle_that_a_video_does_not_cover_is_rejected(tmp_path):
    source = Source("x.mp4", make_video(tmp_path / "x.mp4", height=48, width=64), "")
    clips = load_clips(source, ClipOptions(Shape(9, (48, 64))))
    assert clips.pixels.shape[1:] == (3, 9, 48, 64)
    for sides in ((50, 50), (64, 48)):  # the second fits if the video is turned, which its frames say
        said = rf"48x64 pixels \(height x width\); clips are {sides[0]}x{sides[1]}"  # as --size has them
        for decode in (True, False):  # or the split is drawn with a video that has no clips
            with pytest.raises(Rejected, match=said):
                load_clips(source, ClipOptions(Shape(9, sides)), None, decode)
    turn(source.path, 1)
    clips = [load_clips(source, ClipOptions(Shape(9, (64, 48))), None, decode) for decode in (True, False)]
    assert clips[0].keys == clips[1].keys == ["x.mp4#0", "x.mp4#9", "x.mp4#18"]
    for decode in (True, False):
        assert reason(load_clips, source, ClipOptions(Shape(9, (48, 64))), None, decode) == "too small"


@pytest.mark.parametrize("decode", [True, False])
def test_a_picture_that_a_rectangle_does_not_cover_is_rejected(tmp_path, decode):
    Image.new("RGB", (60, 100)).save(tmp_path / "x.png")  # PIL names the width first
    portrait = source(tmp_path / "x.png")
    assert load_clips(portrait, ClipOptions(Shape(1, (80, 48))), None, decode).keys == ["x.png#0"]
    assert reason(load_clips, portrait, ClipOptions(Shape(1, (48, 80))), None, decode) == "too small"
