"""Runs that are trained together are the runs they would be alone."""

import contextlib
import functools
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.test_trainer import losses, metrics, overrides, result
from videoscaling.training.batches import BatchLoader, Samples
from videoscaling.training.checkpoints.checkpoint import checkpoint_paths
from videoscaling.training.config import Config, load_config
from videoscaling.training.memory import find_micro_batch
from videoscaling.training.stacked.loop import train_stacked
from videoscaling.training.stacked.stack_key import row_bytes
from videoscaling.training.stacked.step import StackedStep
from videoscaling.training.train import prepare, train
from videoscaling.training.trainer import Trainer
from videoscaling.utils.errors import PREEMPTED

ROWS = 8


def own(row: int) -> list[str]:
    """What is a run's own in a stack, but its name.

    Rates up to 2.4e-3: there float32's last bits stay below 4e-7 of a loss over 50 steps, so that 1e-5 leaves room for
    other processors' kernels. At 8.5e-3 they grow tenfold in ten steps, on some processors past 1e-5.
    """
    return [
        f"seed={row}",
        "data.seed=5",
        f"optim.lr={5e-4 * 1.25**row}",
        f"optim.weight_decay={0.1 * (row % 2)}",
        f"optim.beta1={0.9 - 0.02 * row}",
        f"optim.beta2_half_life={2e4 * (1 + row)}",
        f"optim.clip={[1.0, 0.1][row % 2]}",
    ]


def configs(cache: Path, out: Path, *more: str, rows: int = ROWS) -> list[Config]:
    return [load_config(None, overrides(cache, out, str(row), *own(row), *more)) for row in range(rows)]


