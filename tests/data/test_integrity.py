"""Every byte of a cache that a number can follow from is checked before the number is used."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.data.units import PoolingVAE, files_of, make
from videoscaling.data.latents import LatentCache
from videoscaling.data.mixture import open_data
from videoscaling.data.shards import Shards, read_header, shard_bytes
from videoscaling.data.shards import header_sha256 as header_checksum
from videoscaling.utils.errors import DataFault, UserError
from videoscaling.utils.files import json_text
from videoscaling.utils.seal import sealed

READ_WHOLE = ("null_context.safetensors", "captions.jsonl", "rejected.jsonl", "validation.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("integrity") / "cache"
    make(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "cache")


def everything(folder: Path) -> list[Any]:
    """All that a training takes from a cache: its facts, lists and tensors."""
    cache = LatentCache(folder)
    cache.verify_validation()
    parts = [*cache.train(torch.arange(cache.train_size)), *cache.validation(torch.arange(cache.validation_size))]
    lists = [cache.validation_keys, cache.validation_hash, cache.latent_shape, cache.text_tokens, cache.text_dim]
    return [json_text(cache.meta), *lists, *(tensor.numpy().tobytes() for tensor in (*parts, *cache.null_context))]


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def flips(folder: Path, count: int, seed: int) -> list[tuple[str, int]]:
    """``count`` bits of each file; of shards as many of the header, of its first eight bytes, and of the tensors."""
    draw, found = random.Random(seed), []
    for path in sorted(folder.iterdir()):
        size, parts = 8 * path.stat().st_size, []
        if path.suffix == ".safetensors":
            begin = 8 * read_header(path)[2]
            parts = [(0, 64), (64, begin), (begin, size)]
        for low, high in parts or [(0, size)]:
            found += [(path.name, draw.randrange(low, high)) for _ in range(count)] if high > low else []
    return found


def check_flips(folder: Path, count: int, seed: int) -> int:
    """Flip one bit at a time; how many there were. Each must be refused, with the file's name."""
    whole, tried = everything(folder), flips(folder, count, seed)
    for name, bit in tried:
        flip(folder / name, bit)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            everything(folder)
        flip(folder / name, bit)
    assert everything(folder) == whole
    return len(tried)


def test_a_flipped_bit_is_refused_with_the_name_of_its_file(folder: Path) -> None:
    assert check_flips(folder, 6, seed=0) > 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_hundreds_of_flipped_bits_are_refused(folder: Path, seed: int) -> None:
    assert check_flips(folder, 60, seed) > 1000


def test_every_bit_around_the_seal_is_refused(folder: Path) -> None:
    """Among them those that make another key of it, without which the index would be one of an older cache."""
    path = folder / "index.json"
    whole = path.read_bytes()
    for byte in range(whole.rindex(b'"crc32"') - 4, len(whole)):
        for bit in range(8):
            flip(path, 8 * byte + bit)
            with pytest.raises(UserError, match=r"index\.json"):
                LatentCache(folder)
            path.write_bytes(whole)


def test_a_flipped_training_clip_is_named_when_it_is_read_and_no_other_is_refused(folder: Path) -> None:
    path = folder / "train-00001.safetensors"
    tensors, about, begin = read_header(path)
    row, size = 3, 2 * 3 * 2 * 4 * 4
    flip(path, 8 * (begin + tensors["latents"]["data_offsets"][0] + row * size) + 2)  # finite before and after
    cache, first = LatentCache(folder), LatentCache(folder).files["train"][0][1]
    others = torch.tensor([i for i in range(cache.train_size) if i != first + row])
    cache.train(others)
    for _ in range(2):  # a second read does not take it for checked
        with pytest.raises(DataFault) as error:
            cache.train(torch.tensor([0, first + row]))
        assert str(error.value) == (
            f"{path}, clip {about['keys'][row]!r} was altered; delete it and run the command that made the cache"
        )
    with pytest.raises(DataFault, match=about["keys"][row]):
        cache.verify()
    path.unlink()
    make(folder, vae=PoolingVAE())
    LatentCache(folder).verify()


def older(folder: Path) -> None:
    """Make a cache what the version before checksums of clips and of the index wrote."""
    index = json.loads((folder / "index.json").read_text())
    for name in index["files"]:
        if name.startswith(("train", "validation-")):
            rewrite(folder / name, load_file(folder / name), crc32=False)
            index["files"][name] = described(folder / name)
    del index["crc32"]
    (folder / "index.json").write_text(json_text(index))


