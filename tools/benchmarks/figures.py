"""The figures of a machine, the most useful first: training steps by size, clip and layout, stacks, sampling.

Each figure is a process of its own, so that it has the whole memory, and is on disk as soon as it is known. A step is
that of a real trainer's dry run, on text of T5's size. Its account is set beside it: the seconds that its FLOPs and
bytes would take at this machine's own rates.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from videoscaling import IMPORT_PATH
from videoscaling.tools.benchmarks.common import RandomText, Row, random_cache
from videoscaling.tools.benchmarks.shapes import CLIPS
from videoscaling.training.planning.step_account import StepAccount
from videoscaling.utils.files import parse_json

BATCH_TOKENS = 1 << 17  # of a step on a GPU
SIZES = {"0.1B": "12x768", "1B": "16x2048", "4B": "27x3072"}
Launch = Callable[[list[str], float], tuple[int | None, str, str]]
CUT = "the time was up"


class Rates(NamedTuple):
    """The machine's own rates, by this benchmark's part rates."""

    dtype: str

    @property
    def text(self) -> str:
        """The figure's name."""
        return f"rates {self.dtype}"

    def command(self, cache: Path) -> list[str]:
        """A command of the part rates."""
        return ["videoscaling.tools.benchmark", "rates", "--json", "--rounds", "3", "--dtype", self.dtype]


class Step(NamedTuple):
    """A training step to measure: size, tokens and number of clips, and keys of ``train.py``."""

    size: str
    n_ctx: int
    clips: int
    keys: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The figure's name."""
        return " ".join(
            ["step", SIZES.get(self.size, self.size), f"n_ctx={self.n_ctx} clips={self.clips}", *self.keys]
        )

    def command(self, cache: Path) -> list[str]:
        """A dry run of a trainer of such steps."""
        batch = self.n_ctx * self.clips
        patch = str(list(CLIPS[self.n_ctx][1])).replace(" ", "")
        keys = [f"model.size={SIZES.get(self.size, self.size)}", f"model.patch={patch}", f"data.cache={cache}"]
        keys += [f"train.batch_tokens={batch}", f"train.tokens={batch * 10**6}", f"out={cache.parent / 'runs'}"]
        keys += ["validation.clips=2", "validation.timesteps=1"]
        return ["videoscaling.train", "--dry-run", "--json", *keys, *self.keys]


class Stack(NamedTuple):
    """Runs trained together, measured by this benchmark's part stack."""

    runs: int
    size: str
    clips: int
    n_ctx: int = 64

    @property
    def text(self) -> str:
        """The figure's name."""
        return f"stack of {self.runs} {self.size} n_ctx={self.n_ctx} clips={self.clips}"

    def command(self, cache: Path) -> list[str]:
        """A command of the part stack."""
        options = {"--stack": self.runs, "--size": self.size, "--clips": self.clips, "--n-ctx": self.n_ctx}
        words = [str(word) for option in options.items() for word in option]
        return ["videoscaling.tools.benchmark", "stack", "--json", "--rounds", "3", *words]


class Sampling(NamedTuple):
    """Videos to sample, measured by this benchmark's part sample."""

    size: str
    n_ctx: int

    @property
    def text(self) -> str:
        """The figure's name."""
        return f"sampling {SIZES.get(self.size, self.size)} n_ctx={self.n_ctx}"

    def command(self, cache: Path) -> list[str]:
        """A command of the part sample, of one video."""
        options = {"--size": SIZES.get(self.size, self.size), "--n-ctx": self.n_ctx, "--clips": 1}
        words = [str(word) for option in options.items() for word in option]
        return ["videoscaling.tools.benchmark", "sample", "--json", "--dtype", "bfloat16", "--rounds", "3", *words]


Figure = Rates | Step | Stack | Sampling


