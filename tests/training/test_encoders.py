"""Encoders are done with once a cache is written: training reads what they left there."""

from pathlib import Path

import pytest

from tests.training.test_trainer import run
from utils.errors import UserError


def test_training_on_a_cache_loads_no_encoder(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded(Exception):
        pass

    def refuse(*args: object, **options: object) -> None:
        raise Loaded

    for maker in ("text.WordEncoder", "text.PretrainedTextEncoder", "vae.VideoVAE"):
        monkeypatch.setattr(f"models.{maker}.__init__", refuse)
    # Captions, their dropout and validation, all of it.
    assert run(cache, tmp_path, "run", "train.tokens=1280")["status"] == "done"
    with pytest.raises(Loaded):  # videos of prompts are what needs them
        run(cache, tmp_path, "previews", "train.tokens=1280", "log.prompts=[a ball]")
    with pytest.raises(UserError, match="steps 2000: must lie between 1 and 1000"):  # before training, not after it
        run(cache, tmp_path, "long", "train.tokens=1280", "log.prompts=[a ball]", "log.sample_steps=2000")
    assert not (tmp_path / "long" / "metrics.jsonl").exists()
