"""A latent cache of structured clips for the tests, and what every test process does.

torch and the repository are imported where they are used: pytest-xdist's controller, which starts the workers after it
has read this file and runs no test, would spend 3 s on them first.
"""

import os
import zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, one a core

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.processes import launch

if TYPE_CHECKING:
    from torch import Tensor

    from videoscaling.data.clip_groups import ClipGroup

SHAPE = (4, 2, 4, 4)  # 32 tokens of 4 numbers: the smallest width, 32, is wide enough


class LatentsAsTheyAre:
    """A VAE that changes nothing: the tests' clips are latents of one ``shape`` already."""

    def __init__(self, shape: tuple[int, ...] = SHAPE) -> None:
        self.shape = shape

    def encode(self, clips: "Tensor") -> "Tensor":
        return clips

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        return self.shape


def structured_latents(index: "Tensor", shape: tuple[int, ...] = SHAPE) -> "Tensor":
    """Latents with something to learn: a few directions, mixed by each clip's own amounts, and a little noise."""
    import torch

    from videoscaling.utils.random import normal

    directions = normal(1, "directions", torch.arange(4), shape)
    amounts = normal(1, "amounts", index, (4,))
    return torch.einsum("nk,kcfhw->ncfhw", amounts, directions) / 2 + 0.1 * normal(1, "rest", index, shape)


def make_cache(folder: Path, train: int = 96, validation: int = 16, shape: tuple[int, ...] = SHAPE) -> Path:
    """A latent cache of ``train`` + ``validation`` clips with latents of ``shape``."""
    import torch

    from videoscaling.data.clip_groups import ClipGroup
    from videoscaling.data.video.clips import Clips
    from videoscaling.data.writer import write_cache
    from videoscaling.models.text import load_text_encoder

    frames, height, width = shape[1:]
    settings = {"format": 1, "frames": frames, "height": height, "width": width}
    settings["source"] = f"test {train} {validation}"
    about = {"vae": "embedded", "vae_fingerprint": "none", "text": "embedded", "text_fingerprint": "none"}

    def unit(split: str, first: int, count: int) -> "ClipGroup":
        index = torch.arange(first, first + count)
        captions = [f"a clip of kind {i % 5}" for i in index.tolist()]
        keys = [f"{split} {i}" for i in index.tolist()]
        return ClipGroup(split, keys, lambda: Clips(keys, captions, structured_latents(index, shape)))

    units = {"train": [unit("train", 0, train)], "validation": [unit("validation", 10_000, validation)]}
    write_cache(folder, settings | about, units, LatentsAsTheyAre(shape), load_text_encoder("embedded"))
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("cache") / "latents")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", metavar="I/N", help="of N parts of the tests chosen the I-th, counted from 0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of one shard: by a hash of each test's name, so that another test moves none of them."""
    if config.getoption("shard"):
        part, parts = map(int, config.getoption("shard").split("/"))
        if not 0 <= part < parts:
            raise pytest.UsageError(f"--shard {part}/{parts}: shards are counted from 0")
        others = [item for item in items if zlib.crc32(item.nodeid.encode()) % parts != part]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if zlib.crc32(item.nodeid.encode()) % parts == part]


def pytest_configure(config: pytest.Config) -> None:
    launch.watch()
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):  # not xdist's controller
        import torch

        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    launch.end_all()
