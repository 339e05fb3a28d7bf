"""Dry run and verification of a cache: its size and time before it is made, and its integrity afterwards."""

import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from videoscaling.data.clip_groups import ClipGroup
from videoscaling.data.rejections import reason_counts
from videoscaling.data.shards import Shard, map_arrays, read_header
from videoscaling.data.sources.source import Rejected
from videoscaling.data.splits import SAMPLE, VideoScan
from videoscaling.data.video.clips import Clips, to_float
from videoscaling.data.video.decode_workers import decoded
from videoscaling.data.writer import Load
from videoscaling.utils.errors import UserError, plural

OPENED = 10_000  # videos that a dry run opens at most
CAPTIONS_AT_ONCE = 4096  # split into tokens
PROBE_SECONDS = 10.0  # that it decodes and encodes, to see how long that takes
# Root mean square of the difference over that of the latents, by the autoencoder's dtype. Measured on the
# embedded one: other batches and threads 2e-4, which is float16's; bfloat16 against float32 7e-3; the same clip begun
# one frame later 8e-3 at the very least, where hardly anything moves.
TOLERANCE = {"float32": 5e-3, "bfloat16": 2e-2}


def estimate(
    scan: VideoScan,
    units: dict[str, list[ClipGroup]],
    vae: Any,
    latent_shape: Sequence[int],
    load: Load,
    processes: int,
    frames: int,
) -> dict[str, Any]:
    """Estimate the content, size and time of a cache of these videos; nothing is written.

    Args:
        scan: of the videos; those of the first ``OPENED`` are opened.
        units: the clip groups drawn from them.
        load, processes: how the job would run.
        frames: of a clip.

    Returns:
        videos; opened (all, or a random part, by whose mean the rest is judged); kept; rejected (by reason, of those
        opened); train and validation (clips); tokens (latent positions); hours (of the clips); bytes (of latents);
        processes; seconds, on as many processes such as this one; and decode and encode: seconds a clip of either,
        alone.

    Raises:
        UserError: no clip can be decoded.
    """
    scan.open(OPENED)
    clips = {split: round(sum(_clips_of(unit, scan) for unit in part)) for split, part in units.items()}
    decode, encode = _speed([unit for part in units.values() for unit in part], vae, load)
    each = max(decode / load.workers, encode) if load.workers else decode + encode
    total, positions = sum(clips.values()), math.prod(latent_shape[1:])
    return {
        "videos": len(scan.order),
        "opened": scan.opened,
        "kept": round(len(scan.found) * len(scan.order) / scan.opened),
        "rejected": dict(Counter(row["reason"] for row in scan.rejected).most_common()),
        **clips,
        "tokens": total * positions,
        "hours": total * frames / scan.fps / 3600 if scan.fps else None,
        "bytes": 2 * total * positions * latent_shape[0],
        "processes": processes,
        "seconds": total * each / processes,
        "decode": decode,
        "encode": encode,
    }


def caption_counts(scan: VideoScan, units: dict[str, list[ClipGroup]], text: Any) -> dict[str, int]:
    """About how many clips have no caption ("missing"), and how many one that the text encoder ``text`` cuts
    ("cut")."""
    captions = {source.name: source.caption for source in scan.order}
    clips: Counter[str] = Counter()
    for unit in (unit for part in units.values() for unit in part):
        clips[captions[unit.source]] += _clips_of(unit, scan)
    unique, cut = list(clips), 0.0
    for first in range(0, len(unique), CAPTIONS_AT_ONCE):
        part = unique[first : first + CAPTIONS_AT_ONCE]
        cut += sum(clips[c] for c, n in zip(part, text.count_tokens(part)) if n > text.max_tokens)
    return {"missing": round(clips[""]), "cut": round(cut)}


def _clips_of(unit: ClipGroup, scan: VideoScan) -> float:
    """How many clips a video gives: known, or expected."""
    if unit.keys:
        return len(unit.keys)
    found = scan.look_up(unit.source)
    return scan.clips_per_video if found is None else len(found)


