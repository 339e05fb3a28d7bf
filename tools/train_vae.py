"""Train a tiny video autoencoder such as the ones that are shipped, on synthetic clips, a film, a game or your videos.

    python tools/train_vae.py --out models/embedded_vae
    python tools/train_vae.py --out vaes/mine --source my_videos/ --size 48x80
    python tools/train_vae.py --out vaes/mixed --source film doom synthetic --size 32 64 --steps 12000

Synthetic clips are rendered as they are needed, none is seen twice; those of videos are held in memory, and seen in
crops, mirrored, backwards and in other colours. Of several sources each gives as many clips. The same command
continues an interrupted training from its last saved state. At the end the autoencoder is scored on each source's
held-out clips (other videos, shots or levels) and compared with principal component analysis of as many numbers per
clip. The folder --out is written in diffusers' format with a record of its training.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from videoscaling.tools.inputs import VIDEOS
from videoscaling.utils.devices import pick_device
from videoscaling.utils.errors import Parser, UserError, path_text, run_cli
from videoscaling.utils.files import recover_folder
from videoscaling.utils.inputs import check_paths
from videoscaling.utils.options import add_options, check_bounds, height_and_width, option, options_of


@dataclass(frozen=True)
class Settings:
    """What determines a training."""

    source: tuple[str, ...] = option(
        ("synthetic",),
        "synthetic, doom, film, or videos as tools/cache_latents.py takes them; several are mixed",
        nargs="+",
        type=path_text,
        reads=VIDEOS,
    )
    steps: int = option(5000, "optimiser steps", 1, 10**9)
    batch: int = option(8, "clips per step", 1, 10**6)
    lr: float = option(3e-3, "peak learning rate: warm-up, then linear to 0", 1e-12, 1e6)
    seed: int = option(0, "of clips, weights and noise", 0, 2**63 - 1)
    size: tuple[tuple[int, int], ...] = option(
        ((32, 32),),
        "pixels of a clip: a square's side, or height x width, multiples of 8; of several sizes each step takes the "
        "next, with as many pixels, and latents' means and deviations are measured at the last",
        nargs="+",
        type=height_and_width,
    )
    device: str | None = option(None, "cpu or cuda (default: cuda where there is one)")


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        writes="folder",
        help="folder to write, e.g. models/embedded_vae; replaced if it holds a VAE",
    )
    add_options(parser, Settings)
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of a table")
    args = parser.parse_args()
    check_paths(parser, args)
    recover_folder(args.out)
    settings = options_of(Settings, args, source=tuple(args.source), size=tuple(args.size))
    check_bounds(settings)
    if len(set(settings.source)) < len(settings.source):
        raise UserError(f"--source {' '.join(settings.source)}: one is named twice, and all give as many clips")
    if len(set(settings.size)) < len(settings.size):
        raise UserError("--size: one is named twice")
    for size in settings.size:
        if any(side % 8 for side in size):
            raise UserError(f"--size {size[0]}x{size[1]}: must be multiples of 8, the pixels of one latent")
    if args.out.exists() and any(args.out.iterdir()) and not (args.out / "config.json").exists():
        raise UserError(f"--out {args.out} is a folder of something else: name a new one, or one that holds a VAE")
    settings = replace(settings, device=str(pick_device(settings.device)))
    from videoscaling.tools.vae_training import run  # here, after the mistakes that need no torch

    run(settings, args.out, args.json)


if __name__ == "__main__":
    run_cli(main)
