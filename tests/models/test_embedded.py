"""The embedded autoencoder's own network is diffusers' class of that name, bit for bit."""

import pytest
import torch

from tests.models.cases import some_clips
from videoscaling.models import embedded
from videoscaling.models.vae import load_vae


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_latents_and_clips_are_those_of_diffusers(dtype: torch.dtype) -> None:
    from diffusers import AutoencoderKLLTXVideo

    ours = embedded.AutoencoderKLLTXVideo().to(dtype)
    theirs = AutoencoderKLLTXVideo.from_pretrained(embedded.EMBEDDED, torch_dtype=torch.float32)
    torch.nn.Module.to(theirs, dtype)
    for size in ((17, 32, 32), (1, 64, 48)):
        clips = some_clips(*size, n=2).to(dtype)
        latents = ours.encode(clips).latent_dist.mode()
        assert torch.equal(latents, theirs.encode(clips).latent_dist.mode())
        assert torch.equal(ours.decode(latents).sample, theirs.decode(latents).sample)


def test_a_clip_too_large_for_one_piece_is_cut_by_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoencoderKLLTXVideo

    vae, clips = load_vae("embedded"), some_clips(1, 64, 64, n=1)
    latents = vae.encode(clips)
    monkeypatch.setattr("videoscaling.models.autoencoders.POSITIONS_AT_ONCE", 1)
    assert torch.equal(vae.encode(clips), latents)  # smaller than a tile
    assert isinstance(vae.model, AutoencoderKLLTXVideo)
    assert vae.model.use_tiling
