"""Clips are read ahead in a thread, to the end of the run, and the samples are the same."""

import threading
import time
from pathlib import Path

import torch

from tests.training.test_trainer import overrides, result, run
from videoscaling.data.shards import Stored
from videoscaling.training.batches import AHEAD, BatchLoader
from videoscaling.training.config import load_config
from videoscaling.training.train import prepare


def test_a_thread_reads_the_next_groups(cache: Path, tmp_path: Path) -> None:
    made, data = prepare(load_config(None, overrides(cache, tmp_path, "x", "train.tokens=64e3")))
    read: list[tuple[bool, int]] = []

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(data, name)

        def stored(self, indices: torch.Tensor, pinned: bool) -> Stored:
            read.append((threading.current_thread() is threading.main_thread(), len(indices)))
            time.sleep(0.05)
            return data.stored(indices, pinned)

    ahead, fresh = (BatchLoader(made, each, 0, 1, torch.device("cpu")) for each in (Watched(), data))
    group = 64 // made.clips
    for step in range(group + 1):
        ahead.batch(step)
    assert ahead.seconds > 0.05  # the first read, which nothing could hide
    ahead._reader.shutdown()
    assert read == [(False, 64)] * (2 + AHEAD)
    assert made.steps > group * (2 + AHEAD)
    for ours, theirs in zip(ahead.batch(group), fresh.batch(group)):
        assert torch.equal(ours, theirs)


def test_no_clips_are_read_for_steps_after_the_last(cache: Path, tmp_path: Path) -> None:
    made, data = prepare(load_config(None, overrides(cache, tmp_path, "x", "train.tokens=2560")))
    loader = BatchLoader(made, data, 0, 1, torch.device("cpu"))
    assert (made.steps, made.clips) == (20, 4)
    for step, groups in ((0, [0, 1]), (19, [1]), (70, [4])):  # a dry run may time steps that the run does not have
        loader.batch(step)
        assert list(loader._reads) == groups


def test_waiting_for_data_is_logged(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "x", "train.tokens=1280", "log.every_steps=5")
    lines = (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()
    waited = [float(line.partition('"data_seconds": ')[2].partition(",")[0]) for line in lines]
    assert len(waited) == 2
    assert 0 < waited[1] < waited[0] < result(tmp_path / "x")["seconds"]  # the second window reads nothing anew
