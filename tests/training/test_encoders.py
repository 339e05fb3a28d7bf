"""Encoders are done with once a cache is written: training reads what they left there."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.training.test_trainer import run
from videoscaling.models.hub import VAES
from videoscaling.models.text import load_text_encoder
from videoscaling.models.vae import load_vae
from videoscaling.training.config import load_config, run_id
from videoscaling.training.pipeline import load_encoders
from videoscaling.utils.errors import UserError


def test_training_on_a_cache_loads_no_encoder(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded(Exception):
        pass

    def refuse(*args: object, **options: object) -> None:
        raise Loaded

    for maker in ("text.WordEncoder", "text.PretrainedTextEncoder", "vae.VideoVAE"):
        monkeypatch.setattr(f"videoscaling.models.{maker}.__init__", refuse)
    # Captions, their dropout and validation, all of it.
    assert run(cache, tmp_path, "run", "train.tokens=1280")["status"] == "done"
    with pytest.raises(Loaded):  # videos of prompts are what needs them
        run(cache, tmp_path, "previews", "train.tokens=1280", "log.prompts=[a ball]")
    with pytest.raises(UserError, match="steps 2000: must lie between 1 and 1000"):  # before training, not after it
        run(cache, tmp_path, "long", "train.tokens=1280", "log.prompts=[a ball]", "log.sample_steps=2000")
    assert not (tmp_path / "long" / "metrics.jsonl").exists()


def test_encoders_that_moved_are_given_by_option_and_still_checked(tmp_path: Path) -> None:
    cpu, moved = torch.device("cpu"), tmp_path / "moved"
    shutil.copytree(VAES["embedded"], moved)
    vae, text = load_vae("embedded"), load_text_encoder("embedded")
    meta = {
        "vae": "/gone/vae",
        "vae_fingerprint": vae.fingerprint,
        "text": "embedded",
        "text_fingerprint": text.fingerprint,
    }
    with pytest.raises(UserError, match="/gone/vae.*give its new folder as --vae FOLDER$"):
        load_encoders(meta, cpu)
    with pytest.raises(UserError, match="/gone/vae.*give its new folder as log.vae=FOLDER$"):
        load_encoders(meta, cpu, options=("log.vae", "log.text"))
    assert load_encoders(meta, cpu, vae=str(moved))[0].fingerprint == vae.fingerprint
    # Another one is refused, wherever it was named.
    with pytest.raises(UserError, match="not what the data were made with .*not other.* as --vae FOLDER$"):
        load_encoders(meta | {"vae_fingerprint": "other"}, cpu, vae=str(moved))
    with pytest.raises(UserError, match="not what the data were made with .*not other.* as --text FOLDER$"):
        load_encoders(meta | {"text_fingerprint": "other"}, cpu, vae=str(moved), text="embedded")


def test_places_of_encoders_are_paths_and_no_part_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    given = load_config(None, ["log.vae=~/vae", "log.text=~/t5", "out=~/runs", "data.cache=[~/a, /b]"])
    assert (given.log.vae, given.log.text, given.out) == ("/home/user/vae", "/home/user/t5", "/home/user/runs")
    assert given.data.cache == ["/home/user/a", "/b"]
    assert load_config(None, ["out=~"]).out == "/home/user"
    assert run_id(given) == run_id(load_config(None, []))
