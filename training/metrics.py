"""What a run reports while it runs: metrics.jsonl for machines, TensorBoard and a console line for people."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.export import gif_bytes
from utils.devices import peak_of
from utils.files import write_text


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bfloat16 peak in FLOP/s, or None where it is not known."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


class MetricsLog:
    """Appends to metrics.jsonl and tensorboard/ from ``step`` on; what a lost attempt wrote past it is cut off."""

    def __init__(self, run_dir: Path, step: int, tokens: int, device: torch.device, world: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second to import, and only the main process writes

        self._path = run_dir / "metrics.jsonl"
        if self._path.exists():
            lines = self._path.read_text().splitlines(keepends=True)
            # A line cut short by a kill has no newline, and lies after the checkpoint.
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_text(self._path, "".join(kept))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)
        self._peak, self._world = peak_flops(device), world
        self._last = (tokens, time.monotonic())
        self._spoken = self._last[1]

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
    ) -> None:
        """One logged step; the console hears of it at most every five seconds.

        Args:
            tokens, end: seen so far, and at the run's end.
            flops_per_token: C_token, of which MFU is made: recomputation is not work.
            loss: mean training loss since the last logged step. grad_norm: before clipping, of this step.
            skipped: steps whose gradient was not finite, since the run began.
        """
        now = time.monotonic()
        speed = (tokens - self._last[0]) / (now - self._last[1])
        self._last = (tokens, now)
        mfu = None if self._peak is None else speed * flops_per_token / (self._peak * self._world)
        values = {
            "step": step,
            "tokens": tokens,
            "flops": tokens * flops_per_token,
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "skipped": skipped,
            "tokens_per_second": speed,
            "mfu": mfu,
        }
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        for name, value in values.items():
            if name != "step" and value is not None:
                self._board.add_scalar(f"train/{name}", value, step)
        if now - self._spoken >= 5:
            self._spoken = now
            share = "" if mfu is None else f"  MFU {mfu:.1%}"
            print(
                f"step {step:,}  T {tokens:,}  loss {loss:.4f}  lr {lr:.2e}  {speed:,.0f} tokens/s{share}  "
                f"{max(end - tokens, 0) / speed / 60:.1f} min left",
                flush=True,
            )

    def validation(self, step: int, tokens: int, scores: dict[str, float], bins: list[float]) -> None:
        """A milestone's losses with their standard errors, and the averaged weights' loss in equal bins of t."""
        for name, value in scores.items():
            self._board.add_scalar(f"validation/{name}", value, step)
        for number, value in enumerate(bins):
            self._board.add_scalar(f"validation_by_t/from_{number / len(bins):.1f}", value, step)
        print(
            f"T {tokens:,}: validation loss {scores['ema_val_loss']:.5f} +- {scores['ema_val_se']:.5f} (EMA), "
            f"{scores['val_loss']:.5f} +- {scores['val_se']:.5f} (raw)",
            flush=True,
        )
        # Validating took time that is not training's.
        self._last = (tokens, time.monotonic())

    def hparams(self, settings: dict[str, Any], losses: dict[str, float]) -> None:
        """The run's row in TensorBoard's HParams table."""
        self._board.add_hparams(settings, losses, run_name=".")

    def video(self, name: str, clip: Tensor, step: int, caption: str, fps: int = 8) -> None:
        """A clip [3, frames, height, width] in [-1, 1] as an animated image, its caption beside it."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(
            height=clip.shape[2], width=clip.shape[3], colorspace=3, encoded_image_string=gif_bytes(clip, fps)
        )
        self._board.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        self._board.add_text(name, caption, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()
