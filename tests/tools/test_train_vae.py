"""The tool that trains the shipped autoencoder: its resume, its refusals."""

import re
from dataclasses import replace

import pytest
import torch

from tests.data.video.videos import make_video
from videoscaling.data.sources.synthetic import render
from videoscaling.data.video.clips import Clips
from videoscaling.models.fidelity import squared_errors
from videoscaling.models.vae import load_vae
from videoscaling.tools import train_vae, vae_clips, vae_training
from videoscaling.tools.train_vae import Settings
from videoscaling.tools.vae_clips import DRAWS, Rendered, Stored, mixed_batch, stretches, training_clips, varied
from videoscaling.utils.errors import UserError

SETTINGS = Settings(steps=3, batch=2, lr=1e-3, device="cpu")
SCORES = {name: {"pooled": 0, "per_clip": 0} for name in ("autoencoder", "pca_of_clips")}
SIZE = SETTINGS.size[0]
ABOUT = {"size": ((32, 32), (64, 64)), "source": ("synthetic", "film")}
RECORD = {"settings": ABOUT, "parameters": 0, "date": "", "command": "", "psnr": {"synthetic": SCORES}}
SYNTHETIC = [Rendered(SETTINGS.seed)]


def test_psnr_is_of_a_peak_of_two():
    assert vae_training.psnr(4.0) == 0
    assert vae_training.psnr(0.04) == pytest.approx(20)


def test_resume_is_seamless(tmp_path, monkeypatch):
    narrow = {"block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 16)}
    monkeypatch.setattr(vae_training, "ARCHITECTURE", vae_training.ARCHITECTURE | narrow)
    wide = replace(SETTINGS, size=((16, 24), (32, 24)))
    sources = [Rendered(wide.seed)]
    trained = vae_training.train(wide, sources, tmp_path / "a.pt")
    assert trained.encode(sources[0].held_out((16, 24))[:1]).latent_dist.mode().shape == (1, 16, 5, 2, 3)
    whole = trained.state_dict()
    monkeypatch.setattr(vae_training, "SAVE_SECONDS", -1)

    def break_at_step_2(index, *args):
        if index[0] == SETTINGS.batch:  # of two sizes the third step is the first one's second
            raise KeyboardInterrupt
        return render(index, *args)

    monkeypatch.setattr(vae_clips, "render", break_at_step_2)
    with pytest.raises(KeyboardInterrupt):
        vae_training.train(wide, sources, tmp_path / "b.pt")
    monkeypatch.setattr(vae_clips, "render", render)
    resumed = vae_training.train(wide, sources, tmp_path / "b.pt").state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=0, rtol=0, msg=name)
    with pytest.raises(UserError, match="other settings"):
        vae_training.train(replace(wide, lr=2e-3), sources, tmp_path / "b.pt")
    monkeypatch.setattr(sources[0], "fingerprint", "another")
    with pytest.raises(UserError, match="a training on other clips"):
        vae_training.train(wide, sources, tmp_path / "b.pt")


@pytest.mark.slow
def test_what_is_trained_here_is_loaded_as_any_other_and_knows_its_latents(tmp_path, monkeypatch):
    monkeypatch.setattr(vae_training, "WARM_UP", 5)
    monkeypatch.setattr(vae_training, "MEASURED", 128)
    made = vae_training.train(replace(SETTINGS, steps=40, batch=4, lr=3e-3), SYNTHETIC, tmp_path / "state.pt")
    vae_training.write(vae_training.finish(made, SYNTHETIC, SIZE), tmp_path / "vae", RECORD)
    readme = (tmp_path / "vae" / "README.md").read_text()
    assert "(c) 2008 Blender Foundation" in readme
    assert "17 frames of 32x32 to 5x4x4 and of 64x64 to 5x8x8 latents of 16 numbers" in readme
    vae = load_vae(str(tmp_path / "vae"))
    clips = render(torch.arange(24), seed=9)
    latents = vae.encode(clips)
    error = squared_errors(clips, vae.decode(latents)).mean()
    assert error < 0.9 * clips.var()  # better than any one colour: 40 steps distinguish clips
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.25
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 0.25


@pytest.mark.parametrize("content", [b"", b"x", b"[" * 100_000, bytes(1000)])
def test_a_damaged_state_is_one_line(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match="a.pt: damaged .*; remove it to start anew"):
        vae_training.train(SETTINGS, SYNTHETIC, tmp_path / "a.pt")


