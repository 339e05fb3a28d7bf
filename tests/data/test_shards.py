"""Shards in a row are read as one, wherever their bounds are."""

import pytest
import torch

from tests.data.units import SHAPE, make
from videoscaling.data.latents import LatentCache
from videoscaling.data.shards import Shards, as_float, is_whole, read_header
from videoscaling.data.writer import Load


def test_opening_many_shards_maps_none_of_them(tmp_path, monkeypatch):
    make(tmp_path)
    cache = LatentCache(tmp_path)
    opened = []
    monkeypatch.setattr("videoscaling.data.shards.map_arrays", opened.append)
    Shards(cache.files["train"], SHAPE, cache.text_tokens, cache.text_dim)
    assert not opened


def test_what_is_read_does_not_depend_on_what_it_is_read_with(tmp_path):
    make(tmp_path, load=Load(5))
    cache = LatentCache(tmp_path)
    index = torch.randperm(cache.train_size, generator=torch.Generator().manual_seed(1))
    together = cache.stored(index)
    for place, number in enumerate(index):
        alone = cache.stored(number[None])
        for a, b in zip(together, alone):
            assert torch.equal(a[place], b[0])
    latents, text, mask = as_float(together)
    assert (latents.dtype, text.dtype, mask.dtype) == (torch.float32, torch.float32, torch.bool)
    assert torch.equal(mask.sum(1), together.text_length)
    assert not text[~mask].any()
    assert [len(part) for part in cache.stored(index[:0])] == [0, 0, 0]


@pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{}"])
def test_rubbish_is_no_shard(tmp_path, content):
    path = tmp_path / "train-00000.safetensors"
    assert not is_whole(path, "x")
    path.write_bytes(content)
    assert not is_whole(path, "x")


def test_a_shard_is_whole_with_its_last_byte_and_its_own_plan(tmp_path):
    make(tmp_path)
    path = tmp_path / "train-00000.safetensors"
    planned = read_header(path)[1]["planned"]
    assert is_whole(path, planned)
    assert not is_whole(path, "another")
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_whole(path, planned)