def rewrite(path: Path, tensors: dict[str, torch.Tensor], crc32: bool = True) -> None:
    """Write a shard again with other ``tensors``, and checksums that are right."""
    about = {key: value for key, value in read_header(path)[1].items() if key not in ("crc32", "sha256")}
    content = shard_bytes(tensors, about)
    path.write_bytes(content)
    if not crc32:
        from safetensors.torch import save

        about["sha256"] = read_header(path)[1]["sha256"]
        path.write_bytes(save(tensors, metadata={"shard": json.dumps(about)}))


def described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "header_sha256": header_checksum(path)}


def reseal(folder: Path, *names: str) -> None:
    """Write the index again, with the files ``names`` as they are now."""
    index = json.loads((folder / "index.json").read_text())
    del index["crc32"]
    for name in names:
        index["files"][name] = described(folder / name)
    (folder / "index.json").write_text(json_text(sealed(index)))


def test_an_older_cache_reads_the_same_and_its_flips_are_found_at_the_first_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = everything(folder)
    older(folder)
    assert everything(folder) == whole
    LatentCache(folder).verify()
    assert capsys.readouterr() == ("", "")
    path = folder / "train-00000.safetensors"
    flip(path, 8 * path.stat().st_size - 1)
    with pytest.raises(DataFault, match=r"train-00000\.safetensors was altered"):
        LatentCache(folder).train(torch.tensor([0]))
    tensors, about, begin = read_header(path)
    with path.open("r+b") as file:
        file.seek(begin + tensors["latents"]["data_offsets"][0] + 2 * 3 * 2 * 4 * 4)
        file.write(b"\x00\x7e")
    message = f"clip {about['keys'][1]!r}: NaN or infinite values in its latents"
    with pytest.raises(DataFault, match=message):
        LatentCache(folder).train(torch.tensor([0]))


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("name", "what"), [("latents", "latents"), ("text", "caption's embedding")], ids=["latents", "text"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a_number_that_is_not_finite_is_named_whatever_the_checksums_say(
    folder: Path, split: str, name: str, what: str, value: float
) -> None:
    path = folder / f"{split}-00000.safetensors"
    tensors = load_file(path)
    row = int(tensors["text_row"][2]) if name == "text" else 2
    tensors[name][row].view(-1)[1] = value
    rewrite(path, tensors)
    reseal(folder, path.name)
    cache, key = LatentCache(folder), read_header(path)[1]["keys"][2]
    with pytest.raises(DataFault) as error:
        getattr(cache, split)(torch.tensor([2]))
    assert str(error.value) == (
        f"{path}, clip {key!r}: NaN or infinite values in its {what}; delete it and run the command that made the "
        "cache"
    )
    mixture = open_data([str(folder)])
    with pytest.raises(DataFault, match=key):
        mixture.verify_validation() if split == "validation" else mixture.train(torch.tensor([2]))


def test_clips_are_checked_once_and_again_where_that_is_asked_for(folder: Path) -> None:
    cache = LatentCache(folder)
    cache.train(torch.arange(cache.train_size))
    cache.verify_validation()
    before = files_of(folder)
    for name in ("train-00000.safetensors", "validation-00000.safetensors"):
        with (folder / name).open("r+b") as file:  # in place, as the map sees it
            file.seek(read_header(folder / name)[2])
            file.write(b"\x00\x7e")  # NaN
    cache.train(torch.arange(cache.train_size))
    with pytest.raises(DataFault, match="train-00000"):
        cache.check(torch.tensor([0]))
    cache.verify_validation()
    with pytest.raises(DataFault, match="validation-00000"):
        cache.verify_validation(again=True)
    assert before != files_of(folder)


def test_a_row_of_text_that_is_not_there_is_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an older shard, which has no checksum of its clips, in a split too large to be checked whole."""
    monkeypatch.setattr("videoscaling.data.shards.CHECKED_WHOLE_BYTES", 0)
    older(folder)
    path = folder / "train-00000.safetensors"
    begin, offset = read_header(path)[2], read_header(path)[0]["text_row"]["data_offsets"][0]
    with path.open("r+b") as file:
        file.seek(begin + offset)
        file.write((1000).to_bytes(4, "little"))
    shards = Shards([(path, 7)], (3, 2, 4, 4), 12, LatentCache(folder).text_dim)
    with pytest.raises(DataFault, match="train-00000"):
        shards.read(torch.tensor([0]))
