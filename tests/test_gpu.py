"""What only a CUDA device can show. Run with `pytest -m gpu`; skipped where there is none."""

import math
from pathlib import Path

import pytest
import torch

from tests.models.test_dit import build, inputs, trained
from tests.training.stacked.test_loop import configs, no_row_by_row
from tests.training.test_trainer import overrides, result
from videoscaling.models.attention import attention, choose_backend
from videoscaling.training.checkpoints.writer import CheckpointWriter
from videoscaling.training.config import load_config
from videoscaling.training.memory import find_micro_batch
from videoscaling.training.stacked.loop import train_stacked
from videoscaling.training.stacked.step import StackedStep
from videoscaling.training.train import prepare, train
from videoscaling.training.trainer import Trainer
from videoscaling.utils.errors import UserError
from videoscaling.utils.random import normal, uniform

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_random_numbers_are_the_cpus() -> None:
    index = torch.arange(1000)
    assert torch.equal(uniform(0, "t", index, 7), uniform(0, "t", index.cuda(), 7).cpu())
    cpu, gpu = normal(0, "noise", index, (4, 9)), normal(0, "noise", index.cuda(), (4, 9)).cpu()
    # Computed in float64: a last bit that differs there survives the rounding to float32 about once in 1e8.
    assert (cpu != gpu).float().mean() < 1e-4
    torch.testing.assert_close(cpu, gpu, rtol=1e-6, atol=1e-7)


def test_a_checkpoints_copy_is_pinned_and_of_its_moment() -> None:
    weight, writer = torch.ones(3, device="cuda"), CheckpointWriter()
    copies = [writer.copy({"model": {"w": weight}}, True)["model"]["w"] for _ in range(2)]
    weight += 1
    assert copies[0] is copies[1]
    assert copies[0].is_pinned()
    assert copies[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_model_agrees_with_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    cpu = trained(build())(*inputs())
    gpu = trained(build(dtype=dtype)).cuda()(*(value.cuda() for value in inputs())).cpu()
    assert (gpu - cpu).norm() / cpu.norm() < tolerance  # TF32 is off by default; bfloat16 has 8 bits


def test_xformers_agrees_with_sdpa_where_its_kernels_run() -> None:
    try:
        choose_backend("xformers", "cuda", torch.bfloat16)
    except UserError as reason:
        pytest.skip(str(reason))
    q, k, v = torch.randn(3, 2, 40, 4, 64, device="cuda", dtype=torch.bfloat16)
    mask = torch.arange(40, device="cuda") < torch.tensor([40, 13], device="cuda")[:, None]
    for chosen in (None, mask):
        ours, theirs = (attention(q, k, v, chosen, backend) for backend in ("sdpa", "xformers"))
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_training_resumes_and_nears_float32(cache: Path, tmp_path: Path, compiled: bool) -> None:
    losses = {}
    for name, dtype in (("full", "float32"), ("half", "bfloat16")):
        settings = overrides(cache, tmp_path, name, f"train.dtype={dtype}", f"train.compile={compiled}")
        for tokens in (3200, 6400):  # ended and grown: the second run resumes from the first's checkpoint
            assert train(load_config(None, [*settings, f"train.tokens={tokens}"])) == 0
        losses[name] = result(tmp_path / name)["milestones"][-1]["ema_val_loss"]
    assert math.isfinite(losses["half"])
    assert losses["half"] == pytest.approx(losses["full"], rel=0.01)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_never_waits_for_the_device(cache: Path, tmp_path: Path, compiled: bool) -> None:
    settings = overrides(cache, tmp_path, "x", "train.dtype=bfloat16", f"train.compile={compiled}")
    trainer = Trainer(*prepare(load_config(None, settings)))
    for step in range(8):
        samples = trainer.loader.batch(step)
        if step == 4:  # everything has been allocated and compiled by now
            torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.train_step.run(samples, step * 128)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert trainer.train_step.skipped_steps.item() == 0


def test_the_micro_batch_is_what_the_memory_holds(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = overrides(cache, tmp_path, "x", "model.size=8x512", "train.batch_tokens=2048", "train.tokens=4096")
    trainer = Trainer(*prepare(load_config(None, settings)))
    wanted = trainer.train_step.backward(trainer.loader.batch(0)).item()
    trainer.train_step.zero_grad()
    torch.cuda.empty_cache()
    held, whole = torch.cuda.memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((held + (256 << 20)) / whole)
        trainer.find_micro_batch()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert trainer.train_step.micro_batch < 64
    assert "which changes no result" in capsys.readouterr().out
    assert trainer.train_step.backward(trainer.loader.batch(0)).item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_runs_together_are_the_runs_alone(cache: Path, tmp_path: Path, compiled: bool) -> None:
    more = (f"train.compile={compiled}",)
    together, alone = (configs(cache, tmp_path / out, *more, rows=4) for out in ("together", "alone"))
    together[3].data.seed = alone[3].data.seed = 6  # its samples are its own
    with no_row_by_row():
        assert train_stacked(together) == 0
    for row, config in enumerate(alone):
        assert train(config) == 0
        theirs = result(tmp_path / "alone" / str(row))["milestones"][-1]["ema_val_loss"]
        assert result(tmp_path / "together" / str(row))["milestones"][-1]["ema_val_loss"] == pytest.approx(
            theirs, 1e-4
        )


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_of_runs_together_never_waits_for_the_device(cache: Path, tmp_path: Path, compiled: bool) -> None:
    several = configs(cache, tmp_path, "train.dtype=bfloat16", f"train.compile={compiled}", rows=4)
    several[3].data.seed = 6  # rows with samples of their own
    stack = StackedStep([Trainer(*prepare(config)) for config in several])
    for step in range(8):
        samples = stack.samples(step)
        if step == 4:  # everything has been allocated and compiled by now
            torch.cuda.set_sync_debug_mode("error")
        try:
            stack.run(samples, step * 128, stack.trainers)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not stack.skipped_steps.any()


def test_the_micro_batch_of_runs_together_is_what_the_memory_holds(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("model.size=4x256", "train.batch_tokens=2048", "train.tokens=4096")
    stack = StackedStep([Trainer(*prepare(config)) for config in configs(cache, tmp_path, *more, rows=4)])
    samples = stack.trainers[0].loader.batch(0)
    wanted = stack.backward(samples).tolist()
    torch.cuda.empty_cache()
    held, whole = torch.cuda.memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((held + (256 << 20)) / whole)
        find_micro_batch(stack, samples, n_ctx=1, verbose=True)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert stack.micro_batch < 64
    assert "which changes no result" in capsys.readouterr().out
    assert stack.backward(samples).tolist() == pytest.approx(wanted, rel=1e-4)
