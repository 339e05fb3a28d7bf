"""Encode clips and captions once, into a cache that training reads.

    python tools/cache_latents.py --source synthetic --out caches/shapes --clips 8192
    python tools/cache_latents.py --source my_videos/ --out caches/mine
    python tools/cache_latents.py --source my_videos.csv --out caches/mine --size 64 --stride 2

The same command again goes on where a killed one stopped, and says so where there is nothing left to do.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from data.clips import Shape
from data.latents import FORMAT, LatentCache, open_cache, write_cache, write_lines
from data.listing import list_sources
from data.media import Source
from data.sources import Survey, Unit, list_hash, read_frozen, split_videos, survey, synthetic_units, video_units
from data.synthetic import VERSION
from models.text import TextEncoder, load_text_encoder
from models.vae import VideoVAE, load_vae
from utils.devices import pick_device
from utils.errors import Parser, UserError, run_cli
from utils.files import exclusive

SYNTHETIC_CLIPS, SYNTHETIC_VALIDATION = 4096, 256


class Plan(NamedTuple):
    """What is to be encoded, and what is known about it by then."""

    units: dict[str, list[Unit]]
    rejected: Sequence[dict[str, str]] = ()
    frozen: Sequence[str] | None = None
    fps: float | None = None


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--source", help="'synthetic', a folder of videos (captions in x.txt beside x.mp4), or a .csv or .jsonl "
        "manifest with the columns path and caption")  # fmt: skip
    add("--out", required=True, help="the cache's folder")
    add("--clips", type=int, help=f"training clips: how many to render (default {SYNTHETIC_CLIPS}), or at most how "
        "many to take from videos (default: all)")  # fmt: skip
    add("--validation", help="validation clips: a number, or an earlier cache whose validation list is kept "
        f"(default: {SYNTHETIC_VALIDATION} synthetic ones; of videos about a tenth, in whole videos)")  # fmt: skip
    add("--frames", type=int, default=17, help="frames per clip (default 17)")
    add("--size", type=int, default=32, help="height and width in pixels (default 32)")
    add("--stride", type=int, default=1, help="take every n-th frame of a video (default 1)")
    add("--clips-per-video", type=int, default=16, help="at most so many clips of one video, which do not overlap "
        "(default 16)")  # fmt: skip
    add("--max-rejected", type=float, default=0.5, help="stop where more than this fraction of the videos cannot be "
        "used (default 0.5); each is named in rejected.jsonl")  # fmt: skip
    add("--vae", default="embedded", help="'embedded', or a folder or hub id of a diffusers autoencoder")
    add("--text", default="embedded", help="'embedded', or a folder or hub id of a text encoder such as a T5")
    add("--seed", type=int, default=0, help="which synthetic training clips (default 0)")
    add("--device", help="where to render and encode: cpu or cuda (default: cuda where there is one)")
    add("--batch", type=int, default=16, help="clips encoded at once (default 16)")
    add("--verify", action="store_true", help="recompute the checksums of the finished cache in --out, and stop")
    add("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args()
    if not args.source and not args.verify:
        raise UserError("--source is missing: 'synthetic', a folder of videos or a manifest")
    for name in ("clips", "frames", "size", "stride", "clips_per_video", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 <= args.max_rejected <= 1:
        raise UserError("--max-rejected must lie between 0 and 1")
    if args.source == "synthetic" and args.stride != 1:
        raise UserError("--stride is for videos: synthetic clips are rendered frame by frame")
    return args


def validation_wish(text: str | None) -> tuple[int | None, list[str] | None]:
    """What ``--validation`` asks for: a number of clips, or the keys of an earlier list."""
    if text is None or text.isdecimal():
        return (None if text is None else int(text)), None
    if not Path(text).exists():
        raise UserError(f"--validation {text}: neither a number of clips nor an earlier cache")
    return None, read_frozen(text)


def plan_synthetic(args: argparse.Namespace, shape: Shape) -> tuple[dict, Callable[[], Plan]]:
    """The settings that determine the cache's content, and its units when called."""
    wanted, frozen = validation_wish(args.validation)
    if frozen is not None:
        raise UserError("--validation takes a number here: every synthetic cache has the same validation clips")
    train = args.clips or SYNTHETIC_CLIPS
    validation = SYNTHETIC_VALIDATION if wanted is None else wanted
    settings = {"source": f"synthetic {VERSION}", "seed": args.seed, "clips": train, "validation": validation}
    return settings, lambda: Plan(synthetic_units(shape, train, validation, args.seed, args.device))