def figures(device: str) -> list[Figure]:
    """All figures of a "cuda" or "cpu" machine, the most useful first."""
    if device == "cpu":
        eager = [Step(size, n_ctx, 2) for n_ctx in (80, 1280) for size in ("2x64", "4x128")]
        stacks = [Stack(runs, "2x64", 2) for runs in (8, 64)]
        others = [Step("2x64", 1280, 2, (f"model.attention={name}",)) for name in ("plain", "sdpa")]
        others += [Step("4x128", 1280, 2, (f"train.activation_checkpointing={how}",)) for how in ("true", "selective")]
        return [Rates("float32"), *eager, stacks[0], *others, Step("2x64", 80, 2, ("train.compile=true",)), stacks[1]]
    compiled = ("train.dtype=bfloat16", "train.compile=true")
    selective = (*compiled, "train.activation_checkpointing=selective")

    def step(size: str, n_ctx: int, keys: tuple[str, ...] = compiled) -> Step:
        return Step(size, n_ctx, max(BATCH_TOKENS // n_ctx, 1), keys)

    first = [step("1B", 1280), step("0.1B", 1280), step("1B", 32760, selective), step("1B", 8192, selective)]
    first += [Stack(8, "2x64", 2), step("4B", 1280, selective), Stack(64, "2x64", 2)]
    first += [Sampling("1B", 1280), Sampling("1B", 32760)]
    modes = [step("1B", 1280, selective), step("1B", 1280, (*compiled, "train.activation_checkpointing=true"))]
    modes += [step("1B", 1280, ("train.dtype=bfloat16",)), step("1B", 1280, (*compiled, "model.attention=xformers"))]
    rest = [step("0.1B", 8192), step("4B", 8192, selective), step("0.1B", 32760, selective)]
    rest += [step("4B", 32760, selective), step("1B", 8192)]
    stacks = [Stack(runs, size, 8, 80) for size in ("4x128", "6x192", "8x256") for runs in (8, 32)]
    return [Rates("bfloat16"), *first, *modes, *rest, *stacks]


def measure(minutes: float, out: Path, device: str, folder: Path, launch: Launch | None = None) -> list[str]:
    """Measure what fits into ``minutes``; each figure is a line of ``out`` as soon as it is known, and is printed.

    Args:
        folder: for caches of random clips.
        launch: runs a module with its arguments, (arguments, seconds) -> (status or None where it was cut, stdout,
            stderr).

    Returns:
        The names of the figures that were not measured.
    """
    end, launch = time.monotonic() + 60 * minutes, launch or run_module
    left, rates = figures(device), None
    while left and (seconds := end - time.monotonic()) > 0:
        figure = left[0]
        row = _row(figure.text, *launch(figure.command(_cache(folder, figure)), seconds))
        if row.get("failed") == CUT:
            break
        if isinstance(figure, Rates):
            rates = row
        elif isinstance(figure, Step) and "failed" not in {**row, **rates}:
            row = _with_account(row, rates)
        left.pop(0)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(described(row), flush=True)
    return [figure.text for figure in left]


def run_module(words: list[str], seconds: float) -> tuple[int | None, str, str]:
    """A module's status, stdout and stderr; after ``seconds`` it is killed with all that it started: None."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    paths = os.pathsep.join([str(IMPORT_PATH), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths}
    process = subprocess.Popen([sys.executable, "-m", *words], env=environment, start_new_session=True, **pipes)
    try:
        out, err = process.communicate(timeout=seconds)
        return process.returncode, out, err
    except subprocess.TimeoutExpired:
        return None, "", ""
    finally:  # Ctrl-C, too
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _cache(folder: Path, figure: Figure) -> Path:
    """A cache of a step's clips, with few captions of T5's size, 4 MB each; made once."""
    if not isinstance(figure, Step):
        return folder
    path = folder / str(figure.n_ctx)
    return path if path.exists() else random_cache(path, figure.n_ctx, 64, text=RandomText(), captions=4)


def _row(name: str, status: int | None, out: str, err: str) -> Row:
    """A figure by its name, or why there is none."""
    if status != 0:
        lines = err.strip().splitlines() or [f"status {status}"]
        return {"figure": name, "failed": CUT if status is None else lines[-1]}
    found = parse_json(out[out.index("{") :], name, dict)
    return {"figure": name, **(found["rows"][0] if "rows" in found else _step_row(found))}


def _step_row(report: Row) -> Row:
    """What a dry run measured."""
    spent = report["time"]
    keys = ("seconds_per_step", "data_seconds_per_step", "tokens_per_second", "mfu", "micro_batch", "account")
    memory = {"memory_bytes": report["memory"]["measured"], "memory_by_formula": report["memory"]["total"]}
    return {"N": report["N"], **{key: spent[key] for key in keys}, **memory}


def _with_account(row: Row, rates: Row) -> Row:
    """The row with the seconds of each part of its account, and the part that limits the step."""
    given = (rates[name]["value"] for name in ("flops_per_second", "bytes_per_second"))
    seconds = StepAccount(**row["account"]).seconds(*given)
    return row | {"account_seconds": seconds, "limit": max(seconds, key=seconds.get)}


def described(row: Row) -> str:
    """A figure as a line."""
    if "failed" in row:
        return f"{row['figure']}: failed ({row['failed']})"
    if "times_as_fast" in row:
        gains = ", ".join(f"{how} {gain['value']:.3g}" for how, gain in row["times_as_fast"].items())
        return f"{row['figure']}: times as fast as one by one: {gains}"
    if "vae_percent" in row:
        shares = ", ".join(f"{part} {row[f'{part}_percent']['value']:.1f}%" for part in ("model", "guidance", "vae"))
        return f"{row['figure']}: {row['milliseconds_per_video']['value'] / 1e3:.4g} s a video; {shares}"
    if "seconds_per_step" not in row:
        flops, moved = (row[name]["value"] for name in ("flops_per_second", "bytes_per_second"))
        return f"{row['figure']}: {flops:.3g} FLOP/s, {moved:.3g} bytes/s"
    measured = row["seconds_per_step"]
    text = f"{row['figure']}: {measured:.4g} s, {row['tokens_per_second']:,.0f} tokens/s"
    if row["mfu"] is not None:
        text += f", MFU {row['mfu']:.1%}"
    if "account_seconds" in row:
        parts = row["account_seconds"]
        shares = ", ".join(f"{name} {seconds / measured:.0%}" for name, seconds in parts.items())
        text += f"; account: {shares}, rest {1 - sum(parts.values()) / measured:.0%}; largest: {row['limit']}"
    return text
