"""Parameters and memory by formula are those of the model and of the dry run."""

import pytest
import torch

from videoscaling.models.dit import DiTConfig, VideoDiT
from videoscaling.models.sizes import parse_size
from videoscaling.training.planning.dry_run import parameter_groups as counted_groups
from videoscaling.training.planning.memory_formula import (
    ClipShape,
    Layout,
    ModelShape,
    block_parameters,
    parameter_groups,
    training_memory,
)


def on_meta(size: str, channels: int, patch: tuple[int, int, int], text_dim: int) -> tuple[ModelShape, VideoDiT]:
    layers, width, heads = parse_size(size)
    with torch.device("meta"):
        model = VideoDiT(DiTConfig(layers, width, heads, channels, patch, text_dim))
    return ModelShape(layers, width, heads, model.config.token_dim, text_dim), model


@pytest.mark.parametrize(
    ("size", "channels", "patch", "text_dim"),
    [
        ("1x32", 4, (1, 1, 1), 64),
        ("4x128", 16, (1, 2, 2), 4096),
        ("3x96", 16, (2, 1, 1), 768),
        ("16x1024", 16, (1, 1, 1), 1),
        ("16x3072", 16, (1, 2, 2), 4096),
    ],
)
def test_every_group_is_the_models(size: str, channels: int, patch: tuple[int, int, int], text_dim: int) -> None:
    shape, model = on_meta(size, channels, patch, text_dim)
    assert parameter_groups(shape) == counted_groups(model)
    assert block_parameters(shape) == sum(parameter.numel() for parameter in model.blocks[0].parameters())


def test_a_model_on_the_meta_device_has_the_shape_of_one_that_is_drawn() -> None:
    shape, model = on_meta("2x64", 4, (1, 1, 1), 64)
    drawn = VideoDiT(DiTConfig(shape.layers, shape.width, shape.heads, 4, (1, 1, 1), 64))
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in drawn.named_parameters()}
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(parameter.is_meta for parameter in drawn.parameters())


def test_the_parts_follow_the_layout() -> None:
    shape, clip = ModelShape(16, 3072, 48, 16, 4096), ClipShape(1280, (16, 5, 16, 16), 512, 4096)
    count, block = sum(parameter_groups(shape).values()), block_parameters(shape)

    def parts(*layout: object, clips: int = 512, dtype: str = "bfloat16") -> dict[str, int]:
        return training_memory(shape, clip, Layout(*layout), clips=clips, dtype=dtype)

    one, ddp, fsdp = parts(1, "ddp", 2, False), parts(8, "ddp", 2, False), parts(8, "fsdp", 2, False)
    assert (one["weights"], one["optimizer"], one["communication"]) == (4 * count, 8 * count, 0)
    assert ddp["communication"] == ddp["weights"] == 4 * count
    assert fsdp["weights"] == fsdp["average"] == 4 * count // 8
    # Two blocks in bfloat16, one of them with its gradient, and everything outside the blocks.
    assert fsdp["communication"] == 8 * block + 4 * (count - 16 * block)
    assert parts(8, "fsdp", 2, False, dtype="float32")["communication"] == 4 * (3 * block + count - 16 * block)
    # Shards are gathered in bfloat16, of which no cast copy is kept.
    assert one["activations"] == ddp["activations"] == fsdp["activations"] + 2 * 16 * 16 * 3072**2
    zero1, hsdp = parts(8, "zero1", 2, False), parts(16, "hsdp", 2, False)
    assert (zero1["weights"], zero1["optimizer"], zero1["communication"]) == (4 * count, count, 0)
    assert (zero1["gradients"], zero1["average"]) == (4 * count, count // 2)
    assert (hsdp["weights"], hsdp["optimizer"]) == (fsdp["weights"], fsdp["optimizer"])
    assert parts(16, "hsdp", 2, False, 4)["weights"] == count
    # Four of the eight processes divide a clip: as many tokens of four times as many clips, whose texts are whole.
    divided = training_memory(shape, clip, Layout(8, "ddp", 8, False, context=4), clips=512, dtype="bfloat16")
    assert divided["activations"] == ddp["activations"] + 16 * 16 * (8 - 2) * 512 * 3072
    assert (divided["samples"], divided["weights"]) == (4 * ddp["samples"], ddp["weights"])
    # A process holds its share of the samples: noise and latents, and the text, in float32.
    assert one["samples"] == 8 * ddp["samples"] == 4 * 512 * (2 * 16 * 1280 + 512 * 4096)
    assert one["total"] == sum(size for name, size in one.items() if name != "total")
    assert parts(8, "fsdp", 2, True)["activations"] < fsdp["activations"] / 4
    # More clips at a time than a process has are those that it has, and few clips are prepared several steps at once.
    assert parts(8, "ddp", 100, False) == parts(8, "ddp", 64, False)
    assert parts(8, "ddp", 2, False, clips=64)["samples"] == ddp["samples"]


def test_a_small_model_stays_gathered_over_micro_batches() -> None:
    shape, clip = ModelShape(16, 1024, 16, 16, 4096), ClipShape(1280, (16, 5, 16, 16), 512, 4096)
    count = sum(parameter_groups(shape).values())
    several, whole = (
        training_memory(shape, clip, Layout(8, "fsdp", size, False), clips=64, dtype="bfloat16") for size in (4, 8)
    )
    assert several["communication"] == (2 + 4) * count
    assert whole["communication"] < several["communication"]
