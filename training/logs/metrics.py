"""Training metrics: metrics.jsonl, TensorBoard events and a console line."""

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videoscaling.data.export import gif_bytes
from videoscaling.training.logs.log_files import METRICS, Board, MetricsFile, MetricsRow
from videoscaling.training.logs.trackers import Tracker
from videoscaling.utils.devices import peak_of
from videoscaling.utils.progress import duration

CONSOLE_SECONDS = 5
HPARAM_METRICS = ("validation/ema_val_loss", "validation/val_loss", "train/tokens")


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """The device's dense peak in FLOP/s for ``dtype`` ("float32": without TF32), or None where it is not known."""
    return peak_of(torch.cuda.get_device_name(device), dtype) if device.type == "cuda" else None


def memory_peak(device: torch.device) -> int:
    """The most bytes so far: that tensors took of the GPU's memory, or on the CPU that this process held in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Not getrusage, which on Linux starts from the memory of the parent process.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class MetricsLog:
    """Appends to metrics.jsonl and TensorBoard's events from ``step`` on; cuts off later lines of a lost attempt.

    Args:
        step, tokens: of the checkpoint that the run continues from.
        validates: whether that step is to be validated (again): a run that was killed between its validation and the
            record of it has written the points of that step to TensorBoard already.
        board: the folder of TensorBoard's events, relative to ``run_dir``; None writes none.
        trackers: open ones, which get the same points.
    """

    def __init__(
        self,
        run_dir: Path,
        step: int,
        tokens: int,
        device: torch.device,
        world: int,
        dtype: str = "float32",
        *,
        validates: bool = False,
        board: str | None = "tensorboard",
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._file = MetricsFile(run_dir / METRICS, step)
        # TensorBoard's steps are tokens here: cells of different batches are compared at equal tokens.
        folder = None if board is None else run_dir / board
        self._trackers = trackers
        self._board = Board(folder, purge_step=tokens if validates else tokens + 1)
        if validates and (last := self._file.last) is not None and last["step"] == step:
            self._board.add_points(_points(last), tokens)  # purged with the validation's, but it is not logged again
        self._device, self._peak, self._world = device, peak_flops(device, dtype), world
        self._restart_clock(tokens)

    def step(
        self,
        *,
        step: int,
        tokens: int,
        flops: float,
        loss: float,
        lr: float,
        grad_norm: float,
        skipped: int,
        end: int,
        by_t: Sequence[float] = (),
        by_shape: Mapping[str, float] | None = None,
        share: float = 1.0,
        noise_scale: float | None = None,
        data_seconds: float = 0.0,
    ) -> None:
        """Log one step; on the console at most every ``CONSOLE_SECONDS``.

        Args:
            tokens, end: seen so far, and at the run's end.
            flops: C so far, from whose mean per token MFU is computed: recomputation does not count. The peak is the
                run's dtype's.
            loss: mean training loss since the last logged step; NaN where every step was skipped, null in the file.
            grad_norm: before clipping, of this step.
            skipped: steps whose gradient was not finite, since the run began.
            by_t: mean training loss in equal bins of t since the last logged step; NaN where there was no sample.
            by_shape: of clips of several shapes each one's mean training loss since the last logged step.
            share: this run's share of the process's time, below 1 for stacked runs. Tokens per second are this run's;
                over the share they are the device's, from which MFU is computed.
            noise_scale: of the gradient, in tokens; None where steps have one micro-batch.
            data_seconds: that this process waited for its samples since the last logged step.
        """
        now = time.monotonic()
        speed = (tokens - self._last[0]) / (now - self._last[1])
        self._last = (tokens, now)
        mfu = None if self._peak is None else speed / share * flops / tokens / (self._peak * self._world)
        values: MetricsRow = {
            "step": step,
            "tokens": tokens,
            "flops": flops,
            "loss": loss if math.isfinite(loss) else None,
            "lr": lr,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "skipped": skipped,
            "noise_scale": noise_scale,
            "tokens_per_second": speed,
            "data_seconds": data_seconds,
            "share": share,
            "mfu": mfu,
        }
        self._file.append(values | ({"loss_by_shape": dict(by_shape)} if by_shape else {}))
        points = _points(values | {"memory_GiB": memory_peak(self._device) / 2**30})
        points |= {f"train_{shape}/loss": mean for shape, mean in (by_shape or {}).items()}
        self._add_points(points | _bins("train_by_t", by_t), tokens)
        if now - self._printed_at[1] >= CONSOLE_SECONDS:
            print(self._line(values, (tokens - self._printed_at[0]) / (now - self._printed_at[1]), end), flush=True)
            self._printed_at = (tokens, now)

    def _add_points(self, values: Mapping[str, float], tokens: int) -> None:
        for log in (self._board, *self._trackers):
            log.add_points(values, tokens)

    def _line(self, values: MetricsRow, speed: float, end: int) -> str:
        """A logged step for the console, at the ``speed`` in tokens per second since the line before."""
        parts = [
            f"step {values['step']:,}",
            f"T {values['tokens']:,}",
            "no finite loss" if values["loss"] is None else f"loss {values['loss']:.4f}",
            f"lr {values['lr']:.2e}",
            f"{speed:,.0f} tokens/s",
        ]
        if self._peak is not None:
            done = speed / values["share"] * values["flops"] / values["tokens"]
            parts.append(f"MFU {done / (self._peak * self._world):.1%}")
        if values["skipped"]:
            parts.append(f"skipped {values['skipped']:,}")
        return "  ".join([*parts, f"{duration(max(end - values['tokens'], 0) / speed)} left"])

    def _restart_clock(self, tokens: int) -> None:
        """Restart the clock, so that speeds leave out the time of other work until now."""
        self._last = self._printed_at = (tokens, time.monotonic())

    def validation(self, tokens: int, scores: dict[str, Any], bins: list[float]) -> None:
        """A milestone's losses with their standard errors, and the averaged weights' loss in equal bins of t.

        They are on disk afterwards, so that the caller can record the milestone as done.

        Args:
            scores: as ``training.validation.milestone_scores`` returns them.
        """
        by_shape = scores.get("by_shape", {})
        points = {f"validation/{name}": value for name, value in scores.items() if name != "by_shape"}
        for shape, own in by_shape.items():
            points |= {f"validation_{shape}/{name}": value for name, value in own.items()}
        self._add_points(points | _bins("validation_by_t", bins), tokens)
        self.flush()
        for clips, own in (("", scores), *((f" of {shape}", own) for shape, own in by_shape.items())):
            print(
                f"T {tokens:,}: validation loss{clips} {own['ema_val_loss']:.5f} +- {own['ema_val_se']:.5f} (EMA), "
                f"{own['val_loss']:.5f} +- {own['val_se']:.5f} (raw, on a quarter of the clips)",
                flush=True,
            )
        self._restart_clock(tokens)

    def hparams(self, settings: Mapping[str, object]) -> None:
        """Write the run's row in TensorBoard's HParams table: ``settings``, and the last ``HPARAM_METRICS``."""
        self._board.write_hparams(settings, HPARAM_METRICS)

    def video(self, name: str, clip: Tensor, tokens: int, caption: str, fps: float) -> None:
        """A clip [3, frames, height, width] in [-1, 1] as an animated image of ``fps`` frames a second, under its
        caption."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(
            height=clip.shape[2], width=clip.shape[3], colorspace=3, encoded_image_string=gif_bytes(clip, fps)
        )
        # The prompt in the tag, because TensorBoard shows no other description of an image; in full under Text.
        value = Summary.Value(tag=f"{name} {caption[:60]}", image=image)
        self._board.add_summary(Summary(value=[value]), tokens)
        self._board.add_text(name, caption, tokens)
        self._restart_clock(self._last[0])

    def flush(self) -> None:
        """Write TensorBoard's points to disk, which it does only every 120 s by itself."""
        self._board.flush()

    def close(self) -> None:
        self._file.close()
        for log in (self._board, *self._trackers):
            log.close()


def _points(values: Mapping[str, object]) -> dict[str, float]:
    """A logged step's points in TensorBoard."""
    return {
        f"train/{name}": value
        for name, value in values.items()
        if name not in ("step", "share") and isinstance(value, int | float)
    }


def _bins(tag: str, losses: Sequence[float]) -> dict[str, float]:
    """Losses in equal bins of t, each under the bin's two ends."""
    width = 1 / max(len(losses), 1)
    return {
        f"{tag}/{number * width:.1f}_to_{(number + 1) * width:.1f}": loss
        for number, loss in enumerate(losses)
        if math.isfinite(loss)
    }
