"""One step: what a gradient that is not finite leaves alone, and what fits into memory."""

import copy
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.test_dit import build
from tests.training.test_trainer import losses, metrics, overrides, result, run
from videoscaling.training import memory
from videoscaling.training.batches import BatchLoader, Samples
from videoscaling.training.checkpoints.checkpoint import checkpoint_paths, find_checkpoint, read_state
from videoscaling.training.checkpoints.pieces import optimizer_tensors
from videoscaling.training.config import load_config
from videoscaling.training.memory import candidates, fastest, find_micro_batch, largest_that_fits
from videoscaling.training.model import build_model
from videoscaling.training.optim import build_optimizer, weight_groups
from videoscaling.training.schema import OptimKeys
from videoscaling.training.step import TrainStep
from videoscaling.training.train import prepare, train
from videoscaling.training.trainer import Trainer
from videoscaling.utils.errors import PREEMPTED, UserError


def trainer_of(cache: Path, out: Path, *more: str) -> Trainer:
    return Trainer(*prepare(load_config(None, overrides(cache, out, "x", *more))))


def bad(samples: Samples) -> Samples:
    """The same samples, one number of the last not a number."""
    x0 = samples.x0.clone()
    x0[-1, 0, 0, 0, 0] = torch.nan
    return samples._replace(x0=x0)


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    tensors = trainer.model.state_dict() | optimizer_tensors(trainer.model, trainer.train_step.optimizer)
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("before", [0, 3])
def test_a_step_without_a_finite_gradient_moves_nothing(cache: Path, tmp_path: Path, before: int) -> None:
    trainer = trainer_of(cache, tmp_path, "train.micro_batch=1")
    for step in range(before):
        trainer.train_step.run(trainer.loader.batch(step), step * 128)
    loss, unmoved = trainer.train_step.loss_sum.clone(), state_of(trainer)
    trainer.train_step.run(bad(trainer.loader.batch(before)), before * 128)
    moved = state_of(trainer)
    assert all(torch.equal(moved[name], tensor) for name, tensor in unmoved.items())
    assert {moved[name].item() for name in moved if name.startswith("step.")} == {before}
    assert not trainer.train_step.grad_norm.isfinite()
    assert torch.equal(trainer.train_step.loss_sum, loss)
    counts = trainer.train_step.counts()
    assert (counts["counted"], counts["skipped"], counts["in_a_row"]) == (before, 1, 1)
    trainer.train_step.run(trainer.loader.batch(before + 1), (before + 1) * 128)
    assert not torch.equal(state_of(trainer)["final.weight"], unmoved["final.weight"])
    assert (trainer.train_step.skipped_steps.item(), trainer.train_step.consecutive_skips.item()) == (1, 0)


