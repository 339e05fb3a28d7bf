"""Videos of prompts during training: what is not finite or does not fit is no picture, and no reason to stop."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ImageEvent
from torch import Tensor

from tests.training.test_trainer import run
from videoscaling.data.latents import LatentCache
from videoscaling.models.text import load_text_encoder
from videoscaling.utils.finiteness import NotFinite


class Decoder:
    """Stands in for the autoencoder: three of a latent's channels as colours; ``error`` at the ``broken`` calls."""

    temporal = spatial = 1

    def __init__(self, *broken: int, error: Exception | None = None) -> None:
        self.broken, self.calls, self.error = broken, 0, error or NotFinite("the autoencoder overflows")

    def decode(self, latents: Tensor) -> Tensor:
        self.calls += 1
        if self.calls in self.broken:
            raise self.error
        return latents[:, :3].clamp(-1, 1)


def use_decoder(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    text = load_text_encoder("embedded")
    for module in ("logs.preview", "pipeline"):
        monkeypatch.setattr(
            f"videoscaling.training.{module}.load_encoders", lambda meta, device, **places: (decoder, text)
        )


def images(directory: Path) -> list[ImageEvent]:
    """The videos that were written."""
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    return [event for tag in events.Tags()["images"] for event in events.Images(tag)]


SETTINGS = ("log.prompts=[a ball]", "log.sample_steps=2", "train.milestones=[320,640,960]", "train.tokens=1280")


@pytest.mark.parametrize(
    ("decoder", "guidance", "videos", "cause"),
    [
        (Decoder(), "3", 4, None),
        (Decoder(), "1e39", 0, "guidance 1e+39 is too much"),
        (Decoder(1, 3), "3", 2, "the autoencoder overflows"),
        (Decoder(1, 3, error=torch.OutOfMemoryError("CUDA out of memory\n(see ...)")), "3", 2, "CUDA out of memory"),
    ],
    ids=["finite", "latents", "pixels", "memory"],
)
def test_what_cannot_be_shown_is_not_shown_and_training_continues(
    decoder: Decoder,
    guidance: str,
    videos: int,
    cause: str | None,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    use_decoder(decoder, monkeypatch)
    assert run(cache, tmp_path, "run", *SETTINGS, f"log.guidance={guidance}")["status"] == "done"
    assert len(images(tmp_path / "run")) == videos
    warnings = [line for line in capfd.readouterr().err.splitlines() if "log.prompts" in line]
    assert len(warnings) == (cause is not None)  # once, not at every milestone
    assert all(cause in line and line.startswith("warning: ") for line in warnings)


@pytest.mark.parametrize(("fps", "milliseconds"), [(None, 120), (25.0, 40)])
def test_videos_have_the_frame_rate_of_the_trainings(
    fps: float | None, milliseconds: int, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_decoder(Decoder(), monkeypatch)
    opened = LatentCache(cache)
    opened.meta["fps"] = fps
    monkeypatch.setattr("videoscaling.training.train.open_data", lambda folders, weights: opened)
    run(cache, tmp_path, "run", *SETTINGS[:2], "train.tokens=320")
    (video,) = images(tmp_path / "run")
    assert Image.open(io.BytesIO(video.encoded_image_string)).info["duration"] == milliseconds
