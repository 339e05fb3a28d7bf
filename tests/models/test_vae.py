"""Autoencoders behind `load_vae`: small random ones of each class against diffusers itself, and the shipped one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from data.synthetic import render
from models.vae import EMBEDDED, load_vae
from utils.errors import UserError

COGVIDEOX_BLOCKS = {
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
}
HUNYUAN_BLOCKS = {
    "down_block_types": ("HunyuanVideoDownBlock3D",) * 4,
    "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
}
LTX = {
    "latent_channels": 8,
    "patch_size": 2,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 2,
    "downsample_type": ("spatiotemporal",) * 2,
    "spatio_temporal_scaling": (True, True),
    "layers_per_block": (0, 1, 1),
    "decoder_block_out_channels": (16, 16),
    "decoder_spatio_temporal_scaling": (True, True),
    "decoder_layers_per_block": (0, 1, 1),
    "decoder_inject_noise": (False,) * 3,
    "upsample_residual": (True, True),
    "upsample_factor": (1, 1),
}
# Class, configuration, latents of 9 frames of 16x32, and what is stored as (mean, std) of channel 1 by its convention.
CASES = {
    "wan": (
        "AutoencoderKLWan",
        {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 2], "num_res_blocks": 1, "temperal_downsample": [True, True]}
        | {"latents_mean": [0.0, 0.5, -1.0, 2.0], "latents_std": [1.0, 2.0, 3.0, 0.5]},
        (4, 3, 4, 8),
        (0.5, 2.0),
    ),
    "wan with patches": (
        "AutoencoderKLWan",
        {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 2], "num_res_blocks": 1, "temperal_downsample": [True, True]}
        | {
            "latents_mean": [0.0] * 4,
            "latents_std": [1.0] * 4,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
        },
        (4, 3, 2, 4),
        (0.0, 1.0),
    ),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {"block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2}
        | {"scaling_factor": 0.25, **COGVIDEOX_BLOCKS},
        (4, 3, 2, 4),
        (0.0, 4.0),
    ),
    "hunyuan": (
        "AutoencoderKLHunyuanVideo",
        {"block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2}
        | {"scaling_factor": 0.5, **HUNYUAN_BLOCKS},
        (4, 3, 2, 4),
        (0.0, 2.0),
    ),
    "ltx": ("AutoencoderKLLTXVideo", {**LTX, "scaling_factor": 2.0}, (8, 3, 2, 4), (0.25, 1.5)),
    "ltx with time": (
        "AutoencoderKLLTXVideo",
        {**LTX, "scaling_factor": 2.0, "timestep_conditioning": True},
        (8, 3, 2, 4),
        (0.25, 1.5),
    ),
    "cosmos": (
        "AutoencoderKLCosmos",
        {"latent_channels": 4, "encoder_block_out_channels": (8, 8, 16), "decode_block_out_channels": (8, 16, 16)}
        | {"attention_resolutions": (), "resolution": 32, "num_layers": 1, "temporal_compression_ratio": 4}
        | {"latents_mean": [1.0, 0.5, 0.0, 0.0], "latents_std": [1.0, 2.0, 3.0, 4.0]},
        (4, 3, 2, 4),
        (0.5, 2.0),
    ),
    "image": (
        "AutoencoderKL",
        {"block_out_channels": (8, 16, 16), "latent_channels": 4, "norm_num_groups": 4, "scaling_factor": 0.5}
        | {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
        | {"shift_factor": 0.125},
        (4, 9, 4, 8),
        (0.125, 2.0),
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A random autoencoder on disk: (diffusers' own object, folder, latent shape, (mean, std) of channel 1)."""
    import diffusers

    name, config, shape, channel_1 = CASES[request.param]
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**config).eval()
    if name == "AutoencoderKLLTXVideo":
        model.latents_mean.fill_(0.25)
        model.latents_std.fill_(3.0)
    folder = tmp_path_factory.mktemp("vae") / request.param
    model.save_pretrained(folder)
    return model, folder, shape, channel_1


def some_clips(n: int = 2) -> torch.Tensor:
    return render(torch.arange(n), 0, frames=9, height=16, width=32)


@torch.no_grad()
def raw_latents(model: torch.nn.Module, clips: torch.Tensor) -> torch.Tensor:
    """Posterior means straight from diffusers, frame by frame where it knows only images."""
    if type(model).__name__ == "AutoencoderKL":
        return torch.stack([model.encode(clips[:, :, f]).latent_dist.mean for f in range(clips.shape[2])], dim=2)
    return model.encode(clips).latent_dist.mode()


def test_shapes_and_range(case):
    _, folder, shape, _ = case
    vae = load_vae(str(folder))
    assert vae.latent_shape(9, 16, 32) == shape
    latents = vae.encode(some_clips())
    assert latents.shape == (2, *shape)
    assert latents.dtype == torch.float32
    clips = vae.decode(10 * latents)
    assert clips.shape == (2, 3, 9, 16, 32)
    assert clips.dtype == torch.float32
    assert clips.abs().max() <= 1
    assert not latents.requires_grad
    assert not clips.requires_grad


def test_normalisation_is_the_convention(case):
    model, folder, _, (mean, std) = case
    vae = load_vae(str(folder))
    clips = some_clips()
    # float32 through the same network: only the order of sums may differ
    torch.testing.assert_close(
        vae.encode(clips)[:, 1] * std + mean, raw_latents(model, clips)[:, 1], atol=1e-5, rtol=1e-4
    )


