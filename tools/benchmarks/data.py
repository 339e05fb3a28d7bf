"""Cached latents read, videos decoded while others are encoded, and decoding by backend."""

import argparse
import functools
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from videoscaling.data.clip_groups import ClipGroup, video_group
from videoscaling.data.latents import LatentCache
from videoscaling.data.shards import Shard, encode_shard
from videoscaling.data.sources.listing import list_sources
from videoscaling.data.video.clips import ClipOptions, Clips, Shape
from videoscaling.data.video.decode_workers import decoded
from videoscaling.models.text import load_text_encoder
from videoscaling.models.vae import VideoVAE, load_vae
from videoscaling.tools.benchmarks.common import Row, random_cache, spread, timed
from videoscaling.tools.benchmarks.decode import decode_rows
from videoscaling.training.planning.memory_formula import PREFETCH_SAMPLES, steps_together

VIDEOS, FRAMES, SIDE = 16, 16 * 17, 160  # of the overlap's: sixteen clips each
BATCH = 16
REPEATS = 20  # reads a round: one takes less time than the clock's and the system's whims


def bench_data(args: argparse.Namespace, device: torch.device) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        rows = [read_row(args, device, Path(folder), n_ctx) for n_ctx in ((args.n_ctx,) if args.n_ctx else (80, 1280))]
        if not args.n_ctx:
            rows.append(overlap_row(args, device, Path(folder)))
            ten_seconds = make_video(Path(folder) / "ten.mp4", 0, 240, 320)
            rows += decode_rows(args, device, Path(folder), ten_seconds)
    return rows


def read_row(args: argparse.Namespace, device: torch.device, folder: Path, n_ctx: int) -> Row:
    """Random clips from the page cache, as they are stored and as float32, as many at once as training reads."""
    cache = LatentCache(random_cache(folder / str(n_ctx), n_ctx, 1024))
    clips = args.clips or min(PREFETCH_SAMPLES, steps_together(cache.latent_shape, 1))
    index = torch.randperm(1024)[:clips]
    reads = {"stored": functools.partial(cache.stored, index), "float32": functools.partial(cache.train, index)}
    repeated = {name: functools.partial(repeat, read, REPEATS) for name, read in reads.items()}
    seconds = timed(repeated, args.rounds, device)
    begun = time.process_time()
    repeat(reads["stored"], 5 * REPEATS)
    processor = (time.process_time() - begun) / 5 / REPEATS
    text = 2 * cache.text_tokens * cache.text_dim
    stored = (2 * math.prod(cache.latent_shape) + text) * clips
    return {
        "what": "read",
        "n_ctx": n_ctx,
        "clips": clips,
        "milliseconds": spread(seconds["stored"], 1e3 / REPEATS),
        "milliseconds_float32": spread(seconds["float32"], 1e3 / REPEATS),
        "bytes_per_second": stored * REPEATS / statistics.median(seconds["stored"]),
        "bytes_per_processor_second": stored / processor,  # the rate of a machine without other work
        "bytes_per_second_float32": stored * REPEATS / statistics.median(seconds["float32"]),
    }


def repeat(call: Any, times: int) -> None:
    for _ in range(times):
        call()


def overlap_row(args: argparse.Namespace, device: torch.device, folder: Path) -> Row:
    """Clips a second while one process decodes and this one encodes on one thread, and of each alone."""
    (folder / "videos").mkdir()
    for number in range(VIDEOS):
        make_video(folder / "videos" / f"{number}.mp4", number)
    clip_options = ClipOptions(Shape(17, 32))
    units = [video_group(source, clip_options) for source in list_sources(folder / "videos")]
    vae, text = load_vae("embedded", device), load_text_encoder("embedded")
    loaded = [unit.load() for unit in units[1:]]
    clips = sum(len(part.keys) for part in loaded)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rounds: dict[str, list[float]] = {"decoding": [], "encoding": [], "both": []}
    try:
        for _ in range(args.rounds):
            rounds["decoding"].append(clips / decode_seconds(units))
            begun = time.perf_counter()
            encode(vae, text, units[1:], iter(loaded))
            rounds["encoding"].append(clips / (time.perf_counter() - begun))
            rounds["both"].append(clips / decode_seconds(units, vae, text))
    finally:
        torch.set_num_threads(threads)
    slower = [min(pair) for pair in zip(rounds["decoding"], rounds["encoding"])]
    return {
        "what": "overlap",
        "clips": clips,
        "video": f"{SIDE}x{SIDE} h264, {FRAMES} frames",
        "workers": 1,
        "clips_per_second": {name: spread(values) for name, values in rounds.items()},
        "of_the_slower_alone": spread([both / alone for both, alone in zip(rounds["both"], slower)]),
    }


def decode_seconds(units: list[ClipGroup], vae: VideoVAE | None = None, text: Any = None) -> float:
    """To decode all units but the first, which starts the worker, and encode them meanwhile where a VAE is given."""
    answers = decoded(units, 1)
    next(answers)
    begun = time.perf_counter()
    if vae is None:
        assert all(isinstance(answer, Clips) for answer in answers)
    else:
        encode(vae, text, units[1:], answers)
    return time.perf_counter() - begun


def encode(vae: VideoVAE, text: Any, units: list[ClipGroup], answers: Any) -> None:
    shape = vae.latent_shape(17, 32, 32)
    encode_shard(
        shard=Shard(Path("none"), units, ""),
        answers=answers,
        vae=vae,
        text=text,
        latent_shape=shape,
        batch=BATCH,
        progress=lambda done: None,
    )


def make_video(path: Path, seed: int, frames: int = FRAMES, side: int = SIDE) -> Path:
    """A video of noise that drifts over a gradient, which neither compresses away nor fills the disk."""
    noise = np.random.default_rng(seed).integers(0, 48, (side, side, 3), np.uint8)
    ground = np.linspace(0, 200, side).astype(np.uint8)[:, None, None]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = side, side, "yuv420p"
        for number in range(frames):
            picture = np.roll(noise, number, axis=1) + ground
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
