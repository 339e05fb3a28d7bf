"""Construction of a VideoDiT from a configuration and its data's meta, for training, sampling and measuring."""

import os
import shutil
from collections.abc import Callable
from typing import TypeVar

import torch

from videoscaling.data.index import CacheMeta
from videoscaling.models.attention import choose_backend
from videoscaling.models.dit import DiTConfig, VideoDiT
from videoscaling.models.embeddings import rotary_table
from videoscaling.models.sizes import parameters
from videoscaling.training.config import Config
from videoscaling.utils.errors import UserError

MAX_WHOLE_BLOCKS = 6  # a deeper model is compiled block by block
F = TypeVar("F", bound=Callable)
Model = TypeVar("Model", bound=VideoDiT)


def build_model(config: Config, meta: CacheMeta, device: torch.device, kind: type[Model] = VideoDiT) -> Model:
    """The initialised model of a resolved ``config``, for data of ``meta`` (latent_shape and text_dim).

    Args:
        kind: its class.

    Raises:
        UserError: its float32 weights, which are made in the machine's own memory, are larger than that.
    """
    _check_memory(config.model.layers, config.model.width)
    dtype = getattr(torch, config.train.dtype)
    shape = DiTConfig(
        layers=config.model.layers,
        width=config.model.width,
        heads=config.model.heads,
        channels=meta["latent_shape"][0],
        patch=tuple(config.model.patch),
        text_dim=meta["text_dim"],
    )
    backend = choose_backend(config.model.attention, device.type, dtype)
    model = kind(shape, config.seed, dtype, backend).to(device)
    model.recompute = config.train.activation_checkpointing
    return model


def _check_memory(layers: int, width: int) -> None:
    """Refuse a model whose blocks' weights alone exceed the machine's memory, before any is allocated."""
    needed, there = 4 * parameters(layers, width), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(
            f"model.size={layers}x{width}: its weights take {needed / 1e9:,.0f} GB, and this machine has "
            f"{there / 1e9:,.0f} GB of memory; take a smaller model, or estimate it with --dry-run --account"
        )


def check_compiler(wanted: bool, device: torch.device, option: str = "train.compile=true") -> None:
    """UserError if torch.compile is ``wanted`` and finds no compiler: on the CPU it needs one for C++."""
    compilers = filter(None, (os.environ.get("CXX"), "g++", "clang++"))
    if wanted and device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError(f"{option}: torch.compile needs a C++ compiler on the CPU, and none is on the path")


def compile_model(model: VideoDiT, whole: bool = True, shapes: int = 1) -> None:
    """Compile ``model`` in place with torch.compile: a shallow one ``whole``, else its blocks, which are all alike.

    As a whole a model of few layers runs faster, and of many takes minutes to compile. Shapes are static: after a
    second size torch.compile would otherwise train on with symbolic ones, whose kernels are slower.

    Args:
        shapes: how many shapes clips have, each of which is compiled for training and for validation.
    """
    torch.compiler.assume_constant_result(rotary_table)
    # After 8 graphs of one function torch.compile would silently run it uncompiled.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * shapes + 2)
    whole = whole and len(model.blocks) <= MAX_WHOLE_BLOCKS
    if not whole:
        # Else DDP would split a block into several graphs, at its buckets, so that gradients are reduced early: they
        # are after each block. Some versions of torch refuse where activations are recomputed (PyTorch issue 104674).
        torch._dynamo.config.optimize_ddp = False
    for part in [model] if whole else model.blocks:
        part.compile(dynamic=False)


def compile_function(function: F) -> F:
    """``function``, which calls a VideoDiT or moves its weights, compiled for static shapes as a model is."""
    torch.compiler.assume_constant_result(rotary_table)
    return torch.compile(function, dynamic=False)
