"""The work of tools/cache_latents.py: plan a cache, then estimate, build or verify it."""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from videoscaling.data import writer
from videoscaling.data.build import build_share
from videoscaling.data.cache_report import estimate_text, summary, summary_text
from videoscaling.data.choices import FILM, RENDERED, VERIFIED
from videoscaling.data.clip_groups import SPLITS
from videoscaling.data.latents import FORMAT, LatentCache, read_index
from videoscaling.data.plan import ListedVideos, Planner, VideoRequest, list_videos, plan_listed, plan_rendered
from videoscaling.data.shot_sources import ShotOptions
from videoscaling.data.sources.captions import ListingOptions
from videoscaling.data.verify import TOLERANCE, caption_counts, compare_sample, estimate
from videoscaling.data.video.clips import ClipOptions, Shape
from videoscaling.data.work_share import WorkShare
from videoscaling.data.writer import Load
from videoscaling.models.text import TextEncoder, load_text_encoder
from videoscaling.models.vae import VideoVAE, load_vae
from videoscaling.utils.devices import pick_device
from videoscaling.utils.errors import UserError, plural, resumable
from videoscaling.utils.locks import release_abandoned
from videoscaling.utils.messages import is_first_process


def pick_workers(args: argparse.Namespace) -> int:
    """The number of decoding processes."""
    if args.workers is not None:
        return args.workers
    if args.source in RENDERED:  # rendered where they are encoded
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1, 1), 16)


def print_once(found: dict | str) -> None:
    """Print a text, or facts as JSON, that every process of a torchrun has found alike."""
    if is_first_process():
        print(found if isinstance(found, str) else json.dumps(found))


def rendered_clips(args: argparse.Namespace, shape: Shape) -> tuple[dict, Planner]:
    return plan_rendered(
        args.source, shape, clips=args.clips, validation=args.validation, seed=args.seed, device=args.device
    )


def listed_videos(args: argparse.Namespace, shape: Shape, share: WorkShare) -> ListedVideos:
    rule = args.shots or ("histogram" if args.source == FILM else "off")
    return list_videos(
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


def work(args: argparse.Namespace, share: WorkShare) -> None:
    """Do what the checked options of tools/cache_latents.py ask for, on this process's share."""
    if args.verify and not args.source:
        LatentCache(args.out).verify()
        text = f"{args.out}: every file is as it was written (with --source, clips are encoded again too)"
        print_once({"out": args.out} if args.json else text)
        return
    if args.device is None and torch.cuda.is_available():
        args.device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    args.device = pick_device(args.device)
    shape = Shape(args.frames, args.size, args.stride)
    args.workers = pick_workers(args)
    clips = rendered_clips(args, shape) if args.source in RENDERED else listed_videos(args, shape, share)
    # A folder is stored whole, so that training and sampling find it from any working directory.
    args.vae, args.text = (
        str(Path(spec).resolve()) if Path(spec).is_dir() else spec for spec in (args.vae, args.text)
    )
    vae = load_vae(args.vae, args.device, getattr(torch, args.vae_dtype))
    text = load_text_encoder(args.text, args.device)
    # A shape that the VAE cannot take is said before any work.
    latent_shape = vae.latent_shape(args.frames, *shape.sides)
    made_of, plan = plan_listed(clips) if isinstance(clips, ListedVideos) else clips
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
        print_once(found if args.json else estimate_text(found))
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
        if is_first_process():
            print(f"{out}: already finished, nothing to do", file=sys.stderr)
        print_once(summary(args.out, built.index) if args.json else summary_text(args.out, built.index))
    elif built.index is not None:  # by the process that added the last shard
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
    print_once(summary if args.json else text)
