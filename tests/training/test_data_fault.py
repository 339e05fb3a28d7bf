"""A fault of the data ends a run with exit status 2 and the clip's name: no step is skipped, no run diverges by it."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands import call
from tests.data.test_integrity import reseal, rewrite
from tests.training.test_trainer import overrides, result
from videoscaling.data.shards import Shards, Stored, read_header
from videoscaling.training.batches import BatchLoader
from videoscaling.training.checkpoints.checkpoint import checkpoint_paths
from videoscaling.training.config import load_config
from videoscaling.training.stacked.loop import train_stacked
from videoscaling.training.train import prepare, train
from videoscaling.utils.errors import DataFault
from videoscaling.utils.files import json_text
from videoscaling.utils.results import DATA_FAULT
from videoscaling.utils.seal import read_sealed, sealed

FIX = "delete it and run the command that made the cache"


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    return shutil.copytree(cache, tmp_path / "cache")


def spoil(folder: Path, split: str, name: str, row: int) -> str:
    """Put NaN into a clip, with checksums that are right; returns its key."""
    path = folder / f"{split}-00000.safetensors"
    tensors = load_file(path)
    at = int(tensors["text_row"][row]) if name == "text" else row
    tensors[name][at].view(-1)[3] = torch.nan
    rewrite(path, tensors)
    reseal(folder, path.name)
    return read_header(path)[1]["keys"][row]


def spoil_null(folder: Path) -> None:
    path = folder / "null_context.safetensors"
    tensors = load_file(path)
    tensors["text"].view(-1)[0] = torch.nan
    save_file(tensors, path)
    index = json.loads((folder / "index.json").read_text())
    del index["crc32"]
    index["files"][path.name] = {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (folder / "index.json").write_text(json_text(sealed(index)))


def fault_of(folder: Path, place: str) -> str:
    """Spoil a place of the cache; returns a pattern of the whole message."""
    if place == "null context":
        spoil_null(folder)
        text = f"{folder}/null_context.safetensors: the empty prompt's embedding has NaN or infinite values; {FIX}"
        return re.escape(text)
    split, what = place.split()
    key = re.escape(repr(spoil(folder, split, what, 7)))
    name = {"latents": "latents", "text": "caption's embedding"}[what]
    if what == "text":  # clips of one caption share a row: the first to be read is named
        key = f"'{split} [0-9]*[27]'"
    path = re.escape(f"{folder}/{split}-00000.safetensors")
    return f"{path}, clip {key}: NaN or infinite values in its {name}; {FIX}"


PLACES = ("train latents", "train text", "validation latents", "validation text", "null context")


@pytest.mark.parametrize("place", PLACES)
def test_a_run_names_the_fault_and_leaves_no_result(copy: Path, tmp_path: Path, place: str) -> None:
    message = fault_of(copy, place)
    out = call("train.py", *overrides(copy, tmp_path, "x", "train.tokens=25600", "log.every_steps=50"))
    assert out.returncode == 2
    assert re.fullmatch(f"error: {message}\n", out.stderr), out.stderr
    assert not (tmp_path / "x" / "result.json").exists()
    assert checkpoint_paths(tmp_path / "x" / "checkpoints") == []


@pytest.mark.parametrize("place", PLACES)
def test_stacked_runs_all_end_by_it(copy: Path, tmp_path: Path, place: str) -> None:
    message = fault_of(copy, place)
    for row in range(2):
        (tmp_path / str(row)).mkdir()
    configs = [load_config(None, overrides(copy, tmp_path, str(row), f"seed={row}")) for row in range(2)]
    with pytest.raises(DataFault) as error:
        train_stacked(configs)
    assert re.fullmatch(message, str(error.value))
    for row in range(2):
        assert read_sealed(tmp_path / str(row) / DATA_FAULT) == {"reason": str(error.value)}
        assert not (tmp_path / str(row) / "result.json").exists()


def altered_after_the_first_read(monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    """Have every clip be NaN from its second read on, as one whose page is read anew from a failing disk."""
    plain, check = Shards.read, Shards.check_all
    seen: set[tuple[Path, int]] = set()

    def read(self: Shards, indices: torch.Tensor, pinned: bool = False) -> Stored:
        stored = plain(self, indices, pinned)
        for place, index in enumerate(indices.tolist()):
            at = (self.files[0][0], index)
            if at in seen and at[0].name.startswith(split):
                stored.latents[place] = np.nan
            seen.add(at)
        return stored

    def broken(*_: object, **__: object) -> None:
        raise DataFault("looked at again")

    monkeypatch.setattr(Shards, "read", read)
    monkeypatch.setattr(Shards, "check", broken)
    monkeypatch.setattr(Shards, "check_all", lambda self, again=False: broken() if seen else check(self, again))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_clips_are_looked_at_again_before_a_run_has_diverged(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    altered_after_the_first_read(monkeypatch, split)
    with pytest.raises(DataFault, match="looked at again"):
        train(load_config(None, overrides(cache, tmp_path, "x", "train.milestones=[640]")))
    assert not (tmp_path / "x" / "result.json").exists() or result(tmp_path / "x")["status"] == "running"


def test_a_run_that_diverges_by_itself_is_still_a_result(cache: Path, tmp_path: Path) -> None:
    keys = overrides(cache, tmp_path, "x", "optim.lr=1e30", "optim.clip=1e30")
    assert train(load_config(None, keys)) == 0
    found = result(tmp_path / "x")
    assert found["status"] == "diverged"
    assert not (tmp_path / "x" / DATA_FAULT).exists()


def test_the_result_counts_skipped_steps(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a gradient that overflows by itself: the clips are as they were written."""
    plain = BatchLoader.batch

    def step(self: BatchLoader, number: int) -> object:
        samples = plain(self, number)
        return samples._replace(x0=samples.x0 * torch.inf) if number in (2, 5, 6) else samples

    monkeypatch.setattr(BatchLoader, "batch", step)
    keys = ("train.tokens=1280", "train.milestones=[512]")
    assert train(load_config(None, overrides(cache, tmp_path, "x", *keys))) == 0
    assert (result(tmp_path / "x")["skipped"], result(tmp_path / "x")["status"]) == (3, "done")


def test_a_step_that_is_looked_at_again_reads_its_own_clips(cache: Path, tmp_path: Path) -> None:
    """``BatchLoader.check`` of some steps, on each of two processes, reads the clips of training and no others."""
    run, data = prepare(load_config(None, overrides(cache, tmp_path, "x")))
    looked: list[int] = []

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(data, name)

        def check(self, indices: torch.Tensor) -> None:
            looked.extend(indices.tolist())

        def stored(self, indices: torch.Tensor, pinned: bool) -> Stored:
            return data.stored(indices, pinned)

    for rank in range(2):
        feed = BatchLoader(run, Watched(), rank, 2, torch.device("cpu"))
        feed.check(3, 70)
    positions = torch.arange(3 * run.clips, 70 * run.clips)
    assert sorted(looked) == sorted(data.order(positions, run.config.data_seed).tolist())
