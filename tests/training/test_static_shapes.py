"""Passes of one size: what torch.compile compiles once, and what the mean gradient is the same for."""

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.test_dit import build, inputs
from tests.training.graphs import is_of_a_model, nodes_of
from tests.training.test_trainer import overrides
from videoscaling import ROOT, VideoPipeline
from videoscaling.models.sizes import parse_size
from videoscaling.training.batches import Samples
from videoscaling.training.config import load_config
from videoscaling.training.memory import find_micro_batch
from videoscaling.training.model import MAX_WHOLE_BLOCKS, compile_model
from videoscaling.training.planning.memory_formula import even_size
from videoscaling.training.step import micro_batches
from videoscaling.training.train import prepare
from videoscaling.training.trainer import RAW_SHARE, Trainer
from videoscaling.training.validation import samples_per_pass


class Graphs(list):
    """Counts, for each compiled graph of a model: whether gradients are wanted, symbolic sizes, torch.arange calls."""

    def __call__(self, module: torch.fx.GraphModule, examples: list[Any]) -> Any:
        if not is_of_a_model(module):
            return module.forward
        nodes = nodes_of(module)
        symbolic = [n for n in nodes if isinstance(n.meta.get("example_value"), torch.SymInt)]
        ranges = [n for n in nodes if n.target is torch.arange]
        self.append((torch.is_grad_enabled(), len(symbolic), len(ranges)))
        return module.forward

    def count(self, gradients: bool) -> int:
        return Counter(graph[0] for graph in self)[gradients]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    found = Graphs()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=found))
    torch.compiler.reset()
    yield found
    torch.compiler.reset()


def trainer_of(cache: Path, out: Path, *more: str) -> Trainer:
    return Trainer(*prepare(load_config(None, overrides(cache, out, "x", *more))))


@pytest.mark.parametrize(
    ("count", "most", "wanted"),
    [(4, None, 4), (4, 9, 4), (4, 3, 2), (7, 4, 4), (527, 16, 16), (17, 8, 6), (5, 1, 1)],
)
def test_sizes_are_even(count: int, most: int | None, wanted: int) -> None:
    size = even_size(count, most)
    assert size == wanted
    assert even_size(count, size) == size
    t = torch.arange(float(count))
    pieces = list(micro_batches(Samples(t, t, t, t, t), most))
    assert {len(piece.t) for piece, _ in pieces} == {size}
    assert torch.equal(torch.cat([piece.t[:kept] for piece, kept in pieces]), t)


@pytest.mark.parametrize("rows", [0, 2], ids=["alone", "stacked"])
def test_only_the_last_micro_batch_is_padded(rows: int) -> None:
    t, x0 = torch.rand(17), torch.rand(17, 3, 2)
    if rows:
        t, x0 = torch.rand(rows, 17), torch.rand(rows, 17, 3, 2)
    samples = Samples(x0, x0, t, x0, x0)
    pieces = list(micro_batches(samples, 8))
    assert [kept for _, kept in pieces] == [6, 6, 5]
    assert len({tuple(value.stride() for value in piece) for piece, _ in pieces}) == 1
    assert torch.equal(
        torch.cat([piece.x0[:, :kept] if rows else piece.x0[:kept] for piece, kept in pieces], t.dim() - 1), x0
    )
    for piece, kept in pieces:
        held = piece.x0.untyped_storage().nbytes()  # views of one run's samples, or copies of a micro-batch
        shared = piece.x0.untyped_storage().data_ptr() == x0.untyped_storage().data_ptr()
        assert shared or held == piece.x0.nbytes
        assert shared == (not rows and kept == 6)


@pytest.mark.parametrize("micro_batch", [2, 3, 4])
def test_the_gradient_is_the_batchs_mean_for_any_micro_batch(cache: Path, tmp_path: Path, micro_batch: int) -> None:
    """Of five clips the last micro-batch repeats one, or three, or one."""
    found = []
    for size in (5, micro_batch):
        trainer = trainer_of(cache, tmp_path, "train.batch_tokens=160", f"train.micro_batch={size}")
        for step in range(3):  # past the zeros that a model begins with
            trainer.train_step.run(trainer.loader.batch(step), step * 160)
        trainer.train_step.by_t.zero_()
        loss = trainer.train_step.backward(trainer.loader.batch(3))
        found.append(
            (loss, *(weights.grad.clone() for weights in trainer.train_step.weights), trainer.train_step.by_t.clone())
        )
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert found[1][-1][1].sum() == 5  # a repeated sample is counted once


