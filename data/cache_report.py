"""Text reports of a cache: before it is made, from an estimate, and afterwards, from the index."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videoscaling.data.index import CacheIndex
from videoscaling.utils.errors import plural


def counts_text(counts: Mapping[str, int]) -> str:
    """Counts by kind, as text."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items())


def captions_text(about: Mapping[str, Any], clips: int) -> list[str]:
    """Lines about captions and skipped files; none for entries that an older index lacks."""
    lines = []
    if (found := about.get("captions")) is not None:
        lines.append(
            f"  captions: {found['missing']:,} of {plural(clips, 'clip')} have none; {found['cut']:,} have "
            "one that is longer than the text encoder takes, and is cut"
        )
    if about.get("skipped"):
        lines.append(f"  files skipped, by kind: {counts_text(about['skipped'])}")
    if about.get("unread_columns"):
        lines.append(f"  columns not read: {', '.join(about['unread_columns'])}")
    return lines


def shots_text(shots: Mapping[str, Any] | None) -> list[str]:
    """A line about the videos' shots, where they were asked for."""
    if not shots:
        return []
    left_out = f"{shots['too_short']:,} of them shorter than a clip"
    fewer = f"{plural(shots['clips_left_out'], 'clip')} fewer than if clips crossed cuts"
    return [f"  {shots['shots']:,} shots in {plural(shots['videos'], 'video')} ({shots['rule']}), {left_out}; {fewer}"]


def split_text(split: Mapping[str, Any] | None, clips: int) -> list[str]:
    """Lines about the separation of training and validation, of so many ``clips``; none for entries that an older
    index lacks."""
    if not split or split["by"] == "seed":
        return []
    wanted = split["wanted"]
    drawn = "the clips of the given list" if wanted is None else plural(clips, "clip")
    if wanted is not None and clips > wanted:
        drawn += f" for the {wanted:,} wanted, as the last video drawn is not divided"
    lines = [f"  validation: {drawn}, split by {split['by']}"]
    if split["parted"]:
        names = ", ".join(split["parted"][:3]) + (", ..." if len(split["parted"]) > 3 else "")
        lines[0] += f": of {names} a part is trained on, {split['gap_seconds']:.2g} s or more from any validation clip"
    if clips < 2 and wanted != 0:
        what = plural(clips, "validation clip")
        lines.append(f"  {what}, too few to train on: train.py needs two (--validation 2, in another folder)")
    if split["unused"]:
        lines.append(f"  clips in neither split, as they are of videos validated on: {split['unused']:,}")
    return lines


def estimate_text(found: Mapping[str, Any]) -> str:
    """What ``data.verify.estimate`` found."""
    opened = "" if found["opened"] == found["videos"] else f", judged by {found['opened']:,} drawn at random"
    lines = [f"{plural(found['videos'], 'video')}{opened}: about {found['kept']:,} can be used"]
    if found["rejected"]:
        lines.append(
            f"  rejected of {found['opened']:,}: {counts_text(found['rejected'])} (by their headers; "
            "decoding may reject more)"
        )
    lines.append(
        f"  {found['train']:,} training and {plural(found['validation'], 'validation clip')}, "
        f"{found['tokens']:,} latent tokens (at patch 1x1x1)"
    )
    lines += shots_text(found.get("shots"))
    lines += split_text(found.get("split"), found["validation"])
    lines += captions_text(found, found["train"] + found["validation"])
    hours = "an unknown length" if found["hours"] is None else f"{found['hours']:,.2f} hours"
    lines.append(f"  {hours} of video, {found['bytes'] / 1e6:,.1f} MB of latents")
    lines.append(
        f"  about {found['seconds'] / 3600:,.2f} hours ({found['seconds']:,.0f} s) on "
        f"{plural(found['processes'], 'such process')}: decoding takes {1e3 * found['decode']:.1f} ms a clip "
        f"and worker, encoding {1e3 * found['encode']:.1f} ms"
    )
    return "\n".join(lines)


def summary(out: str, index: CacheIndex) -> dict[str, object]:
    """The facts of a finished cache's index, for machines."""
    about = index["about"]
    return {
        "out": out,
        **{split: part["clips"] for split, part in index["splits"].items()},
        "latent_shape": index["latent_shape"],
        "tokens": index["positions"],
        "bytes": sum(file["bytes"] for file in index["files"].values()),
        "rejected": index["rejected"],
        "rejected_clips": index.get("rejected_clips", {}),
        "captions": index.get("captions"),  # None in an index of before these were counted
        "shots": about.get("shots"),
        "split": about.get("split"),
        "skipped": about.get("skipped"),
        "unread_columns": about.get("unread_columns"),
        "latent_statistics": index["latent_statistics"],
        "validation_hash": index["validation_hash"],
    }


def summary_text(out: str, index: CacheIndex) -> str:
    """The facts of a finished cache's index, for readers."""
    facts = summary(out, index)
    shape = "x".join(map(str, index["latent_shape"]))
    mean, std = (index["latent_statistics"][name] for name in ("mean", "std"))
    lines = [
        f"{out}: {facts['train']:,} training and {plural(facts['validation'], 'validation clip')} of {shape} latents",
        f"  {facts['tokens']:,} latent tokens (at patch 1x1x1), {facts['bytes'] / 1e6:.1f} MB",
        f"  latents by channel: mean {min(mean):+.3f} to {max(mean):+.3f}, std {min(std):.3f} to {max(std):.3f}",
        f"  text: at most {plural(index['text_tokens'], 'token')} of {index['text_dim']} numbers",
        *shots_text(facts["shots"]),
        *split_text(facts["split"], facts["validation"]),
        *captions_text(facts, facts["train"] + facts["validation"]),
        f"  validation list {index['validation_hash']}, frozen",
    ]
    if index["rejected"]:
        lines.append(f"  rejected: {counts_text(index['rejected'])} (each is named in {Path(out) / 'rejected.jsonl'})")
    if facts["rejected_clips"]:
        lines.append(f"  single clips rejected, of videos that are kept: {counts_text(facts['rejected_clips'])}")
    return "\n".join(lines)