def test_refusals(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    for arguments, message in (
        (["--steps", "0"], "--steps 0: must be a number from 1"),
        (["--lr", "nan"], "--lr nan: must be a number from 1e-12"),
        (["--source", "synthetic", "doom", "synthetic"], "--source synthetic doom synthetic: one is named twice"),
        (["--device", "tpu", "--out", str(tmp_path / "new")], "--device tpu: not available here"),
        (["--size", "32x33"], "--size 32x33: must be multiples of 8"),
        (["--size", "32", "64", "32"], "--size: one is named twice"),
        ([], "folder of something else"),
    ):
        monkeypatch.setattr("sys.argv", ["vae_training.py", "--out", str(tmp_path), *arguments])
        with pytest.raises(UserError, match=message):
            train_vae.main()
    assert (tmp_path / "notes.txt").exists()


def test_stretches_join_successive_clips_alone():
    frames = torch.arange(5 * 17, dtype=torch.uint8).view(5, 1, 17, 1, 1).expand(5, 3, 17, 2, 2)
    keys = [f"a@1-2#{start}" for start in (0, 17, 34, 68, 85)]  # the fourth clip of the video was lost
    first, second = stretches(Clips(keys, [""] * 5, frames))
    assert first[0, :, 0, 0].tolist() == list(range(51))
    assert second[2, :, 1, 1].tolist() == list(range(51, 85))
    apart = stretches(Clips([f"doom-0#{number}" for number in range(3)], [""] * 3, frames[:3]))
    assert [one.shape[1] for one in apart] == [17, 17, 17]


def test_clips_of_videos_begin_at_any_frame_and_held_out_videos_are_others(tmp_path, monkeypatch):
    """Each window of each training video once an epoch; none of the held-out one."""
    for number in range(4):
        make_video(tmp_path / f"{number}.mp4", frames=34 + number, height=64 + 8 * number, width=96)
    size = (32, 40)
    source = training_clips(str(tmp_path), 0, [size])
    windows = 3 * (2 * 17 - 17 + 1)
    assert source.windows == windows
    assert re.fullmatch(r"[0-9a-f]{16}", source.fingerprint)

    def each(clips):
        return {clip.numpy().tobytes() for clip in clips}

    epoch = source.plain(torch.arange(windows), size)
    assert epoch.shape == (windows, 3, 17, *size)
    assert len(each(epoch)) == windows
    assert each(source.plain(torch.arange(windows, 2 * windows), size)) == each(epoch)
    held_out = source.held_out(size)
    assert held_out.shape == (2, 3, 17, *size)
    assert all((clip - other).abs().mean() > 0.02 for clip in held_out for other in epoch)
    # What is trained on is the same clips, no two of them alike in the next epoch either.
    seen = source.batch(torch.arange(2 * windows), size)
    assert len(each(seen)) == 2 * windows
    assert torch.equal(seen[3:5], source.batch(torch.arange(3, 5), size))
    assert len(each(source.batch(vae_training.CLIPS_OF_A_SIZE + torch.arange(windows), size)) - each(seen)) == windows
    # The baselines are fitted on no clip twice: of so few, that would be thousands of copies.
    monkeypatch.setattr(vae_training, "pca_of_clips", lambda fitted, test, numbers: test * (len(fitted) == windows))
    scores = vae_training.scores(vae_training.build().eval(), source, held_out)
    assert scores["pca_of_clips"]["pooled"] > 60 > scores["pca_of_blocks"]["pooled"]


@pytest.mark.parametrize("heights", [(32, 96, 96, 96), (96, 96, 96, 32), (32, 32, 32, 32)])
def test_videos_of_just_the_size_are_trained_on_as_they_are(tmp_path, monkeypatch, heights):
    """No matter which are large enough for a margin, those held out are not trained on."""
    for number, height in enumerate(heights):
        make_video(tmp_path / f"{number}.mp4", frames=17, height=height, width=96)
    read = recorded(monkeypatch)
    source = training_clips(str(tmp_path), 0, [(16, 24), (32, 40)])
    assert source.windows == 3
    assert source.batch(torch.arange(3), (32, 40)).shape == (3, 3, 17, 32, 40)
    for size in ((16, 24), (32, 40)):
        assert len(source.held_out(size)) == 1
    *held_out, trained_on = read
    assert held_out == [{f"{number}.mp4#0" for number in range(4)} - trained_on] * 2
    with pytest.raises(UserError, match="no video is left|no clip of 17 frames is left"):
        training_clips(str(tmp_path), 0, [(104, 40)])


def recorded(monkeypatch):
    """The keys of the clips that are read from here on, a set for each part and size."""
    keys = []

    def usable(source, units, loaded, made=vae_clips._usable):
        clips = made(source, units, loaded)
        keys.append({key for one in clips for key in one.keys})
        return clips

    monkeypatch.setattr(vae_clips, "_usable", usable)
    return keys


def test_the_margin_of_the_game_ends_where_it_is_drawn(monkeypatch):
    """Clips of 96x96 have one, though not of 144 of the game's 120 rows."""
    pytest.importorskip("vizdoom")
    sizes = []

    def loaded(source, units, workers):
        return [
            Clips(unit.keys, [""] * len(unit.keys), torch.zeros(len(unit.keys), 3, 17, 2, 2).byte()) for unit in units
        ]

    def planned(self, size, made=Stored._planned):
        sizes.append(size)
        return made(self, size)

    monkeypatch.setattr(vae_clips, "_loaded", loaded)
    monkeypatch.setattr(Stored, "_planned", planned)
    training_clips("doom", 0, [(96, 96)])
    assert sizes[-1] == (120, 144)


def test_a_video_that_is_divided_by_time_is_divided_alike_in_every_size(tmp_path, monkeypatch):
    for number in range(5):  # of which the larger size leaves one
        make_video(tmp_path / f"{number}.mp4", frames=510, height=24 if number else 96, width=40 if number else 112)
    read = recorded(monkeypatch)
    training_clips(str(tmp_path), 0, [(16, 24), (64, 64)])
    small, large, trained_on = read
    assert small == large
    assert len(trained_on) > 10
    assert not small & trained_on


def test_a_clip_is_varied_in_place_scale_direction_and_colour():
    """A clip whose colours say where and when each pixel is, by the draws that change one thing each."""
    rows, columns, frames = torch.arange(48), torch.arange(60), torch.arange(17)
    clip = torch.stack(torch.broadcast_tensors(frames[:, None, None] * 10, rows[:, None] * 5, columns * 4)).byte()

    def made(**draws):
        names = ["scale", "down", "right", "mirror", "backwards", "exchange"]
        unchanged = [0.0, 0.0, 0.0, 0.9, 0.9, 0.9, *[0.5] * 6]
        assert len(unchanged) == DRAWS
        for name, value in draws.items():
            unchanged[names.index(name) if name in names else int(name[1:])] = value
        return (varied(clip, (32, 40), torch.tensor(unchanged)) + 1) * 127.5

    def close(a, b):
        torch.testing.assert_close(a, b.float(), atol=1e-2, rtol=0)

    plain = made()
    close(plain, clip[..., :32, :40])
    close(made(down=0.999, right=0.999), clip[..., 16:, 20:])
    close(made(mirror=0.1), plain.flip(-1))
    close(made(backwards=0.1), plain.flip(1))
    exchanged = {tuple(made(exchange=(n + 0.5) / 12)[:, 3, 4, 9].round().tolist()) for n in range(6)}
    assert len(exchanged) == 6
    whole = made(scale=1.0)
    assert whole[1].min() < 3
    assert whole[1].max() > 47 * 5 - 3  # all rows are seen
    brighter, contrast = made(_9=1.0), made(_6=0.0)
    close(brighter[0], (plain[0] + 0.2 * 127.5).clamp(0, 255))
    close(contrast[0], 127.5 + 0.8 * (plain[0] - 127.5))
    close(brighter[1:], plain[1:])


def test_steps_of_several_sizes_have_as_many_pixels():
    several = replace(SETTINGS, batch=8, size=((32, 32), (64, 64), (128, 128), (32, 64)))
    assert [vae_training.clips_of_size(several, size) for size in several.size] == [8, 2, 1, 4]


@pytest.mark.parametrize("sizes", [(32, 64), (32, 96), (32, 48, 64), (32, 128)])
@pytest.mark.parametrize("sources", [2, 3, 4])
def test_every_source_gives_clips_of_every_size_and_none_twice(sizes, sources):
    several = replace(SETTINGS, batch=8, size=tuple((side, side) for side in sizes))
    seen, of_size = [], {}
    for step in range(60):
        size, index = vae_training.samples(several, step)
        seen += index.tolist()
        of_size.setdefault(size, []).extend((index % sources).tolist())
    assert len(set(seen)) == len(seen)
    for found in of_size.values():
        counts = torch.bincount(torch.tensor(found), minlength=sources)
        assert counts.max() <= 1.5 * counts.min()


def test_sources_share_a_batch_in_turn():
    class Counted:
        def __init__(self, name):
            self.name = name

        def batch(self, index, size):
            return 10.0 * index.view(-1, 1) + self.name

    made = mixed_batch([Counted(1), Counted(2), Counted(3)], torch.arange(5, 12), SIZE)
    assert sorted(made[:, 0].tolist()) == [13, 21, 22, 23, 31, 32, 33]
