"""Memory is bounded: batches go in parts, which changes nothing, and clips too large for one part in tiles."""

import pytest
import torch

from tests.models.cases import make, some_clips
from videoscaling.data.sources.synthetic import render
from videoscaling.models.autoencoders import positions, rows_at_once
from videoscaling.models.vae import VideoVAE, load_vae


def test_a_batch_in_parts_is_the_batch(made, monkeypatch):
    vae = load_vae(str(made.folder))
    clips = some_clips(*made.case.size, n=3)
    latents = vae.encode(clips)
    decoded = vae.decode(latents)
    rows = []
    for name in ("encode", "decode"):
        call = getattr(vae.model, name)
        monkeypatch.setattr(vae.model, name, lambda x, *more, call=call: (rows.append(len(x)), call(x, *more))[1])
    monkeypatch.setattr("videoscaling.models.autoencoders.POSITIONS_AT_ONCE", positions(vae.model, *made.case.size))
    torch.testing.assert_close(vae.encode(clips), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vae.decode(latents), decoded, atol=1e-5, rtol=1e-5)
    assert set(rows) == {1}
    assert not vae.model.use_tiling


def test_which_clips_are_tiled(tmp_path):
    """The rule of docs/data.md, for the shapes that it names."""
    for key, frames, whole, tiled in (
        ("wan", 81, (1080, 1920), (1536, 2048)),
        ("cogvideox", 49, (720, 1280), (1080, 1920)),
        ("hunyuan", 129, (480, 832), (720, 1280)),
        ("ltx 0.9", 121, (720, 1280), (1088, 1920)),
        ("mochi", 19, (480, 848), (720, 1280)),
        ("image", 129, (2160, 3840), (2896, 2904)),
    ):
        model = make(key, tmp_path / key).model
        assert rows_at_once(model, frames, *whole) > 0
        assert rows_at_once(model, frames, *tiled) == 0


def with_small_tiles(vae: VideoVAE, latents: int = 4) -> tuple[VideoVAE, int, int]:
    """Tiles of so many ``latents`` that start every three quarters of that, in place of diffusers' 256 to 1024 pixels;
    and what that is in pixels."""
    pixels = {"min": latents * vae.spatial, "stride": 3 * latents // 4 * vae.spatial}
    for name in vars(vae.model):
        kind = name.removeprefix("tile_sample_").split("_")[0]
        if name.startswith("tile_sample_") and "frames" not in name:
            setattr(vae.model, name, pixels[kind])
        elif name.startswith("tile_latent_min") and "frames" not in name:
            setattr(vae.model, name, latents)
        elif name.startswith("tile_overlap_factor"):
            setattr(vae.model, name, 0.25)
    return vae, pixels["min"], pixels["stride"]


def test_tiles_are_put_where_they_belong(made, monkeypatch):
    """What only one tile covers is that tile encoded, or decoded, alone."""
    vae, tile, stride = with_small_tiles(load_vae(str(made.folder)))
    clips = some_clips(made.case.size[0], 2 * stride, 2 * stride + tile // 2, n=1)
    latents = torch.randn(1, *vae.latent_shape(*clips.shape[2:]), generator=torch.Generator().manual_seed(0))
    if made.key == "cosmos":
        pytest.skip("diffusers 0.42.1 has no tiles for Cosmos, whose widest maps have 64 times fewer positions")
    first, last = vae.encode(clips[..., :tile, :tile]), vae.encode(clips[..., stride:, 2 * stride :])
    first_clip = vae.decode(latents[..., :4, :4])
    monkeypatch.setattr("videoscaling.models.autoencoders.POSITIONS_AT_ONCE", 1)
    tiled, clip = vae.encode(clips), vae.decode(latents)
    assert vae.model.use_tiling
    assert tiled.shape == latents.shape
    assert clip.shape == clips.shape
    if made.key != "wan with patches":  # it measures the encoder's tiles in patches, and has one tile here
        assert last[..., 1:, 1:].numel() > 0
        torch.testing.assert_close(tiled[..., :3, :3], first[..., :3, :3], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tiled[..., 4:, 7:], last[..., 1:, 1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(clip[..., :stride, :stride], first_clip[..., :stride, :stride], atol=1e-5, rtol=1e-4)


def error(x: torch.Tensor, expected: torch.Tensor) -> float:
    return ((x - expected).pow(2).mean().sqrt() / expected.std()).item()


def test_tiles_of_a_trained_autoencoder_come_close(monkeypatch):
    """The embedded one: latents within 10 % of their deviation, pixels within 5, with tiles of no more than 64 pixels
    and though it has seen nothing but clips of 32 x 32."""
    vae, *_ = with_small_tiles(load_vae("embedded"), 8)
    clips = render(torch.arange(2), seed=5, frames=9, height=96, width=128)
    latents = vae.encode(clips)
    decoded = vae.decode(latents)
    monkeypatch.setattr("videoscaling.models.autoencoders.POSITIONS_AT_ONCE", 1)
    assert 0 < error(vae.encode(clips), latents) < 0.1
    assert 0 < error(vae.decode(latents), decoded) < 0.05


@pytest.mark.parametrize("key", ["wan", "cogvideox"])
def test_pieces_in_time_are_no_seams(key, tmp_path):
    """What is carried from piece to piece makes the first pieces what they are in a longer clip."""
    vae = load_vae(str(make(key, tmp_path / "vae").folder))
    clips = some_clips(25, n=1)
    torch.testing.assert_close(vae.encode(clips)[:, :, :5], vae.encode(clips[:, :, :17]), atol=1e-5, rtol=1e-4)


def test_hunyuans_pieces_in_time(tmp_path):
    """Of 17 frames, one every 12, as diffusers has them: what one piece alone covers is that piece encoded alone."""
    vae = load_vae(str(make("hunyuan", tmp_path / "vae").folder))
    clips = some_clips(29, n=1)
    latents = vae.encode(clips)
    first, second = vae.encode(clips[:, :, :17]), vae.encode(clips[:, :, 12:])
    torch.testing.assert_close(latents[:, :, :4], first[:, :, :4], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(latents[:, :, 5:7], second[:, :, 2:4], atol=1e-5, rtol=1e-4)