def test_round_trip_is_diffusers_own(case):
    model, folder, _, _ = case
    vae = load_vae(str(folder))
    clips = some_clips()
    raw = raw_latents(model, clips)
    with torch.no_grad():
        if type(model).__name__ == "AutoencoderKL":
            expected = torch.stack([model.decode(raw[:, :, f]).sample for f in range(raw.shape[2])], dim=2)
        elif model.config.get("timestep_conditioning"):
            expected = model.decode(raw, torch.zeros(len(raw))).sample
        else:
            expected = model.decode(raw).sample
    # normalising and back costs a few float32 roundings, which deep random networks amplify a little
    torch.testing.assert_close(vae.decode(vae.encode(clips)), expected.clamp(-1, 1), atol=1e-4, rtol=1e-3)


def test_sizes_that_do_not_fit(case):
    vae = load_vae(str(case[1]))
    if vae.temporal > 1:
        with pytest.raises(UserError, match=r"16 frames: .*4k \+ 1; the nearest are 13 and 17"):
            vae.latent_shape(16, 32, 32)
    near = 36 // vae.spatial * vae.spatial
    with pytest.raises(UserError, match=f"width 37: .*the nearest are {near} and {near + vae.spatial}"):
        vae.encode(torch.zeros(1, 3, 9, 16, 37))


def test_pipelines_folder_and_fingerprint(tmp_path):
    shutil.copytree(EMBEDDED, tmp_path / "pipeline" / "vae")
    original, copy = load_vae("embedded"), load_vae(str(tmp_path / "pipeline"))
    assert copy.fingerprint == original.fingerprint
    assert len(copy.fingerprint) == 16
    path = tmp_path / "pipeline" / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": 2.0}))
    assert load_vae(str(tmp_path / "pipeline")).fingerprint != original.fingerprint


def test_measured_statistics_where_there_is_no_convention(tmp_path):
    import diffusers

    folder = tmp_path / "vae"
    model = diffusers.AutoencoderKL(latent_channels=2, block_out_channels=(8,), norm_num_groups=4, scaling_factor=None)
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="no latent statistics"):
        load_vae(str(folder))
    (folder / "statistics.json").write_text(json.dumps({"mean": [1.0, 2.0], "std": [0.5, 4.0]}))
    vae = load_vae(str(folder))
    assert vae.statistics["convention"] == "statistics.json"
    clips = some_clips()
    torch.testing.assert_close(
        vae.encode(clips)[:, 1] * 4 + 2, raw_latents(vae.model, clips)[:, 1], atol=1e-5, rtol=1e-4
    )
    (folder / "statistics.json").write_text(json.dumps({"mean": [1.0, 2.0, 3.0], "std": [0.5, 4.0]}))
    with pytest.raises(UserError, match="3 numbers"):
        load_vae(str(folder))


def test_bad_specs(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for spec, message in (
        ("embeded", "did you mean 'embedded'"),
        (str(tmp_path / "none"), "no such folder"),
        (str(tmp_path), "no config.json"),
        ("someone/some-vae", "could not be fetched"),
    ):
        with pytest.raises(UserError, match=message):
            load_vae(spec)
    folder = shutil.copytree(EMBEDDED, tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderKLWann"}))
    with pytest.raises(UserError, match="did you mean 'AutoencoderKLWan'"):
        load_vae(str(folder))
    (folder / "config.json").write_text(json.dumps(config | {"latent_channels": 5}))
    with pytest.raises(UserError, match="does not load"):
        load_vae(str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(UserError, match="does not load"):
        load_vae(str(folder))
    weights.unlink()
    with pytest.raises(UserError, match="no diffusion_pytorch_model"):
        load_vae(str(folder))


def test_pickles_are_refused_with_a_reason(tmp_path):
    folder = shutil.copytree(EMBEDDED, tmp_path / "vae")
    weights = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), folder / "diffusion_pytorch_model.bin")
    whole = load_vae(str(folder))  # beside safetensors a pickle is not looked at
    weights.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(UserError, match="does not load"):  # a variant is not what diffusers looks for by default
        load_vae(str(folder))
    (folder / "diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.bin is a pickle, .* save it as safetensors"):
        load_vae(str(folder))
    assert whole.channels


def test_embedded_reconstructs_held_out_clips():
    vae = load_vae("embedded")
    clips = render(torch.arange(48), seed=123_456)
    assert vae.latent_shape(17, 32, 32) == (16, 5, 4, 4)
    latents = vae.encode(clips)
    error = (vae.decode(latents) - clips).pow(2).mean()
    assert 10 * torch.log10(4 / error) >= 25
    # Statistics are those of 2048 other clips; 48 clips of four seeds strayed by up to 0.15 and 0.09. Without
    # normalisation deviations would be 0.57 to 0.91.
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.2
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 0.15


def test_embedded_first_frame_stands_alone():
    vae = load_vae("embedded")
    clips = render(torch.arange(2), seed=1)
    torch.testing.assert_close(vae.encode(clips)[:, :, :1], vae.encode(clips[:, :, :1]), atol=1e-4, rtol=1e-3)


def test_embedded_is_small():
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) < 5e6
