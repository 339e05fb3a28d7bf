import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data import latents
from data.clips import Rejected
from data.latents import LatentCache, Unit, open_cache, write_cache
from models.text import load_text_encoder
from utils.errors import UserError
from utils.random import normal

SHAPE = (3, 2, 4, 4)
SETTINGS = {"format": latents.FORMAT, "frames": 5, "height": 16, "width": 16, "source": "test"}
TEXT = load_text_encoder("embedded")


class PoolingVAE:
    """Averages over space and time; stops the job after ``until`` calls, as a kill would."""

    def __init__(self, until: int = 1_000_000):
        self.until, self.calls = until, 0

    def latent_shape(self, frames, height, width):
        return 3, (frames + 3) // 4, height // 4, width // 4

    def encode(self, clips):
        self.calls += 1
        if self.calls > self.until:
            raise KeyboardInterrupt
        return torch.nn.functional.adaptive_avg_pool3d(clips, SHAPE[1:])


def clips_of(first: int, count: int) -> torch.Tensor:
    return normal(0, "clips", torch.arange(first, first + count), (3, 5, 16, 16))


def caption(i: int) -> str:
    return "" if i % 7 == 0 else " ".join(["shape"] * (i % 9 + 1)) + f" {i // 2}"


def unit(name: str, first: int, count: int, broken: bool = False) -> Unit:
    def load(first: int, count: int):
        if broken:
            raise Rejected("undecodable", "broken in the middle")
        return [caption(i) for i in range(first, first + count)], clips_of(first, count)

    return Unit(name, [f"{name}#{i}" for i in range(first, first + count)], partial(load, first, count))


def units_of(broken: bool = False) -> dict[str, list[Unit]]:
    train = [unit(f"v{k}", 10 * k, 3 + k % 3, broken=broken and k == 2) for k in range(8)]
    return {"train": train, "validation": [unit("w0", 200, 4), unit("w1", 300, 3)]}


def make(folder, units=None, vae=None, settings=SETTINGS, **options):
    assert open_cache(folder, settings) is None
    return write_cache(folder, settings, units or units_of(), vae or PoolingVAE(), TEXT, **options)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(latents, "SHARD_CLIPS", 6)


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_reads_back_what_direct_encoding_gives(tmp_path):
    units = units_of()
    index = make(tmp_path / "cache", units, batch=2, about={"vae": "pooling"})
    cache = LatentCache(tmp_path / "cache")
    assert len(index["splits"]["train"]["shards"]) > 3  # the indices below cross shards
    for split, read, size in (
        ("train", cache.train, cache.train_size),
        ("validation", cache.validation, cache.validation_size),
    ):
        loaded = [u.load() for u in units[split]]
        clips = torch.cat([clips for _, clips in loaded])
        captions = [c for names, _ in loaded for c in names]
        assert size == len(clips)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(0)).repeat(2)[: size + 3]
        found, context, mask = read(order)
        expected = PoolingVAE().encode(clips[order])
        assert found.dtype == context.dtype == torch.float32
        # float16 keeps 11 bits.
        torch.testing.assert_close(found, expected, rtol=2**-11, atol=1e-7)
        embedded, tokens = TEXT.encode([captions[i] for i in order])
        used = embedded.shape[1]
        torch.testing.assert_close(context[:, :used], embedded, rtol=2**-11, atol=1e-6)
        assert torch.equal(mask[:, :used], tokens)
        assert not mask[:, used:].any()
        assert not context[:, used:].any()
    assert cache.meta["vae"] == "pooling"
    assert (cache.latent_shape, cache.text_dim) == (SHAPE, TEXT.dim)
    embedding, mask = cache.null_context
    assert embedding.shape == (cache.text_tokens, TEXT.dim)
    assert mask.tolist() == [True] + [False] * (cache.text_tokens - 1)
    torch.testing.assert_close(embedding[:1], TEXT.encode([""])[0][0], rtol=2**-11, atol=1e-6)
    cache.verify()


def test_index_facts_and_lists(tmp_path):
    index = make(tmp_path / "cache", units_of(broken=True), rejected=[Rejected("too short", "3 frames").row("a")])
    cache = LatentCache(tmp_path / "cache")
    stored, _, _ = cache.train(torch.arange(cache.train_size))
    by_channel = stored.double().transpose(0, 1).flatten(1)
    # The same numbers summed in another order, in float64.
    torch.testing.assert_close(torch.tensor(index["latent_statistics"]["mean"]), by_channel.mean(1).float())
    std = torch.tensor(index["latent_statistics"]["std"])
    torch.testing.assert_close(std, by_channel.std(1, unbiased=False).float())
    assert index["n_clips"] == cache.train_size + cache.validation_size == 31 - 5 + 7
    assert index["positions"] == index["n_clips"] * 2 * 4 * 4
    rows = [json.loads(line) for line in (tmp_path / "cache" / "rejected.jsonl").open()]
    assert [(row["source"], row["reason"]) for row in rows] == [("a", "too short"), ("v2", "undecodable")]
    assert index["rejected"] == {"too short": 1, "undecodable": 1}
    captions = [json.loads(line) for line in (tmp_path / "cache" / "captions.jsonl").open()]
    assert [row["key"] for row in captions if row["split"] == "validation"] == cache.validation_keys
    assert captions[3] == {"split": "train", "key": "v1#10", "caption": caption(10)}
    shard = load_file(tmp_path / "cache" / "train-00000.safetensors")  # any safetensors reader can read it
    assert np.array_equal(shard["latents"].float().numpy(), stored[: len(shard["latents"])].numpy())