@pytest.mark.parametrize(
    ("layers", "recompute"),
    [(1, "false"), (7, "false"), (2, "selective"), (7, "true"), (7, "selective")],
    ids=lambda value: {1: "whole", 2: "whole", 7: "by block"}.get(value, value),
)
def test_training_and_validation_are_each_compiled_once(
    cache: Path, tmp_path: Path, graphs: Graphs, layers: int, recompute: str
) -> None:
    """With a last micro-batch and a last validation pass that are not full, and for raw and averaged weights."""
    keys = ("train.micro_batch=2", "train.batch_tokens=160", "validation.clips=11", "validation.batch=3")
    keys += (f"train.activation_checkpointing={recompute}", f"model.size={layers}x32")
    trainer = trainer_of(cache, tmp_path, *keys, "train.compile=true")
    for step in range(2):
        trainer.train_step.run(trainer.loader.batch(step), step * 160)
    assert len(graphs) == graphs.count(True) == 1
    trainer._validate(trainer.model, RAW_SHARE)
    trainer._validate(trainer.ema)
    trainer.train_step.run(trainer.loader.batch(2), 320)
    assert (graphs.count(True), graphs.count(False)) == (1, 1)
    assert {symbolic for _, symbolic, _ in graphs} == {0}


def graph_settings(path: Path) -> tuple[Any, ...]:
    """What of a configuration is in its compiled graph, the width and the numbers of clips and tokens left out."""
    config = load_config(path, [])
    deep = config.model.size is not None and parse_size(config.model.size).layers > MAX_WHOLE_BLOCKS
    model, diffusion = config.model, config.diffusion
    settings = (deep, model.attention, config.train.activation_checkpointing, diffusion.process, diffusion.target)
    return *settings, *model.patch


# One of each kind: the presets, for example, differ in what no graph has.
KINDS = {graph_settings(path): path for path in sorted((ROOT / "configs" / "train").rglob("*.yaml"), reverse=True)}


@pytest.mark.slow
@pytest.mark.parametrize("path", KINDS.values(), ids=lambda path: path.stem)
def test_every_configuration_is_one_graph(cache: Path, tmp_path: Path, graphs: Graphs, path: Path) -> None:
    """Of a small model, whole or by block as the named one: a break, or another shape, would be another graph."""
    deep, *_, frames, rows, columns = graph_settings(path)
    layers, n_ctx = MAX_WHOLE_BLOCKS + 1 if deep else 2, 32 // (frames * rows * columns)
    small = overrides(cache, tmp_path, "x", f"model.size={layers}x32", "train.compile=true", "train.dtype=float32")
    small += [f"train.batch_tokens={5 * n_ctx}", f"train.tokens={15 * n_ctx}", "train.micro_batch=2"]
    small += ["validation.clips=11", "validation.batch=3", "log.prompts=[]"]
    trainer = Trainer(*prepare(load_config(path, small)))
    for step in range(2):
        trainer.train_step.run(trainer.loader.batch(step), trainer.tokens)
    trainer._validate(trainer.model, RAW_SHARE)
    trainer._validate(trainer.ema)
    found = list(graphs)
    assert (graphs.count(True), graphs.count(False)) == (1, 1)
    trainer.train_step.run(trainer.loader.batch(2), trainer.tokens)
    trainer._validate(trainer.ema)
    assert graphs == found
    assert {symbolic for _, symbolic, _ in graphs} == {0}


@pytest.mark.slow
def test_a_halved_micro_batch_is_compiled_once(cache: Path, tmp_path: Path, graphs: Graphs) -> None:
    """From 8 clips to 2, over more sizes than torch.compile bears of one function."""
    keys = ("train.batch_tokens=256", "train.compile=true")
    trainer = trainer_of(cache, tmp_path, *keys)
    plain = trainer.train_step.backward

    def gradients(*arguments: Any, **more: Any) -> torch.Tensor:
        loss = plain(*arguments, **more)
        if trainer.train_step.micro_batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    trainer.train_step.backward = gradients
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        find_micro_batch(trainer.train_step, trainer.loader.batch(0), n_ctx=1, verbose=False)
        assert trainer.train_step.micro_batch == 2
        graphs.clear()
        trainer.train_step.run(trainer.loader.batch(0), 0)
    assert graphs == []  # it was compiled by the attempt that fitted, and by no other that is still there


def test_rotary_angles_are_a_constant_to_the_compiler(graphs: Graphs) -> None:
    model = build()
    compile_model(model)
    model(*inputs())
    assert [ranges for _, _, ranges in graphs] == [1]  # the timestep's frequencies; the angles' would be three more


def test_validation_passes_count_tokens() -> None:
    assert samples_per_pass(None, 80) == 32
    assert samples_per_pass(None, 1280) == 32
    assert samples_per_pass(None, 32_000) == 1
    assert samples_per_pass(None, 100_000) == 1
    assert samples_per_pass(64, 32_000) == 64  # who sets validation.batch gets it


def test_sampling_compiles_once_for_prompts_of_all_lengths(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videoscaling.training.pipeline.check_compiler", lambda *arguments: None)
    compiled, plain = VideoPipeline.from_run(compiled=True), VideoPipeline.from_run()
    prompts = [" ".join(["red"] * words) for words in (1, 9)]
    videos = [compiled(prompt, steps=1, guidance=1.0) for prompt in prompts]
    assert len(graphs) == 1
    # Padding is masked: sums of float32 with more zeros in them.
    torch.testing.assert_close(videos[-1], plain(prompts[-1], steps=1, guidance=1.0), rtol=0, atol=1e-5)
