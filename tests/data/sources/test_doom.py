import hashlib

import numpy as np
import pytest
import torch

from tests.tools.cache.test_latents import files_of, run  # noqa: F401
from videoscaling.data.clip_groups import doom_units
from videoscaling.data.plan import plan_rendered
from videoscaling.data.sources import doom
from videoscaling.data.video.clips import Shape
from videoscaling.utils.errors import UserError


def test_a_missing_package_is_one_line_and_nothing_is_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(doom.importlib.util, "find_spec", lambda name: None)
    status, _, error = run("--source", "doom", "--out", tmp_path / "cache")
    assert status == 2
    assert error == "error: --source doom: pip install vizdoom\n"
    assert not (tmp_path / "cache").exists()


def test_units_share_walks_and_keep_levels_apart():
    units = doom_units(Shape(), 2 * doom.CLIPS + 3, 5, seed=7)
    assert [len(unit.keys) for unit in units["train"]] == [doom.CLIPS, doom.CLIPS, 3]
    assert units["train"][1].keys[0] == f"doom-7#{doom.CLIPS}"
    assert units["validation"][0].keys[0] == "doom-validation#0"
    assert 0 < len(doom.HELD_OUT) < len(doom.LEVELS) / 6
    with pytest.raises(UserError, match="frames have 120x160 pixels"):
        doom_units(Shape(size=128), 1, 1, seed=0)


def test_a_cache_knows_the_games_frames_per_second(monkeypatch):
    monkeypatch.setattr(doom, "game_version", lambda: "1")
    for source, fps in (("doom", 17.5), ("synthetic", None)):
        _, plan = plan_rendered(source, Shape(), clips=1, validation="1", seed=0, device="cpu")
        assert plan(False).fps == fps


class TestGame:
    """With the game itself."""

    @pytest.fixture(autouse=True)
    def game(self):
        pytest.importorskip("vizdoom")

    def test_clips_are_functions_of_seed_and_number(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        captions, pictures = doom.play(3, 4, seed=0, frames=5)
        assert pictures.shape == (4, 5, doom.HEIGHT, doom.WIDTH, 3)
        first, fewer = doom.play(3, 2, seed=0, frames=5)
        assert first == captions[:2]
        assert np.array_equal(fewer, pictures[:2])
        for other in (doom.play(4, 2, seed=0, frames=5), doom.play(3, 2, seed=1, frames=5)):
            assert not np.array_equal(other[1], fewer)
        assert len({hashlib.sha256(clip.tobytes()).digest() for clip in pictures}) == 4
        assert not list(tmp_path.iterdir())

    def test_captions_say_the_motion_the_level_and_what_is_in_view(self):
        captions, _ = doom.play(0, doom.CLIPS, seed=0, frames=1)
        assert all(caption.split(" in Freedoom level ")[0] in doom.MOTIONS for caption in captions)
        assert len({caption.partition(" in ")[0] for caption in captions}) > 4
        assert 0.3 < np.mean([" in view" in caption for caption in captions]) < 1
        held_out, _ = doom.play(0, 1, seed=0, frames=1, validation=True)
        assert held_out[0].split(" level ")[1].split(",")[0] in [level for _, level in doom.HELD_OUT]

    def test_a_player_who_leaves_the_level_turns_on_the_spot_instead(self, monkeypatch):
        starts, start = [], doom._start
        monkeypatch.setattr(doom, "_start", lambda *where: starts.append(where) or start(*where))
        captions, pictures = doom.play(15, doom.CLIPS, seed=0, frames=17)
        assert len(starts) == 2  # the second after the exit of E3M1
        assert starts[0] == starts[1]
        assert len(captions) == len(pictures) == doom.CLIPS
        again, same = doom.play(15, doom.CLIPS, seed=0, frames=17)
        assert again == captions
        assert np.array_equal(same, pictures)

    def test_two_processes_write_the_bytes_of_one(self, run, tmp_path):
        options = ["--source", "doom", "--clips", 40, "--validation", 4, "--frames", 5]
        for share in ("1/2", "0/2"):
            assert run(*options, "--out", tmp_path / "shared", "--share", share)[0] == 0
        assert run(*options, "--out", tmp_path / "alone")[0] == 0
        assert files_of(tmp_path / "shared") == files_of(tmp_path / "alone")
        unit = doom_units(Shape(5, 32), 40, 4, seed=0)["train"][1].load()
        assert (unit.pixels.shape, unit.pixels.dtype) == ((8, 3, 5, 32, 32), torch.uint8)
        assert len(unit.captions) == len(unit.keys) == 8
