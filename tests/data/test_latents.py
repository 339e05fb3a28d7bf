import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.data.units import SETTINGS, SHAPE, TEXT, PoolingVAE, caption, files_of, make, unit, units_of
from videoscaling.data.clip_groups import list_hash
from videoscaling.data.latents import LatentCache
from videoscaling.data.writer import Load, WorkShare, open_cache, working
from videoscaling.utils.errors import DataFault, UserError


def test_reads_back_what_direct_encoding_gives(tmp_path):
    units = units_of()
    index = make(tmp_path / "cache", units, load=Load(2), about={"vae": "pooling"})
    cache = LatentCache(tmp_path / "cache")
    assert len(index["splits"]["train"]["shards"]) > 3  # the indices below cross shards
    for split, read, size in (
        ("train", cache.train, cache.train_size),
        ("validation", cache.validation, cache.validation_size),
    ):
        loaded = [u.load() for u in units[split]]
        clips = torch.cat([part.pixels for part in loaded])
        captions = [c for part in loaded for c in part.captions]
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
    index = make(tmp_path / "cache", units_of(broken=True))
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
    assert [(row["source"], row["reason"]) for row in rows] == [("v2", "undecodable")]
    assert index["rejected"] == {"undecodable": 1}
    captions = [json.loads(line) for line in (tmp_path / "cache" / "captions.jsonl").open()]
    assert [row["key"] for row in captions if row["split"] == "validation"] == cache.validation_keys
    assert captions[3] == {"split": "train", "key": "v1#10", "caption": caption(10)}
    shard = load_file(tmp_path / "cache" / "train-00000.safetensors")  # any safetensors reader can read it
    assert np.array_equal(shard["latents"].float().numpy(), stored[: len(shard["latents"])].numpy())


@pytest.mark.parametrize("until", [0, 1, 4, 7, 9])
def test_an_interrupted_cache_is_refused_then_finished_to_the_same_bytes(tmp_path, until):
    make(tmp_path / "whole", units_of(broken=True), load=Load(4))
    folder, slow = tmp_path / "broken", PoolingVAE(until)
    with pytest.raises(KeyboardInterrupt):
        make(folder, units_of(broken=True), slow, load=Load(4))
    (folder / ".work" / "share-1-of-3").mkdir(parents=True)
    (folder / ".work" / "share-1-of-3" / "train-00001.safetensors.host.1").write_bytes(b"half a shard")
    with pytest.raises(UserError, match="unfinished"):
        LatentCache(folder)
    again = PoolingVAE()
    make(folder, units_of(broken=True), again, load=Load(4))
    assert files_of(folder) == files_of(tmp_path / "whole")
    # Finished shards are not made again: of the ten batches the first two are a shard's, then one, three and two.
    assert again.calls == {0: 10, 1: 10, 4: 7, 7: 4, 9: 2}[until]


def test_a_finished_cache_is_left_alone_and_other_settings_are_refused(tmp_path):
    index = make(tmp_path)
    before = files_of(tmp_path)
    other = {**SETTINGS, "frames": 9, "stride": 2}
    with working(tmp_path, WorkShare()) as work:
        assert open_cache(tmp_path, SETTINGS, work) == index
        with pytest.raises(UserError, match=r"frames is 5 there and 9 now; stride is None there and 2 now"):
            open_cache(tmp_path, other, work)
    assert files_of(tmp_path) == before


def test_a_job_that_stopped_before_any_work_leaves_the_folder_free(tmp_path):
    with working(tmp_path, WorkShare()) as work:
        assert open_cache(tmp_path, SETTINGS, work) is None
    other = {**SETTINGS, "source": "another"}
    make(tmp_path, settings=other)
    assert LatentCache(tmp_path).meta["source"] == "another"


def test_a_folder_that_is_no_cache_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no latent cache"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
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
        with pytest.raises(DataFault, match=name):
            LatentCache(tmp_path).verify()
        file.unlink()  # as the message says
    with pytest.raises(UserError, match=name):
        LatentCache(tmp_path)
    make(tmp_path)
    assert files_of(tmp_path) == whole


def test_a_shard_with_an_altered_header_is_named(tmp_path):
    make(tmp_path)
    path = tmp_path / "train-00000.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + b"[" + whole[9:])  # of the same length
    with pytest.raises(DataFault, match="train-00000.safetensors was altered"):
        LatentCache(tmp_path)
    path.write_bytes(whole[:8] + whole[8:].replace(b"planned", b"plamned", 1))
    with pytest.raises(DataFault, match="train-00000.safetensors was altered"):
        LatentCache(tmp_path)


def test_a_cache_of_before_with_whole_checksums_is_read(tmp_path):
    make(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    del index["crc32"]
    for name, file in index["files"].items():
        file.pop("header_sha256", None)
        file["sha256"] = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    (tmp_path / "index.json").write_text(json.dumps(index))
    LatentCache(tmp_path).verify()
    index["files"]["train-00000.safetensors"]["sha256"] = "0"
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="train-00000.safetensors was altered"):
        LatentCache(tmp_path).verify()


def test_an_altered_validation_list_is_refused(tmp_path):
    make(tmp_path)
    path = tmp_path / "validation.json"
    path.write_text(path.read_text().replace("w0#201", "w0#202"))
    with pytest.raises(UserError, match=r"validation\.json was altered"):
        LatentCache(tmp_path)


def test_a_frozen_clip_that_cannot_be_had_stops_the_cache(tmp_path):
    units = units_of()
    frozen = [key for u in units["validation"] for key in u.load().keys]
    assert make(tmp_path / "kept", units, frozen=frozen)["validation_hash"] == list_hash(frozen)
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
