"""Evaluate an autoencoder: PSNR and SSIM of its reconstructions, and the latents' statistics.

    python tools/evaluate_vae.py --source synthetic
    python tools/evaluate_vae.py --source my_videos/ --picture side_by_side.png
    python tools/evaluate_vae.py --source doom --clips 512 --vae real64 --size 64

Before clips are encoded by the thousand: a VAE that keeps too little of them, or whose latents are far from mean 0 and
deviation 1, makes every loss that follows mean something else. Clips are read as tools/cache_latents.py reads them.
"""

import argparse
from pathlib import Path

from videoscaling.data.choices import RENDERED, SYNTHETIC
from videoscaling.tools.inputs import VAE, VIDEOS
from videoscaling.utils.errors import Parser, UserError, path_text, run_cli
from videoscaling.utils.inputs import check_paths
from videoscaling.utils.options import height_and_width


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source",
        type=path_text,
        reads=VIDEOS,
        default=SYNTHETIC,
        help="synthetic, doom (held-out levels), film (within its shots), or what tools/cache_latents.py reads",
    )
    parser.add_argument(
        "--vae",
        type=path_text,
        reads=VAE,
        default="embedded",
        help="embedded, real32, real64, a folder or a hub id (default: %(default)s)",
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=16,
        help="of each video or shot at most, or rendered ones in all (default: %(default)s)",
    )
    parser.add_argument("--frames", type=int, default=17, help="of a clip (default: %(default)s)")
    parser.add_argument(
        "--size",
        type=height_and_width,
        metavar="N|HxW",
        default=(32, 32),
        help="pixels of a clip: a square's side, or height x width (default: 32)",
    )
    parser.add_argument("--stride", type=int, default=1, help="every how many-th frame (default: %(default)s)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--bfloat16", action="store_true", help="run the autoencoder in bfloat16, not float32")
    parser.add_argument(
        "--picture", type=Path, writes="file", help="a PNG to write: clips above, what became of them below"
    )
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    args = parser.parse_args()
    if args.source in RENDERED:
        parser.refuse_unread(args, ("stride",), f"for videos; {args.source} clips are rendered frame by frame")
    if min(args.clips, args.frames, args.stride) < 1 or min(args.size) < 11:
        raise UserError(
            "--clips, --frames and --stride must be at least 1, and --size at least 11, the width of SSIM's window"
        )
    check_paths(parser, args)
    from videoscaling.tools.quality.reconstructions import evaluate  # torch, after the mistakes that need none

    evaluate(args)


if __name__ == "__main__":
    run_cli(main)
