"""Clips are read ahead in a thread, to the end of the run, and the samples are the same."""

import threading
import time
from pathlib import Path

import pytest
import torch

from tests.models.test_dit import trained
from tests.training.test_trainer import overrides, result, run
from videoscaling.data.latents import LatentCache
from videoscaling.data.shards import Stored
from videoscaling.diffusion.loss import denoising_loss
from videoscaling.diffusion.process import Process
from videoscaling.training.batches import PREFETCH_GROUPS, BatchLoader, with_text_tokens
from videoscaling.training.config import load_config
from videoscaling.training.model import build_model
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
    assert read == [(False, 64)] * (2 + PREFETCH_GROUPS)
    assert made.steps > group * (2 + PREFETCH_GROUPS)
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


class LongCaptions:
    """The clips of ``data``, with captions of up to ``longest`` tokens in a cache whose longest has 150."""

    text_tokens = 150

    def __init__(self, data: LatentCache, longest: int) -> None:
        self._data, self._longest = data, longest
        real = torch.arange(150) < 2
        self.null_context = (real[:, None].float().expand(150, data.text_dim), real)

    def __getattr__(self, name: str) -> object:
        return getattr(self._data, name)

    def stored(self, indices: torch.Tensor, pinned: bool) -> Stored:
        generator = torch.Generator().manual_seed(0)
        length = self._longest - indices.int() % 5
        text = torch.randn(len(indices), 150, self.text_dim, generator=generator).half()
        text[torch.arange(150) >= length[:, None]] = 0
        return self._data.stored(indices, pinned)._replace(text=text, text_length=length)


@pytest.mark.parametrize(
    ("longest", "compiled", "padded"), [(20, "false", 64), (70, "false", 128), (149, "false", 150), (20, "true", 150)]
)
def test_captions_are_padded_to_the_longest_of_their_steps(
    cache: Path, tmp_path: Path, longest: int, compiled: str, padded: int
) -> None:
    """Which changes neither losses nor gradients beyond rounding."""
    made, data = prepare(load_config(None, overrides(cache, tmp_path, "x", f"train.compile={compiled}")))
    trimmed, whole = (BatchLoader(made, LongCaptions(data, longest), 0, 1, torch.device("cpu")) for _ in range(2))
    whole.trims_text = False
    ours, theirs = trimmed.batch(1), whole.batch(1)
    assert (ours.context.shape[1], theirs.context.shape[1]) == (padded, 150)
    for mine, other in zip(with_text_tokens(ours, 150), theirs):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    model = trained(build_model(made.config, data.meta, torch.device("cpu")))
    process = Process("rectified_flow", "flow")
    losses, gradients = [], []
    for samples in (ours, theirs):
        losses.append(denoising_loss(model, process, *samples))
        gradients.append(torch.autograd.grad(losses[-1].mean(), list(model.parameters())))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
