"""Autoencoders behind `load_vae`: small random ones of each class against diffusers itself, and the shipped one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.cases import COSMOS, make, raw_decoded, raw_latents, some_clips
from videoscaling.data.sources.synthetic import render
from videoscaling.models.autoencoders import frame_step
from videoscaling.models.hub import VAES
from videoscaling.models.vae import load_vae
from videoscaling.utils.errors import UserError
from videoscaling.utils.finiteness import NotFinite


def test_shapes_and_range(made):
    vae = load_vae(str(made.folder))
    temporal, spatial = made.case.compression
    frames, height, width = made.case.size
    shape = (vae.channels, (frames - 1) // temporal + 1, height // spatial, width // spatial)
    assert vae.latent_shape(*made.case.size) == shape
    latents = vae.encode(some_clips(*made.case.size))
    assert latents.shape == (2, *shape)
    assert latents.dtype == torch.float32
    clips = vae.decode(10 * latents)
    assert clips.shape == (2, 3, *made.case.size)
    assert clips.dtype == torch.float32
    assert clips.abs().max() <= 1
    assert not latents.requires_grad
    assert not clips.requires_grad


def test_every_length_that_is_taken_comes_back_as_long(made):
    """One frame, the next few lengths, and one past the pieces in which some classes go through a clip."""
    vae = load_vae(str(made.folder))
    step = frame_step(vae.model)
    _, height, width = made.case.size
    for frames in (1, step + 1, 2 * step + 1, 3 * step + 1, 32 // step * step + 1):
        clips = some_clips(frames, height, width, n=1)
        latents = vae.encode(clips)
        assert latents.shape[1:] == vae.latent_shape(frames, height, width)
        assert vae.decode(latents).shape == clips.shape


def test_normalisation_is_the_convention(made):
    vae = load_vae(str(made.folder))
    clips = some_clips(*made.case.size)
    mean, std = made.case.channel_1
    # float32 through the same network: only the order of sums may differ
    torch.testing.assert_close(
        vae.encode(clips)[:, 1] * std + mean, raw_latents(made.model, clips)[:, 1], atol=1e-5, rtol=1e-4
    )


def test_round_trip_is_diffusers_own(made):
    vae = load_vae(str(made.folder))
    clips = some_clips(*made.case.size)
    expected = raw_decoded(made.model, raw_latents(made.model, clips))
    # normalising and back costs a few float32 roundings, which deep random networks amplify a little
    torch.testing.assert_close(vae.decode(vae.encode(clips)), expected.clamp(-1, 1), atol=1e-4, rtol=1e-3)


def test_sizes_that_do_not_fit(made):
    vae = load_vae(str(made.folder))
    step = frame_step(vae.model)
    frames, height, width = made.case.size
    if step > 1:
        with pytest.raises(UserError, match=rf"{step} frames: .*{step}k \+ 1; the nearest are 1 and {step + 1}"):
            vae.latent_shape(step, height, width)
    near = width + vae.spatial
    with pytest.raises(UserError, match=f"width {width + 1}: .*the nearest are {width} and {near}"):
        vae.encode(torch.zeros(1, 3, frames, height, width + 1))


def test_ltx_2_takes_no_single_latent_along_a_side(tmp_path):
    """Its decoder mirrors at edges, and torch refuses to mirror one latent."""
    vae = load_vae(str(make("ltx 2", tmp_path / "vae").folder))
    with pytest.raises(UserError, match="height 32: this VAE takes multiples of 32; the nearest are 64 and 96"):
        vae.latent_shape(9, 32, 64)


def test_cogvideox_takes_no_even_number_of_latent_frames(tmp_path):
    """Its decoder makes 16 frames of the 4 latent ones that 13 frames become."""
    made = make("cogvideox", tmp_path / "vae")
    with torch.no_grad():
        assert made.model.decode(torch.zeros(1, 4, 4, 2, 4)).sample.shape[2] == 16
    with pytest.raises(UserError, match=r"13 frames: this VAE takes 8k \+ 1; the nearest are 9 and 17"):
        load_vae(str(made.folder)).latent_shape(13, 16, 32)


def test_statistics_that_end_set_the_longest_clip(tmp_path):
    import diffusers

    # As Cosmos has it: one number for each channel and latent frame.
    tables = {"latents_mean": [0.5] * 12, "latents_std": [2.0] * 4 + [3.0] * 8}
    diffusers.AutoencoderKLCosmos(**COSMOS | tables).save_pretrained(tmp_path / "vae")
    vae = load_vae(str(tmp_path / "vae"))
    clips = some_clips(9, 16, 32)
    torch.testing.assert_close(
        vae.encode(clips)[:, 1] * torch.tensor([2.0, 3.0, 3.0]).view(3, 1, 1) + 0.5,
        raw_latents(vae.model, clips)[:, 1],
        atol=1e-5,
        rtol=1e-4,
    )
    with pytest.raises(UserError, match="13 frames: this VAE has latent statistics for at most 9"):
        vae.encode(some_clips(13, 16, 32))


def test_bfloat16_on_load(made):
    whole = load_vae(str(made.folder))
    if made.key == "mochi":  # of its latents, 0.91 of a deviation was error
        with pytest.raises(UserError, match="AutoencoderKLMochi's encoder needs float32"):
            load_vae(str(made.folder), dtype=torch.bfloat16)
        return
    half = load_vae(str(made.folder), dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    # What decides latents is the same: LTX keeps its statistics among the weights, and they are not rounded.
    assert half.statistics == whole.statistics
    assert half.fingerprint == whole.fingerprint
    if made.key == "cosmos":
        return  # torch has no bfloat16 for its pooling on the CPU
    clips = some_clips(*made.case.size)
    latents, rounded = whole.encode(clips), half.encode(clips)
    assert rounded.dtype == torch.float32
    error = (rounded - latents).pow(2).mean().sqrt() / latents.std()
    assert 0 < error < 0.1
    assert half.decode(rounded).dtype == torch.float32


def test_shards_and_variants(made, tmp_path):
    whole = load_vae(str(made.folder))
    made.model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    index = tmp_path / "shards" / "diffusion_pytorch_model.safetensors.index.json"
    shards = sorted((tmp_path / "shards").glob("diffusion_pytorch_model-*.safetensors"))
    assert len(shards) > 1
    assert index.is_file()
    clips = some_clips(*made.case.size)
    assert torch.equal(load_vae(str(tmp_path / "shards")).encode(clips), whole.encode(clips))
    shards[-1].unlink()
    with pytest.raises(UserError, match=f"{shards[-1].name} is missing, which {index.name} names"):
        load_vae(str(tmp_path / "shards"))
    # A variant next to the weights is not read and changes no fingerprint.
    folder = shutil.copytree(made.folder, tmp_path / "variant")
    (folder / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    assert load_vae(str(folder)).fingerprint == whole.fingerprint


def test_weights_that_are_not_all_there(tmp_path):
    folder = shutil.copytree(VAES["embedded"], tmp_path / "vae")
    weights = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    lost = next(name for name in tensors if name.startswith("decoder"))
    save_file({name: value for name, value in tensors.items() if name != lost}, weights)
    with pytest.raises(UserError, match=rf"does not load \(no {lost} in its weights\)"):
        load_vae(str(folder))


def test_pipelines_folder_and_fingerprint(tmp_path):
    shutil.copytree(VAES["embedded"], tmp_path / "pipeline" / "vae")
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
        ("real23", "did you mean 'real32'"),
        (str(tmp_path / "none"), "no such folder"),
        (str(tmp_path), "no config.json"),
        ("someone/some-vae", "could not be fetched"),
    ):
        with pytest.raises(UserError, match=message):
            load_vae(spec)
    folder = shutil.copytree(VAES["embedded"], tmp_path / "vae")
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
    folder = shutil.copytree(VAES["embedded"], tmp_path / "vae")
    weights = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), folder / "diffusion_pytorch_model.bin")
    whole = load_vae(str(folder))  # next to safetensors a pickle is not read
    weights.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(UserError, match="does not load"):  # a variant is not what diffusers looks for by default
        load_vae(str(folder))
    (folder / "diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.bin is a pickle, .* save it as safetensors"):
        load_vae(str(folder))
    assert whole.channels


@pytest.mark.parametrize("name", VAES)
def test_what_ships_reconstructs_held_out_clips(name):
    vae = load_vae(name)
    clips = render(torch.arange(48), seed=123_456)
    assert vae.latent_shape(17, 32, 32) == (16, 5, 4, 4)
    latents = vae.encode(clips)
    error = (vae.decode(latents) - clips).pow(2).mean()
    assert 10 * torch.log10(4 / error) >= 25
    if name != "embedded":  # synthetic clips are a third of what its statistics are of
        return
    # Statistics are those of 2048 other clips; 48 clips of four seeds strayed by up to 0.15 and 0.09. Without
    # normalisation deviations would be 0.57 to 0.91.
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.2
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 0.15


@pytest.mark.parametrize("name", VAES)
def test_the_first_frame_stands_alone(name):
    vae = load_vae(name)
    clips = render(torch.arange(2), seed=1)
    torch.testing.assert_close(vae.encode(clips)[:, :, :1], vae.encode(clips[:, :, :1]), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", VAES)
def test_what_ships_is_small(name):
    assert sum(path.stat().st_size for path in VAES[name].iterdir()) < 5e6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_decoded(value):
    """Clamped to [-1, 1], infinity would be white, and NaN is written as black."""
    vae = load_vae(VAES["embedded"])
    latents = torch.zeros(1, *vae.latent_shape(1, 32, 32))
    broken = latents.clone()
    broken[0, 0, 0, 0, 0] = value
    with pytest.raises(NotFinite, match="latents to decode"):
        vae.decode(broken)
    bias = [value for name, value in vae.model.named_parameters() if "decoder" in name and name.endswith("bias")][-1]
    bias.fill_(value)
    with pytest.raises(NotFinite, match="clips decoded with .*the autoencoder overflows"):
        vae.decode(latents)