def plan_videos(args: argparse.Namespace, shape: Shape) -> tuple[dict, Callable[[], Plan]]:
    """As ``plan_synthetic``; the videos are opened when called."""
    wanted, frozen = validation_wish(args.validation)
    sources = list_sources(args.source)
    settings = {
        "source": "videos",
        "videos": len(sources),
        "videos_hash": list_hash([identity(source) for source in sources]),
        "clips": args.clips,
        "clips_per_video": args.clips_per_video,
        "validation": wanted if frozen is None else f"list {list_hash(frozen)}",
    }

    def plan() -> Plan:
        bar = tqdm(sources, desc="reading headers", unit="video", disable=None)
        surveyed = survey(bar, shape, args.clips_per_video)
        stop_if_too_few(args, surveyed, len(sources))
        splits = split_videos(surveyed, shape, args.clips, wanted, frozen)
        units = video_units(sources, surveyed, splits, shape, args.device)
        return Plan(units, surveyed.rejected, frozen, surveyed.fps / shape.stride)

    return settings, plan


def identity(source: Source) -> str:
    """What makes a cache another one where it changes: a video's name, size and caption."""
    return f"{source.name}\t{source.path.stat().st_size if source.path.exists() else None}\t{source.caption}"


def stop_if_too_few(args: argparse.Namespace, surveyed: Survey, videos: int) -> None:
    """Raise where no video, or too small a part of them, can be used."""
    if surveyed.starts and len(surveyed.rejected) <= args.max_rejected * videos:
        return
    path = Path(args.out) / "rejected.jsonl"
    write_lines(path, surveyed.rejected)
    counts = ", ".join(f"{count} {reason}" for reason, count in surveyed.reasons.items())
    told = f"{len(surveyed.rejected)} of {videos} videos cannot be used" if surveyed.starts else "no video is left"
    raise UserError(f"{args.source}: {told} ({counts}; each is named in {path})")


def main() -> None:
    args = arguments()
    args.device = pick_device(args.device)
    if args.verify:
        LatentCache(args.out).verify()
        print(f"{args.out}: every file is as it was written")
        return
    shape = Shape(args.frames, args.size, args.stride)
    made_of, plan = plan_synthetic(args, shape) if args.source == "synthetic" else plan_videos(args, shape)
    # A folder is stored whole, so that training and sampling find it from any working directory.
    args.vae, args.text = (
        str(Path(spec).resolve()) if Path(spec).is_dir() else spec for spec in (args.vae, args.text)
    )
    vae = load_vae(args.vae, args.device)
    text = load_text_encoder(args.text, args.device)
    vae.latent_shape(args.frames, args.size, args.size)  # a shape that the VAE cannot take is said before any work
    settings = {"format": FORMAT, "frames": args.frames, "height": args.size, "width": args.size, **made_of}
    settings |= {"stride": args.stride, "vae_fingerprint": vae.fingerprint, "text_fingerprint": text.fingerprint}

    with exclusive(Path(args.out)):
        index = build(args, settings, plan, vae, text)
    report(args, index)


def build(
    args: argparse.Namespace, settings: dict, plan: Callable[[], Plan], vae: VideoVAE, text: TextEncoder
) -> dict:
    """The index of the cache, made now or found finished."""
    index = open_cache(args.out, settings)
    if index is not None:
        print(f"{args.out}: already finished, nothing to do", file=sys.stderr)
    else:
        planned = plan()
        about = {"vae": args.vae, "text": args.text, "vae_statistics": vae.statistics, "fps": planned.fps}
        total = sum(len(unit.keys) for part in planned.units.values() for unit in part)
        with tqdm(total=total, desc="encoding", unit="clip", disable=None) as bar:
            index = write_cache(
                args.out, settings, planned.units, vae, text,
                about=about, rejected=planned.rejected, frozen=planned.frozen, batch=args.batch, progress=bar.update,
            )  # fmt: skip
    return index


def report(args: argparse.Namespace, index: dict) -> None:
    splits = {split: part["clips"] for split, part in index["splits"].items()}
    summary = {
        "out": args.out,
        **splits,
        "latent_shape": index["latent_shape"],
        "tokens": index["positions"],
        "bytes": sum(file["bytes"] for file in index["files"].values()),
        "rejected": index["rejected"],
        "latent_statistics": index["latent_statistics"],
        "validation_hash": index["validation_hash"],
    }
    if args.json:
        print(json.dumps(summary))
        return
    shape = "x".join(map(str, index["latent_shape"]))
    mean, std = (index["latent_statistics"][name] for name in ("mean", "std"))
    print(f"{args.out}: {splits['train']} training and {splits['validation']} validation clips of {shape} latents")
    print(f"  {summary['tokens']:,} latent tokens (at patch 1x1x1), {summary['bytes'] / 1e6:.1f} MB")
    print(f"  latents by channel: mean {min(mean):+.3f} to {max(mean):+.3f}, std {min(std):.3f} to {max(std):.3f}")
    print(f"  text: at most {index['text_tokens']} tokens of {index['text_dim']} numbers")
    print(f"  validation list {index['validation_hash']}, frozen")
    if index["rejected"]:
        told = ", ".join(f"{n} {reason}" for reason, n in index["rejected"].items())
        print(f"  rejected: {told} (each is named in {Path(args.out) / 'rejected.jsonl'})")


if __name__ == "__main__":
    run_cli(main)