def same(ours: Path, theirs: Path, rtol: float = 1e-5) -> None:
    """Two run directories hold the same run: every logged step, every sample of validation, the result."""
    np.testing.assert_allclose(losses(ours).astype(float), losses(theirs).astype(float), rtol=rtol)
    for mine, yours in zip(metrics(ours), metrics(theirs)):
        rounded = (
            "loss",
            "grad_norm",
            "share",
            "noise_scale",
        )  # the last is not measured in stacks
        assert {k: v for k, v in mine.items() if k not in rounded} == {
            k: v for k, v in yours.items() if k not in rounded
        }
    scored = [sorted(p.name for p in (directory / "validation").glob("*")) for directory in (ours, theirs)]
    assert scored[0] == scored[1]
    for name in scored[0]:
        ours_all, theirs_all = (np.load(directory / "validation" / name) for directory in (ours, theirs))
        np.testing.assert_allclose(ours_all, theirs_all, rtol=10 * rtol)
    mine, yours = result(ours), result(theirs)
    assert mine.keys() == yours.keys()
    for key in mine.keys() - {"seconds", "git_revision", "milestones", "config", "crc32"}:
        assert mine[key] == yours[key], key
    for values in (mine["config"], yours["config"]):
        del values["out"]
    assert mine["config"] == yours["config"]
    assert len(mine["milestones"]) == len(yours["milestones"])
    for a, b in zip(mine["milestones"], yours["milestones"]):
        assert a.keys() - {"noise_scale"} == b.keys() - {"noise_scale"}  # which is not measured in stacks
        for key in a.keys() - {"losses_crc32", "noise_scale"}:  # of losses that may differ in their last bits
            # A standard error of 16 clips follows single samples, which follow single weights.
            assert a[key] == pytest.approx(b[key], rel=10 * rtol if key.endswith("_se") else rtol), key
    newest = [[p.name for p in checkpoint_paths(d / "checkpoints")[:1]] for d in (ours, theirs)]
    assert newest[0] == newest[1]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(("train.micro_batch=3",), marks=pytest.mark.slow),
        pytest.param(("optim.schedule=wsd", "train.dtype=bfloat16"), marks=pytest.mark.slow),
    ],
)
def test_each_of_eight_equals_the_run_alone(cache: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    more = ("train.milestones=[1280]", "checkpoint.every_steps=20", *more)
    assert train_stacked(configs(cache, tmp_path / "together", *more)) == 0
    coarse = "train.dtype=bfloat16" in more
    for row, config in enumerate(configs(cache, tmp_path / "alone", *more)):
        assert train(config) == 0
        # bfloat16 rounds to 4e-3 at every product, and kernels differ in which.
        same(tmp_path / "together" / str(row), tmp_path / "alone" / str(row), 2e-2 if coarse else 1e-5)
    ends = [result(tmp_path / "together" / str(row))["milestones"][-1]["ema_val_loss"] for row in range(ROWS)]
    assert len(set(ends)) == ROWS


@pytest.mark.parametrize("micro_batch", ["3", "null"])
def test_rows_may_see_samples_of_their_own(cache: Path, tmp_path: Path, micro_batch: str) -> None:
    """Repeats do. Twenty steps: what the last bits of float32 differ by has not grown to 1e-5 yet."""

    def several(out: str) -> list[Config]:
        more = (f"train.micro_batch={micro_batch}", "train.tokens=2560")
        return [
            load_config(None, overrides(cache, tmp_path / out, str(row), *own(row), *more, f"data.seed={5 + row % 2}"))
            for row in range(3)
        ]

    assert train_stacked(several("together")) == 0
    for row, config in enumerate(several("alone")):
        assert train(config) == 0
        same(tmp_path / "together" / str(row), tmp_path / "alone" / str(row))
    # Rows that share their samples wait for the same ones.
    logs = [(tmp_path / "together" / str(row) / "metrics.jsonl").read_text().splitlines() for row in range(3)]
    waited = [[json.loads(line)["data_seconds"] for line in log] for log in logs]
    assert waited[0] == waited[2] != waited[1]
    assert min(waited[0]) > 0


def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all rows be moved together, as under torch.compile, in a test's time."""
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_that_diverges_is_recorded_and_the_others_continue(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    uncompiled(monkeypatch)
    more = ("train.tokens=2560", "train.max_skipped=3", "train.milestones=[1280]", "checkpoint.every_steps=8")
    more = (*more, f"train.compile={compiled}")
    several = configs(cache, tmp_path / "together", *more, rows=4)
    several[1].optim.lr, several[1].optim.clip = 1e30, 1e30
    assert train_stacked(several) == 0
    alone = configs(cache, tmp_path / "alone", *more, rows=4)
    alone[1].optim.lr, alone[1].optim.clip = 1e30, 1e30
    for row in range(4):
        assert train(alone[row]) == 0
        same(tmp_path / "together" / str(row), tmp_path / "alone" / str(row))
    statuses = [result(tmp_path / "together" / str(row))["status"] for row in range(4)]
    assert statuses == ["done", "diverged", "done", "done"]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_each_has_its_own_schedule(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    uncompiled(monkeypatch)
    theirs = [
        ("optim.schedule=cosine", "optim.warmup_tokens=0", "optim.eps=1e-3"),
        ("optim.schedule=wsd", "optim.warmup_tokens=1280", "optim.decay_fraction=0.5"),
        ("optim.schedule=constant", "optim.warmup_tokens=3200", "optim.beta1=0.5"),
    ]
    for out in ("together", "alone"):
        several = [
            load_config(
                None, overrides(cache, tmp_path / out, str(row), *own(row), f"train.compile={compiled}", *keys)
            )
            for row, keys in enumerate(theirs)
        ]
        assert train_stacked(several) == 0 if out == "together" else not any(map(train, several))
    for row in range(3):
        same(tmp_path / "together" / str(row), tmp_path / "alone" / str(row))


def test_a_stack_continues_alone_and_a_run_alone_in_a_stack(cache: Path, tmp_path: Path) -> None:
    short = ("train.tokens=1280", "optim.warmup_tokens=256")
    whole = ("train.tokens=2560", "train.milestones=[1280]", "optim.warmup_tokens=256")
    assert train_stacked(configs(cache, tmp_path / "x", *short, rows=3)) == 0
    assert train(configs(cache, tmp_path / "x", *whole, rows=3)[2]) == 0  # one continues alone, the others together
    assert train_stacked(configs(cache, tmp_path / "x", *whole, rows=3)) == 0
    assert train_stacked(configs(cache, tmp_path / "unbroken", *whole, rows=3)) == 0
    for row in range(3):
        same(tmp_path / "x" / str(row), tmp_path / "unbroken" / str(row))
    before = [(tmp_path / "x" / str(row) / "result.json").stat().st_mtime_ns for row in range(3)]
    assert train_stacked(configs(cache, tmp_path / "x", *whole, rows=3)) == 0  # finished runs are left as they are
    assert [(tmp_path / "x" / str(row) / "result.json").stat().st_mtime_ns for row in range(3)] == before


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_runs_steps_apart_wait_for_one_another(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    """As a kill leaves them that comes while one after the other saves."""
    uncompiled(monkeypatch)
    whole = ("checkpoint.every_steps=10", "checkpoint.keep=9", f"train.compile={compiled}")
    several = configs(cache, tmp_path / "x", *whole, rows=3)
    assert train_stacked(several) == 0
    for row, steps in ((0, (50, 40)), (1, (50,))):
        (tmp_path / "x" / str(row) / "result.json").unlink()
        for step in steps:
            shutil.rmtree(tmp_path / "x" / str(row) / "checkpoints" / f"step_{step:07d}")
    (tmp_path / "x" / "2" / "result.json").unlink()
    assert train_stacked(several) == 0
    assert train_stacked(configs(cache, tmp_path / "unbroken", *whole, rows=3)) == 0
    for row in range(3):
        same(tmp_path / "x" / str(row), tmp_path / "unbroken" / str(row))


def test_a_signal_stops_all_members(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = BatchLoader.batch

    def step(self: BatchLoader, number: int) -> Samples:
        if number == 12:
            os.kill(os.getpid(), signal.SIGUSR2)
        return plain(self, number)

    several = configs(cache, tmp_path / "x", "train.tokens=2560", rows=3)
    with monkeypatch.context() as patch:
        patch.setattr(BatchLoader, "batch", step)
        assert train_stacked(several) == PREEMPTED
    assert {checkpoint_paths(c.run_dir / "checkpoints")[0].name for c in several} == {"step_0000013"}
    assert {result(c.run_dir)["status"] for c in several} == {"preempted"}
    assert train_stacked(several) == 0
    assert train_stacked(configs(cache, tmp_path / "unbroken", "train.tokens=2560", rows=3)) == 0
    for row in range(3):
        same(tmp_path / "x" / str(row), tmp_path / "unbroken" / str(row), 0)


def test_a_signal_amid_their_checkpoints_stops_all_at_one_step(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, saved = Trainer._save, []

    def save(self: Trainer, *arguments: object) -> None:
        plain(self, *arguments)
        saved.append(self)
        if len(saved) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    several = configs(cache, tmp_path, "checkpoint.every_steps=10", rows=3)
    monkeypatch.setattr(Trainer, "_save", save)
    assert train_stacked(several) == PREEMPTED
    assert {checkpoint_paths(c.run_dir / "checkpoints")[0].name for c in several} == {"step_0000011"}


def test_those_that_continue_share_the_time(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while rows of runs that have ended are not left behind, as under torch.compile."""
    monkeypatch.setattr(StackedStep, "should_shrink", lambda self, wanted: False)
    several = configs(cache, tmp_path, "train.max_skipped=3", rows=4)
    several[1].optim.lr, several[1].optim.clip = 1e30, 1e30
    assert train_stacked(several) == 0
    shares = [line["share"] for line in metrics(several[0].run_dir)]
    assert (shares[0], shares[-1]) == (1 / 4, 1 / 3)


def test_a_row_that_waits_keeps_no_losses(cache: Path, tmp_path: Path) -> None:
    stack = StackedStep([Trainer(*prepare(config)) for config in configs(cache, tmp_path, rows=2)])
    first, second = stack.trainers
    stack.run(first.next_batch(), first.tokens, [first])
    assert [trainer.train_step.finite_steps.item() for trainer in stack.trainers] == [1, 0]
    assert first.train_step.by_t.any()
    assert not second.train_step.by_t.any()


def test_a_row_takes_no_more_memory_than_its_estimate(cache: Path, tmp_path: Path) -> None:
    """Of activations, as autograd keeps them, and of parameters; and the estimate is no wild one."""
    stack = StackedStep([Trainer(*prepare(config)) for config in configs(cache, tmp_path, rows=3)])
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        memory = tensor.untyped_storage()
        kept[memory.data_ptr()] = memory.nbytes()
        alive.append(tensor)  # or its place would be another's
        return tensor

    alive: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        stack._losses(stack._weights, stack.trainers[0].next_batch())
    weights = {weight.untyped_storage().data_ptr() for weight in stack._weights.values()}
    activations = sum(size for place, size in kept.items() if place not in weights) / 3
    numbers = sum(buffers.weights.numel() for buffers in stack._buffers) / 3
    estimate = row_bytes(stack.trainers[0].run)
    assert 28 * numbers + activations < estimate < 3 * (28 * numbers + activations)


@contextlib.contextmanager
def no_row_by_row() -> Iterator[None]:
    """Refuse operations that torch.vmap can only do for one row after the other."""
    torch._C._functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_operation_is_one_for_all_rows(cache: Path, tmp_path: Path, dtype: str) -> None:
    with no_row_by_row():
        assert train_stacked(configs(cache, tmp_path, f"train.dtype={dtype}", "train.tokens=256", rows=2)) == 0
        with pytest.raises(RuntimeError, match="fallback"):  # as the CPU's kernel of attention would be
            torch.vmap(torch.nn.functional.scaled_dot_product_attention)(*torch.zeros(3, 2, 1, 1, 8, 32))


def test_rows_halve_what_the_memory_does_not_hold(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU, whose memory is tried before the first step."""
    stack = StackedStep([Trainer(*prepare(config)) for config in configs(cache, tmp_path, rows=3)])
    samples, plain = stack.trainers[0].next_batch(), StackedStep.backward

    def gradients(self: StackedStep, *arguments: object, **more: object) -> torch.Tensor:
        if self.micro_batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, *arguments, **more)

    monkeypatch.setattr(StackedStep, "backward", gradients)
    find_micro_batch(stack, samples, n_ctx=1, verbose=True)
    assert stack.micro_batch in (1, 2)
    assert "which changes no result" in capsys.readouterr().out
    assert not stack.by_t.any()


@pytest.mark.slow
def test_a_stack_that_shrinks_often_stays_compiled(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler gives up on what it has compiled so often."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", functools.partial(plain, backend="eager"))
    several = configs(cache, tmp_path, "train.compile=true", "train.max_skipped=2", rows=4)
    for config in several[2:]:
        config.optim.lr, config.optim.clip = 1e30, 1e30
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        torch._dynamo.reset()
        assert train_stacked(several) == 0
    assert [result(c.run_dir)["status"] for c in several] == ["done", "done", "diverged", "diverged"]


@pytest.mark.slow
def test_compiled_rows_equal_compiled_runs_also_after_some_have_ended(cache: Path, tmp_path: Path) -> None:
    more = ("train.compile=true", "train.max_skipped=2")
    several = configs(cache, tmp_path / "together", *more, rows=4)
    alone = configs(cache, tmp_path / "alone", *more, rows=4)
    for config in (*several[2:], *alone[2:]):
        config.optim.lr, config.optim.clip = 1e30, 1e30
    assert train_stacked(several) == 0
    for row, config in enumerate(alone):
        assert train(config) == 0
        same(tmp_path / "together" / str(row), tmp_path / "alone" / str(row))
