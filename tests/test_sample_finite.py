"""sample.py writes no picture of what is not finite: one line with the cause, and no file."""

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.logs.test_preview import Decoder, use_decoder
from tests.training.test_trainer import run
from videoscaling import sample
from videoscaling.diffusion.sampler_options import SamplerOptions
from videoscaling.training.checkpoints import checkpoint as ckpt
from videoscaling.training.config import read_config
from videoscaling.utils.finiteness import NotFinite
from videoscaling.utils.options import options_of

BALL = sample.Prompt("a ball", 0)
KINDS = ("ema", "model", "optimizer")


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(cache, folder, "run", "train.tokens=640")
    return ckpt.find_checkpoint(folder / "run")


def options(checkpoint: Path, out: Path, **changed: object) -> argparse.Namespace:
    settings = {"steps": 3, "guidance": 2.0, "format": "png", "grid": 1, "device": "cpu"} | changed
    settings |= {"checkpoint": str(checkpoint), "out": out}
    return argparse.Namespace(**vars(sample.parser().parse_args([])) | settings)


def sampled(arguments: argparse.Namespace, prompts: list[sample.Prompt]) -> int:
    return sample.run(arguments, options_of(SamplerOptions, arguments), prompts)


def broken(checkpoint: Path, folder: Path, kind: str) -> Path:
    """A copy of ``checkpoint``, whole by its checksums, with one weight of ``kind`` NaN."""
    tensors = {name: load_file(checkpoint / f"{name}.safetensors") for name in KINDS}
    next(value for name, value in tensors[kind].items() if name.endswith("weight")).view(-1)[0] = torch.nan
    state = {k: v for k, v in ckpt.read_state(checkpoint).items() if k not in ("files", "crc32")}
    return ckpt.save_checkpoint(folder, ckpt.step_of(checkpoint), tensors, state, read_config(checkpoint))


@pytest.mark.parametrize("scheduler", ["euler", "dpm++", "unipc"])
def test_weights_that_are_not_finite_are_named(
    scheduler: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_decoder(Decoder(), monkeypatch)
    path, out = broken(trained, tmp_path, "ema"), tmp_path / "out"
    with pytest.raises(NotFinite, match="so are the model's weights .*take an earlier checkpoint"):
        sampled(options(path, out, scheduler=scheduler), [BALL])
    assert not out.exists()
    assert sampled(options(path, out, scheduler=scheduler, weights="model"), [BALL]) == 0  # the raw are whole


def test_guidance_and_pixels_that_are_not_finite_are_named(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for decoder, guidance, cause in (
        (Decoder(), 1e39, "guidance 1e.39 is too much"),
        (Decoder(1), 2.0, "autoencoder"),
    ):
        use_decoder(decoder, monkeypatch)
        with pytest.raises(NotFinite, match=cause):
            sampled(options(trained, out, guidance=guidance), [BALL, BALL])
        assert not out.exists()