def _speed(units: list[ClipGroup], vae: Any, load: Load) -> tuple[float, float]:
    """Seconds to decode a clip and to encode one, each measured alone on a random part of the units.

    Raises:
        UserError: no clip can be decoded.
    """
    clips, pixels = 0, []
    drawn, rejected = random.Random(0).sample(units, len(units)), []
    # One worker where the job has any: a video that hangs or crashes its decoder is to cost no more here than there.
    # The first video is for its start.
    answers = decoded([*drawn[:1], *drawn], min(load.workers, 1), load.limit_seconds, ahead=1)
    next(answers, None)
    begun = time.perf_counter()
    for unit, answer in zip(drawn, answers):
        if isinstance(answer, Rejected):
            rejected.append(answer.row(unit.source))
        elif len(answer.pixels):
            clips += len(answer.pixels)
            pixels = [*pixels, answer.pixels][-load.batch :]
        if time.perf_counter() - begun > PROBE_SECONDS / 2 and (clips or len(rejected) >= SAMPLE):
            break
    answers.close()
    if not clips:
        reasons = f" ({reason_counts(rejected)})" if rejected else ""
        raise UserError(f"no clip can be decoded of the {plural(len(rejected), 'video')} tried{reasons}")
    decode = (time.perf_counter() - begun) / clips
    batch = torch.cat(pixels)[: load.batch]
    vae.encode(to_float(batch[:1]))  # the first takes longer
    begun, encoded = time.perf_counter(), 0
    while time.perf_counter() - begun < PROBE_SECONDS / 2 and encoded < 8 * load.batch:
        vae.encode(to_float(batch)).cpu()
        encoded += max(len(batch), 1)
    return decode, (time.perf_counter() - begun) / encoded


def compare_sample(shards: list[Shard], vae: Any, load: Load, count: int, tolerance: float) -> tuple[int, float]:
    """Decode and encode some random sources of a finished cache again, and compare.

    Args:
        shards: all of the cache's.
        count: sources.
        tolerance: one of ``TOLERANCE``.

    Returns:
        clips compared, and the largest relative root mean square difference of one.

    Raises:
        UserError: a clip differs by more than ``tolerance``, or is not there (named).
    """
    every = [(shard, unit) for shard in shards for unit in shard.units]
    chosen = random.sample(every, min(count, len(every)))
    compared, worst = 0, 0.0
    with_answers = zip(chosen, decoded((unit for _, unit in chosen), load.workers, load.limit_seconds))
    for (shard, unit), answer in with_answers:
        about = read_header(shard.path)[1]
        if isinstance(answer, Rejected):
            if answer.row(unit.source) not in about["rejected"]:
                raise UserError(f"{unit.source}: {answer} now, but not when {shard.path} was made")
            continue
        stored = map_arrays(shard.path)["latents"]
        row = {key: number for number, key in enumerate(about["keys"])}
        gone = [key for key in answer.keys if key not in row]
        if gone:
            raise UserError(f"{gone[0]} is not in {shard.path}; make the cache again in another folder")
        for key, latent in zip(answer.keys, _encoded(answer, vae, load.batch)):
            error = _relative(torch.from_numpy(stored[row[key]].copy()).float(), latent)
            if not error <= tolerance:
                raise UserError(
                    f"{key} in {shard.path}: differs by {error:.3g} of its size from what encoding it again gives "
                    f"(at most {tolerance:g}); make the cache again in another folder"
                )
            compared, worst = compared + 1, max(worst, error)
    return compared, worst


def _encoded(clips: Clips, vae: Any, batch: int) -> Tensor:
    return torch.cat([vae.encode(to_float(part)).float().cpu() for part in clips.pixels.split(batch)])


def _relative(stored: Tensor, again: Tensor) -> float:
    return ((stored - again).square().mean().sqrt() / again.square().mean().sqrt().clamp(min=1e-6)).item()