def poison(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> None:
    plain = BatchLoader.batch
    monkeypatch.setattr(BatchLoader, "batch", lambda self, n: bad(plain(self, n)) if n in steps else plain(self, n))


def test_skipped_steps_are_counted_and_logged_over_a_resume_too(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, [4, 11, 12])
    settings = ("train.tokens=3840", "optim.warmup_tokens=384")
    done = run(cache, tmp_path, "x", *settings)
    lines = metrics(tmp_path / "x")
    assert done["status"] == "done"
    assert [line["skipped"] for line in lines] == [0] * 4 + [1] * 7 + [2] + [3] * 18
    assert [n for n, line in enumerate(lines) if line["loss"] is None] == [4, 11, 12]  # nothing was counted: no zero
    assert [n for n, line in enumerate(lines) if line["grad_norm"] is None] == [4, 11, 12]
    run(cache, tmp_path, "resumed", *settings, "train.tokens=1280")  # ten steps, with one skipped
    run(cache, tmp_path, "resumed", *settings)
    assert metrics(tmp_path / "resumed") == lines
    assert result(tmp_path / "resumed")["milestones"][-1] == done["milestones"][-1]
    # A window's mean is over the steps that counted.
    run(cache, tmp_path, "tens", *settings, "log.every_steps=10")
    wanted = [np.mean([line["loss"] for line in lines[f : f + 10] if line["loss"]]) for f in (0, 10, 20)]
    np.testing.assert_allclose(losses(tmp_path / "tens"), wanted, rtol=1e-6)


@pytest.mark.parametrize("log_every", [1, 1000])
def test_so_many_in_a_row_end_the_run_however_seldom_it_is_asked(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    settings = ("train.max_skipped=3", f"log.every_steps={log_every}", "checkpoint.every_steps=4")
    poison(monkeypatch, [4, 5, 8, 9, 10])
    done = run(cache, tmp_path, "x", *settings)
    assert (done["status"], done["milestones"]) == ("diverged", [])
    saved = [read_state(p)["step"] for p in checkpoint_paths(tmp_path / "x" / "checkpoints")]
    assert saved == [8, 4]
    # The eleventh step was the third in a row; the twelfth was well, but only then does the rare one ask.
    assert done["tokens"] == (11 if log_every == 1 else 12) * 128


def test_no_checkpoint_is_saved_while_steps_fail(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, [7, 49])
    run(cache, tmp_path, "x", "checkpoint.every_steps=4", "checkpoint.keep=99")
    saved = [read_state(p)["step"] for p in checkpoint_paths(tmp_path / "x" / "checkpoints")]
    # Step 8 failed. So did the last one, but a run does not end without its weights, which validation found finite.
    assert saved == [50, *range(48, 8, -4), 4]


def test_moments_made_beforehand_change_no_number() -> None:
    """Fused AdamW would make them at the first step, after the micro-batch was fitted."""
    ours, theirs = build(), build()
    prepared = build_optimizer(weight_groups(ours), OptimKeys(weight_decay=0.1), 128)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in prepared.param_groups]
    split = [[p for n, p in theirs.named_parameters() if n.endswith(".weight") == matrix] for matrix in (True, False)]
    plain = torch.optim.AdamW([{"params": part, **copy.copy(group)} for part, group in zip(split, groups)])
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for mine, yours in zip(ours.parameters(), theirs.parameters()):
            mine.grad = torch.randn(mine.shape, generator=generator)
            yours.grad = mine.grad.clone()
        prepared.step()
        plain.step()
    assert all(torch.equal(mine, yours) for mine, yours in zip(ours.parameters(), theirs.parameters()))
    for mine, yours in zip(ours.parameters(), theirs.parameters()):
        made, expected = prepared.state[mine], plain.state[yours]
        assert made.keys() == expected.keys()
        for name, value in made.items():
            assert (value.dtype, value.device) == (expected[name].dtype, expected[name].device)
            assert torch.equal(value, expected[name])


def test_one_pass_is_clipping_adamw_and_the_average(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over 50 clipped steps with weight decay, two of them skipped; and one continues what the other saved."""
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    poison(monkeypatch, [0, 30])
    keys = ("optim.clip=0.05", "optim.weight_decay=0.3", "optim.warmup_tokens=384")
    once = (*keys, "train.compile=true")
    run(cache, tmp_path, "x", *keys)
    run(cache, tmp_path, "y", *once)
    run(cache, tmp_path, "z", *once, "train.tokens=3200")
    run(cache, tmp_path, "z", *keys)
    wanted = metrics(tmp_path / "x")
    for name in ("y", "z"):
        for key in ("loss", "grad_norm"):
            ours, theirs = ([line[key] or 0.0 for line in lines] for lines in (metrics(tmp_path / name), wanted))
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    ours, theirs = (result(tmp_path / name)["milestones"][-1]["ema_val_loss"] for name in "yx")
    assert ours == pytest.approx(theirs, rel=1e-5)


def out_of_memory(above: int, tried: list[int]):
    def attempt(size: int) -> None:
        tried.append(size)
        if size > above:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return attempt


def test_the_micro_batch_is_halved_until_it_fits(capsys: pytest.CaptureFixture) -> None:
    tried: list[int] = []
    assert largest_that_fits(out_of_memory(2, tried), 7) == 2
    assert tried == [7, 4, 2]
    said = capsys.readouterr().out.splitlines()
    assert [line.split("=")[1].split(",")[0] for line in said] == ["4", "2"]
    assert all("which changes no result" in line for line in said)
    assert largest_that_fits(out_of_memory(9, []), 8) == 8
    with pytest.raises(UserError) as error:
        largest_that_fits(out_of_memory(0, []), 4, verbose=False)
    knobs = ("train.activation_checkpointing=true", "train.parallel=fsdp", "train.context_parallel", "model.size")
    places = [str(error.value).index(knob) for knob in knobs]
    assert places == sorted(places)
    assert "\n" not in str(error.value)


def test_micro_batches_that_are_timed_divide_the_share_and_fill_a_gpu() -> None:
    assert candidates(48, 48, 2048) == [48, 24, 16]
    assert candidates(48, 48, 1024) == [48, 24, 16]
    assert candidates(48, 48, 1000) == [48, 24]  # 16 would have 16,000 tokens
    assert candidates(30, 8, 4096) == [8, 6, 5]  # 8 repeats two samples
    assert candidates(37, 10, 40_000) == [10]
    assert candidates(64, 64, 256) == [64]


def test_the_fastest_micro_batch_is_chosen_and_the_largest_unless_another_saves_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seconds = {8: 1.0, 6: 0.75, 5: 0.5}
    assert fastest(30, [8, 6, 5], seconds.__getitem__) == 5  # 4 s, 3.75 s and 3 s
    assert "train.micro_batch=5, " in (said := capsys.readouterr().out)
    assert "4 s at 8, 3.75 s at 6, 3 s at 5" in said
    assert fastest(16, [16, 8], {16: 1.0, 8: 0.49}.__getitem__) == 16
    assert fastest(16, [16, 8], {16: 1.0, 8: 0.48}.__getitem__) == 8


@pytest.mark.parametrize(("given", "wanted", "timed"), [(None, 2, [4, 2]), (4, 4, [])])
def test_a_micro_batch_that_is_given_is_not_timed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int | None, wanted: int, timed: list[int]
) -> None:
    """The timed passes are real; their clock here passes a second for each of their clips, squared."""
    trainer = trainer_of(cache, tmp_path)
    train_step, plain, clock, passes = trainer.train_step, trainer.train_step.backward, [0.0], []
    train_step.micro_batch = given

    def backward(samples: Samples, share: bool = True) -> torch.Tensor:
        passes.append(len(samples.t))
        clock[0] += len(samples.t) ** 2
        return plain(samples, share)

    monkeypatch.setattr(train_step, "backward", backward)
    monkeypatch.setattr(memory.time, "perf_counter", lambda: clock[0])
    find_micro_batch(train_step, trainer.loader.batch(0), n_ctx=8192, verbose=False)
    assert train_step.micro_batch == wanted
    assert passes == [4, *(size for size in timed for _ in range(1 + memory.TIMED_PASSES))]
    assert not train_step.by_t.any()
    assert not any(parameter.grad.any() for parameter in trainer.model.parameters())


def test_validation_that_does_not_fit_has_advice_of_its_own(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError) as error:
        largest_that_fits(out_of_memory(0, []), 4, verbose=False, key="validation.batch", rows=3)
    said = str(error.value)
    assert "one validation sample at a time of each of 3 stacked runs" in said
    assert "activation_checkpointing" not in said
    assert said.index("executor.stack") < said.index("train.parallel=fsdp") < said.index("model.size")
    tried: list[int] = []
    assert largest_that_fits(out_of_memory(2, tried), 7, key="validation.batch", rows=3) == 2
    assert tried == [7, 4, 2]
    assert [line.split("validation.batch=")[1].split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "12",
        "6",
    ]


def test_a_shards_pass_is_not_tried_again_alone() -> None:
    """The other processes wait in the middle of theirs."""
    with pytest.raises(UserError, match=r"try train.micro_batch=4"):
        largest_that_fits(out_of_memory(4, []), 8, on_any=pytest.fail, sharded=True)
    with pytest.raises(UserError, match="one clip at a time"):
        largest_that_fits(out_of_memory(0, []), 1, on_any=pytest.fail, sharded=True)
    assert largest_that_fits(out_of_memory(8, []), 8, on_any=pytest.fail, sharded=True) == 8


def test_a_signal_on_a_skipped_step_saves_too(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moved nothing, so what is saved is sound; and status 75 promises a checkpoint."""
    plain = BatchLoader.batch

    def step(self: BatchLoader, number: int) -> Samples:
        if number == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return bad(plain(self, number)) if number == 8 else plain(self, number)

    monkeypatch.setattr(BatchLoader, "batch", step)
    assert train(load_config(None, overrides(cache, tmp_path, "x"))) == PREEMPTED
    assert read_state(find_checkpoint(tmp_path / "x"))["counts"]["in_a_row"] == 1
    assert find_checkpoint(tmp_path / "x").name == "step_0000009"


def test_gradients_are_made_when_all_weights_have_left_their_former_memory(cache: Path, tmp_path: Path) -> None:
    """A step is built in 12 bytes a parameter: weights, EMA, and a copy of one of them or the gradients."""
    run, data = prepare(load_config(None, overrides(cache, tmp_path, "x")))
    model = build_model(run.config, data.meta, torch.device("cpu"))
    ema = copy.deepcopy(model).requires_grad_(False)
    former = [StorageWeakRef(weights.untyped_storage()) for weights in (*ema.parameters(), *weight_groups(model)[0])]
    free: list[bool] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            if function is torch.ops.aten.zeros_like.default:
                free.append(all(storage.expired() for storage in former))
            return function(*args, **(kwargs or {}))

    with Watch():
        TrainStep(run.config, model, ema, torch.device("cpu"))
    assert free[0]  # the first are the matrices' gradients