@pytest.mark.parametrize("until", [0, 1, 4, 7, 8])
def test_an_interrupted_cache_is_refused_then_finished_to_the_same_bytes(tmp_path, until):
    make(tmp_path / "whole", units_of(broken=True))
    folder, slow = tmp_path / "broken", PoolingVAE(until)
    with pytest.raises(KeyboardInterrupt):
        make(folder, units_of(broken=True), slow)
    (folder / ".train-00001.safetensors.1.tmp").write_bytes(b"half a shard")
    with pytest.raises(UserError, match="unfinished"):
        LatentCache(folder)
    again = PoolingVAE()
    make(folder, units_of(broken=True), again)
    assert files_of(folder) == files_of(tmp_path / "whole")
    if until >= 4:
        assert again.calls < 9  # finished shards are not made again


def test_a_finished_cache_is_left_alone_and_other_settings_are_refused(tmp_path):
    index = make(tmp_path)
    before = files_of(tmp_path)
    assert open_cache(tmp_path, SETTINGS) == index
    other = {**SETTINGS, "frames": 9, "stride": 2}
    with pytest.raises(UserError, match=r"frames is 5 there and 9 now; stride is None there and 2 now"):
        open_cache(tmp_path, other)
    assert files_of(tmp_path) == before


def test_a_job_that_stopped_before_any_work_leaves_the_folder_free(tmp_path):
    assert open_cache(tmp_path, SETTINGS) is None
    other = {**SETTINGS, "source": "another"}
    make(tmp_path, settings=other)
    assert LatentCache(tmp_path).meta["source"] == "another"


def test_a_folder_that_is_no_cache_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no latent cache"):
        open_cache(tmp_path, SETTINGS)
    with pytest.raises(UserError, match="no latent cache"):
        LatentCache(tmp_path)
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(UserError, match="not the index"):
        LatentCache(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut", "altered"])
@pytest.mark.parametrize("name", ["train-00001.safetensors", "null_context.safetensors", "captions.jsonl"])
def test_a_damaged_file_is_named_and_mended_by_the_same_command(tmp_path, name, damage):
    make(tmp_path)
    whole, file = files_of(tmp_path), tmp_path / name
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(whole[name][:-5])
    else:
        file.write_bytes(whole[name][:-1] + bytes([whole[name][-1] ^ 1]))
        with pytest.raises(UserError, match=name):
            LatentCache(tmp_path).verify()
        file.unlink()  # as the message says
    with pytest.raises(UserError, match=name):
        LatentCache(tmp_path)
    make(tmp_path)
    assert files_of(tmp_path) == whole


def test_an_altered_validation_list_is_refused(tmp_path):
    make(tmp_path)
    path = tmp_path / "validation.json"
    path.write_text(path.read_text().replace("w0#201", "w0#202"))
    with pytest.raises(UserError, match="validation list is frozen"):
        LatentCache(tmp_path)


def test_a_frozen_clip_that_cannot_be_had_stops_the_cache(tmp_path):
    units = units_of()
    frozen = [key for u in units["validation"] for key in u.keys]
    assert make(tmp_path / "kept", units, frozen=frozen)["validation_hash"] == latents.list_hash(frozen)
    units["validation"][1] = unit("w1", 300, 3, broken=True)
    with pytest.raises(UserError, match="3 clips of the frozen validation list"):
        make(tmp_path / "lost", units, frozen=frozen)


def test_nothing_left_or_not_finite_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="no clip is left for training; rejected: 1 undecodable"):
        make(tmp_path / "none", {"train": [unit("v", 0, 3, broken=True)], "validation": []})

    class Overflowing(PoolingVAE):
        def encode(self, clips):
            return super().encode(clips) * 1e6

    with pytest.raises(UserError, match=r"train-00000.*not finite"):
        make(tmp_path / "overflow", vae=Overflowing())


def test_indices_out_of_range_are_refused(tmp_path):
    make(tmp_path)
    cache = LatentCache(tmp_path)
    for index in (-1, cache.train_size):
        with pytest.raises(IndexError):
            cache.train(torch.tensor([0, index]))
