"""What a run reports while it runs: the console's line, TensorBoard's points."""

import json
import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.training.test_trainer import overrides, run
from videoscaling.data.latents import LatentCache
from videoscaling.diffusion.loss import denoising_loss
from videoscaling.diffusion.validation import T_BINS
from videoscaling.training.config import load_config
from videoscaling.training.logs import metrics
from videoscaling.training.logs.metrics import MetricsLog, duration, memory_peak
from videoscaling.training.run import resolve
from videoscaling.training.trainer import Trainer

CPU = torch.device("cpu")


class Clock:
    """A clock that stands still until it is set."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def step(log: MetricsLog, number: int, end: int = 100_000, skipped: int = 0) -> None:
    log.step(
        step=number,
        tokens=100 * number,
        flops=1e8 * number,
        loss=0.5,
        lr=1e-3,
        grad_norm=1.0,
        skipped=skipped,
        end=end,
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.034, "0.034 s"),
        (59, "59 s"),
        (119, "2 min"),
        (5999, "1 h 40 min"),
        (7500, "2 h 05 min"),
        (200_000, "2 d 8 h"),
        (math.inf, "unknown"),
    ],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_line_after_a_resume_counts_this_attempts_speed(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MetricsLog(tmp_path, 500, 50_000, CPU, 1)
    clock.now += 10
    step(log, 510)  # 1,000 tokens in 10 s; 49,000 are left
    log.close()
    line = capsys.readouterr().out
    assert line == "step 510  T 51,000  loss 0.5000  lr 1.00e-03  100 tokens/s  8 min left\n"
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["tokens_per_second"] == 100


def test_validation_and_sampling_are_not_trainings_time(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MetricsLog(tmp_path, 0, 0, CPU, 1)
    scores = dict.fromkeys(("val_loss", "val_se", "ema_val_loss", "ema_val_se"), 1.0)
    clock.now += 7
    step(log, 7)
    clock.now += 1000
    log.validation(700, scores, [1.0] * T_BINS)
    clock.now += 1000
    log.video("samples/0", torch.zeros(3, 2, 8, 8), 700, "a caption", 8)
    clock.now += 10
    step(log, 17)
    log.close()
    lines = capsys.readouterr().out.splitlines()
    assert all("100 tokens/s" in lines[number] for number in (0, 2))
    assert "(EMA)" in lines[1]
    speeds = [json.loads(line)["tokens_per_second"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert speeds == pytest.approx([100, 100])


def test_the_console_hears_seldom_and_sees_the_mean_speed_between(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MetricsLog(tmp_path, 0, 0, CPU, 1)
    for number, pause in enumerate((1, 1, 1, 5), 1):
        clock.now += pause
        step(log, number)
    log.close()
    assert "step 4  T 400  " in (out := capsys.readouterr().out)
    assert ("50 tokens/s" in out, out.count("\n")) == (True, 1)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_skipped_steps_and_mfu_are_shown_where_there_are_any(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "peak_flops", lambda device, dtype: 1e9)
    log = MetricsLog(tmp_path, 0, 0, CPU, 2)
    clock.now += 10
    step(log, 10, skipped=3)
    log.close()
    # 100 tokens/s of 1e6 FLOPs each, on two devices of 1e9 FLOP/s.
    assert "  100 tokens/s  MFU 5.0%  skipped 3  16 min left" in capsys.readouterr().out


@pytest.mark.parametrize(("dtype", "mfu"), [("float32", 0.5), ("bfloat16", 0.05)])
def test_mfu_is_of_the_peak_of_the_dtype_that_computes(
    dtype: str, mfu: float, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan counts its hours at the same peak, so that a measured MFU may be given to it."""
    monkeypatch.setattr(metrics, "peak_flops", lambda device, dtype: {"float32": 2e8, "bfloat16": 2e9}[dtype])
    log = MetricsLog(tmp_path, 0, 0, CPU, 1, dtype)
    clock.now += 10
    step(log, 10)
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["mfu"] == pytest.approx(mfu)


