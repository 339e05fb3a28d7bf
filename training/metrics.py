"""What a run reports while it runs: metrics.jsonl for machines, TensorBoard and a console line for people."""

import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.export import gif_bytes
from training.log_files import Board, MetricsFile
from utils.devices import peak_of

SPEAK_SECONDS = 5


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """The device's dense peak in FLOP/s for ``dtype`` ("float32": without TF32), or None where it is not known."""
    return peak_of(torch.cuda.get_device_name(device), dtype) if device.type == "cuda" else None


def memory_peak(device: torch.device) -> int:
    """The most bytes so far: that tensors took of the GPU's memory, or on the CPU that this process held in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Not getrusage, which on Linux begins with what the process that started this one held.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def duration(seconds: float) -> str:
    """A time for people, in one or two units."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


class MetricsLog:
    """Appends to metrics.jsonl and tensorboard/ from ``step`` on; what a lost attempt wrote past it is cut off."""

    def __init__(
        self, run_dir: Path, step: int, tokens: int, device: torch.device, world: int, dtype: str = "float32"
    ) -> None:
        self._file = MetricsFile(run_dir / "metrics.jsonl", step)
        self._board = Board(str(run_dir / "tensorboard"), purge_step=step + 1)
        self._device, self._peak, self._world = device, peak_flops(device, dtype), world
        self._restart_clock(tokens)

    def step(
        self,
        step: int,
        tokens: int,
        flops_per_token: float,
        loss: float,
        lr: float,
        grad_norm: float,
        skipped: int,
        end: int,
        by_t: Sequence[float] = (),
        share: float = 1.0,
    ) -> None:
        """One logged step; the console hears of it every ``SPEAK_SECONDS`` at most.

        Args:
            tokens, end: seen so far, and at the run's end.
            flops_per_token: C_token, of which MFU is made: recomputation is not work. The peak is the run's dtype's.
            loss: mean training loss since the last logged step; NaN where every step was skipped, null in the file.
            grad_norm: before clipping, of this step.
            skipped: steps whose gradient was not finite, since the run began.
            by_t: mean training loss in equal bins of t since the last logged step; NaN where there was no sample.
            share: of the process's time that is this run's, where several are trained together. Tokens per second are
                how fast this run goes on; what the device does is that over the share, and MFU is the device's.
        """
        now = time.monotonic()
        speed = (tokens - self._last[0]) / (now - self._last[1])
        self._last = (tokens, now)
        mfu = None if self._peak is None else speed / share * flops_per_token / (self._peak * self._world)
        values = {
            "step": step,
            "tokens": tokens,
            "flops": tokens * flops_per_token,
            "loss": loss if math.isfinite(loss) else None,
            "lr": lr,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "skipped": skipped,
            "tokens_per_second": speed,
            "share": share,
            "mfu": mfu,
        }
        self._file.append(values)
        for name, value in (values | {"memory_GiB": memory_peak(self._device) / 2**30}).items():
            if name not in ("step", "share") and value is not None:
                self._board.add_scalar(f"train/{name}", value, step)
        self._bins("train_by_t", by_t, step)
        if now - self._spoken[1] >= SPEAK_SECONDS:
            print(self._line(values, (tokens - self._spoken[0]) / (now - self._spoken[1]), end), flush=True)
            self._spoken = (tokens, now)

    def _line(self, values: dict[str, Any], speed: float, end: int) -> str:
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

    def _bins(self, tag: str, losses: Sequence[float], step: int) -> None:
        """Losses in equal bins of t, each under the bin's two ends."""
        for number, loss in enumerate(losses):
            if math.isfinite(loss):
                ends = (number / len(losses), (number + 1) / len(losses))
                self._board.add_scalar(f"{tag}/{ends[0]:.1f}_to_{ends[1]:.1f}", loss, step)

    def _restart_clock(self, tokens: int) -> None:
        """What took time until now was not training: speeds are measured from here on."""
        self._last = self._spoken = (tokens, time.monotonic())

    def validation(self, step: int, tokens: int, scores: dict[str, float], bins: list[float]) -> None:
        """A milestone's losses with their standard errors, and the averaged weights' loss in equal bins of t.

        They are on disk afterwards, so that the caller can record the milestone as done.
        """
        for name, value in scores.items():
            self._board.add_scalar(f"validation/{name}", value, step)
        self._bins("validation_by_t", bins, step)
        self.flush()
        print(
            f"T {tokens:,}: validation loss {scores['ema_val_loss']:.5f} +- {scores['ema_val_se']:.5f} (EMA), "
            f"{scores['val_loss']:.5f} +- {scores['val_se']:.5f} (raw, on a quarter of the clips)",
            flush=True,
        )
        self._restart_clock(tokens)

    def hparams(self, step: int, settings: dict[str, Any], losses: dict[str, float]) -> None:
        """The run's row in TensorBoard's HParams table: validation's last ``losses``, by name, beside its settings."""
        named = {f"validation/{name}": value for name, value in losses.items()}
        self._board.add_hparams(settings, named, run_name=".", global_step=step)

    def video(self, name: str, clip: Tensor, step: int, caption: str, fps: int = 8) -> None:
        """A clip [3, frames, height, width] in [-1, 1] as an animated image under its caption."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(
            height=clip.shape[2], width=clip.shape[3], colorspace=3, encoded_image_string=gif_bytes(clip, fps)
        )
        # The prompt in the tag, since nothing else of an image's description is shown beside it; whole under Text.
        value = Summary.Value(tag=f"{name} {caption[:60]}", image=image)
        self._board.add_summary(Summary(value=[value]), step)
        self._board.add_text(name, caption, step)
        self._restart_clock(self._last[0])

    def flush(self) -> None:
        """Write TensorBoard's points to disk, which it does only every 120 s by itself."""
        self._board.flush()

    def close(self) -> None:
        self._file.close()
        self._board.close()
