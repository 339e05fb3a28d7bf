"""The normalisation of latents is what diffusers' own pipelines do, each class asked by its pipeline's own code."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.models.cases import Made, make, raw_decoded, some_clips
from videoscaling.models.vae import VideoVAE, load_vae


def certain(vae: VideoVAE) -> VideoVAE:
    """``vae`` with a posterior of no width: pipelines that draw from it then give its mean."""
    encode = vae.model.encode

    def without_width(x: Tensor) -> SimpleNamespace:
        mean = torch.cat([encode(clip).latent_dist.mode() for clip in x.split(1)])
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda generator=None: mean, mode=lambda: mean))

    vae.model.encode = without_width
    return vae


def encoded_by_pipeline(made: Made, vae: VideoVAE, clips: Tensor) -> Tensor:
    """Normalised latents of clips from the pipeline that starts from videos or images, without noise where it can."""
    import diffusers  # not at the top: 6 s of every worker that collects the tests

    frames, height, width = clips.shape[2:]
    size = {"height": height, "width": width, "dtype": torch.float32, "device": torch.device("cpu")}
    parts = SimpleNamespace(
        vae=vae.model,
        vae_scale_factor_temporal=vae.temporal,
        vae_scale_factor_spatial=vae.spatial,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    batch = {"batch_size": len(clips), "num_channels_latents": vae.channels}
    if made.case.name == "AutoencoderKLWan":
        parts.scheduler = SimpleNamespace(add_noise=lambda latents, noise, t: latents)
        return diffusers.WanVideoToVideoPipeline.prepare_latents(parts, clips, **batch, **size)
    if made.case.name == "AutoencoderKLCogVideoX":
        parts.scheduler = SimpleNamespace(add_noise=lambda latents, noise, t: latents, init_noise_sigma=1)
        parts.vae_scaling_factor_image = vae.model.config.scaling_factor
        latents = diffusers.CogVideoXVideoToVideoPipeline.prepare_latents(parts, clips, **batch, **size)
        return latents.transpose(1, 2)
    if made.case.name == "AutoencoderKLCosmos":
        parts.scheduler = SimpleNamespace(config=SimpleNamespace(sigma_data=0.5, sigma_max=1.0))
        made_by = diffusers.CosmosVideoToWorldPipeline.prepare_latents(
            parts, clips, num_frames=frames, **batch, **size
        )
        return made_by[1] / 0.5  # the scheduler's share of it
    if made.case.name == "AutoencoderKLHunyuanVideo":
        parts.vae_scaling_factor = vae.model.config.scaling_factor
        pipeline = diffusers.HunyuanVideoImageToVideoPipeline
        return pipeline.prepare_latents(parts, clips[:, :, 0], num_frames=1, **batch, **size)[1]
    if made.case.name == "AutoencoderKLHunyuanVideo15":
        processor = SimpleNamespace(preprocess=lambda image, height, width: image)
        pipeline = diffusers.HunyuanVideo15ImageToVideoPipeline
        return pipeline._get_image_latents(vae.model, processor, clips[:, :, 0], height, width, torch.device("cpu"))
    if made.case.name == "AutoencoderKL":
        frames_of = (clips[:, :, f] for f in range(clips.shape[2]))
        encode = diffusers.FluxImg2ImgPipeline._encode_vae_image
        return torch.stack([encode(parts, images, None) for images in frames_of], dim=2)
    assert "LTX" in made.case.name
    pipeline = diffusers.LTX2Pipeline if "LTX2" in made.case.name else diffusers.LTXPipeline
    model = vae.model
    raw = model.encode(clips).latent_dist.mode()
    return pipeline._normalize_latents(raw, model.latents_mean, model.latents_std, model.config.scaling_factor)


def test_encode_is_the_pipelines(made):
    if made.case.name == "AutoencoderKLMochi":
        pytest.skip("Mochi's only pipeline starts from noise: see test_mochi_decodes_as_its_pipeline")
    vae = certain(load_vae(str(made.folder)))
    clips = some_clips(*made.case.size)
    expected = encoded_by_pipeline(made, vae, clips)
    if expected.shape[2] == 1:  # pipelines that start from an image know one frame
        clips = clips[:, :, :1]
    torch.testing.assert_close(vae.encode(clips), expected)


class Still(nn.Module):
    """A transformer that sees no reason to move: what a sampler starts from is what it ends with."""

    config = SimpleNamespace(in_channels=12)
    dtype, device = torch.float32, torch.device("cpu")

    def forward(self, hidden_states: Tensor, **others) -> tuple[Tensor]:
        return (torch.zeros_like(hidden_states),)

    def cache_context(self, name: str):
        return nullcontext()


def test_mochi_decodes_as_its_pipeline(tmp_path):
    import diffusers

    made = make("mochi", tmp_path / "vae")
    vae = load_vae(str(made.folder))
    parts = {"text_encoder": None, "tokenizer": None, "transformer": None}
    pipeline = diffusers.MochiPipeline(diffusers.FlowMatchEulerDiscreteScheduler(), vae.model, **parts)
    pipeline.transformer = Still()
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 12, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    text = {"prompt_embeds": torch.zeros(1, 2, 8), "prompt_attention_mask": torch.ones(1, 2)}
    shape = {"height": 16, "width": 32, "num_frames": 13}
    frames = pipeline(**text, **shape, guidance_scale=1.0, num_inference_steps=2, latents=latents, output_type="pt")
    clips = 2 * frames.frames.transpose(1, 2) - 1  # [0, 1] to [-1, 1]
    torch.testing.assert_close(vae.decode(latents), clips, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("key", ["cogvideox", "ltx", "ltx with time"])
def test_decode_is_the_pipelines(key, tmp_path):
    import diffusers

    vae = load_vae(str(make(key, tmp_path / "vae").folder))
    latents = vae.encode(some_clips())
    if key == "cogvideox":
        parts = SimpleNamespace(vae=vae.model, vae_scaling_factor_image=vae.model.config.scaling_factor)
        expected = diffusers.CogVideoXPipeline.decode_latents(parts, latents.transpose(1, 2))
    else:
        model = vae.model
        expected = raw_decoded(
            model,
            diffusers.LTXPipeline._denormalize_latents(
                latents, model.latents_mean, model.latents_std, model.config.scaling_factor
            ),
        )
    torch.testing.assert_close(vae.decode(latents), expected.clamp(-1, 1))