def test_of_runs_in_one_process_each_tells_its_own_speed_and_the_devices_mfu(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "peak_flops", lambda device, dtype: 1e9)
    log = MetricsLog(tmp_path, 0, 0, CPU, 1)
    clock.now += 10
    log.step(step=10, tokens=1000, flops=1e9, loss=0.5, lr=1e-3, grad_norm=1.0, skipped=0, end=100_000, share=0.25)
    log.close()
    # 100 tokens/s of 1e6 FLOPs each in a quarter of the device's time: four times that are done of its 1e9 FLOP/s.
    assert "  100 tokens/s  MFU 40.0%  16 min left" in capsys.readouterr().out
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["tokens_per_second"], line["share"], line["mfu"]) == (100, 0.25, pytest.approx(0.4))


def test_bins_of_t_are_the_samples_losses(cache: Path, tmp_path: Path) -> None:
    """However the batch is cut; and their mean over the samples is the mean loss."""
    found = {}
    for name, more in (("whole", ()), ("pieces", ("train.micro_batch=3",))):
        settings = [*overrides(cache, tmp_path, name, "train.batch_tokens=1024"), *more]
        data = LatentCache(cache)
        trainer = Trainer(resolve(load_config(None, settings), data.meta), data)
        samples = trainer.loader.batch(0)
        with torch.no_grad():
            losses = denoising_loss(trainer.model, trainer.process, *samples)
        trainer.train_step.run(samples, 0)
        sums, numbers = found[name] = trainer.train_step.by_t[:, :T_BINS].clone()
        for number in range(T_BINS):
            here = (samples.t >= number / T_BINS) & (samples.t < (number + 1) / T_BINS)
            assert numbers[number] == here.sum()
            torch.testing.assert_close(sums[number], losses[here].sum())
        assert sums.sum().item() / 32 == pytest.approx(trainer.train_step.loss_sum.item(), rel=1e-6)
        trainer.train_step.reset_window()
        assert not trainer.train_step.by_t.any()
    torch.testing.assert_close(found["whole"], found["pieces"])


def test_tensorboard_has_what_the_documentation_promises(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "x", "train.milestones=[640]", "train.batch_tokens=640", "log.every_steps=2")
    board = EventAccumulator(str(tmp_path / "x" / "tensorboard"))
    board.Reload()
    scalars = {tag: board.Scalars(tag) for tag in board.Tags()["scalars"]}
    names = ("loss", "lr", "grad_norm", "skipped", "tokens_per_second", "memory_GiB", "tokens", "flops")
    assert {f"train/{name}" for name in names} <= set(scalars)
    assert [point.step for point in scalars["train/loss"]] == [1280, 2560, 3840, 5120, 6400]  # tokens
    for folder in ("train_by_t", "validation_by_t"):
        tags = {tag for tag in scalars if tag.startswith(folder)}
        assert tags <= {f"{folder}/{n / 10:.1f}_to_{(n + 1) / 10:.1f}" for n in range(10)}
        assert len(tags) >= 8  # a window of 40 samples may leave an outer bin empty
    assert all(math.isfinite(point.value) for points in scalars.values() for point in points)
    assert [point.step for point in scalars["validation/ema_val_loss"]] == [640, 6400]
    assert scalars["train/memory_GiB"][-1].value * 2**30 == pytest.approx(memory_peak(CPU), rel=0.2)


def hparams_of(folder: Path) -> list[dict[str, float]]:
    """The settings in a folder's HParams row, as TensorBoard reads them."""
    events = EventAccumulator(str(folder)).Reload()
    content = events.PluginTagToContent("hparams")[SESSION_START_INFO_TAG]
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: value.number_value for name, value in values.items()}


def test_the_hparams_table_has_size_and_tokens_and_a_grown_runs_own(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "x", "train.milestones=[640]", "train.tokens=640")
    row = {"N": 16384.0, "layers": 1.0, "width": 32.0, "T": 640.0, "B": 128.0, "lr": 0.003, "seed": 0.0}
    assert hparams_of(tmp_path / "x" / "tensorboard") == pytest.approx(row)
    run(cache, tmp_path, "x", "train.milestones=[640,1280]", "train.tokens=1280")
    assert hparams_of(tmp_path / "x" / "tensorboard") == pytest.approx(row | {"T": 1280.0})
