"""Make videos from a checkpoint and prompts.

    python sample.py --checkpoint runs/x --prompt "a large red circle gliding left over a drifting navy background"
    python sample.py --checkpoint runs/x --prompts configs/prompts.txt --out samples/ --steps 50 --guidance 5 --seed 0
    torchrun --nproc_per_node 2 sample.py --checkpoint runs/x --prompts configs/prompts.txt      # shared among GPUs

Prompt i is sampled with seed + i in every batch. The prompt, the seed and the settings lie in each file's
metadata, and all of them in OUT/samples.json. With --grid 4, OUT/grid.gif shows all videos, four in a row, captioned.
"""

import argparse
import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from videoscaling.utils.errors import Parser, UserError, path_text, plural, run_cli
from videoscaling.utils.files import read_bounded, write_json

FORMATS = ("mp4", "gif", "png")
MAX_PROMPTS_BYTES = 1 << 24


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        aliases=("--ckpt", "--ckpt-path", "--model", "--model-path", "--resume", "--run"),
        help="a run directory (its newest) or a checkpoint",
    )
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    parser.add_argument(
        "--prompts", type=Path, aliases=("--prompt-path", "--prompt-file"), help="a text file with one prompt per line"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("samples"),
        aliases=("--output", "--output-dir", "--save-dir", "--save-path"),
        help="folder to write to (default: samples)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=50,
        aliases=("--num-steps", "--num-inference-steps", "--num-sampling-steps"),
        help="sampler steps, 1 to 1000 (default: 50)",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=5.0,
        aliases=("--cfg-scale", "--cfg", "--guidance-scale"),
        help="guidance scale; 1 is none (default: 5)",
    )
    parser.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="times t, 1 being noise, between which guidance acts (default: 0 1)",
    )
    parser.add_argument(
        "--guidance-rescale",
        type=float,
        default=0.0,
        help="share in which guided predictions keep the deviation of unguided ones, 0 to 1 (default: 0)",
    )
    parser.add_argument(
        "--shift",
        type=float,
        default=1.0,
        aliases=("--flow-shift", "--timestep-shift"),
        help="of a flow's times: above 1, more steps near the noise (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first prompt (default: 0)")
    parser.add_argument(
        "--scheduler",
        aliases=("--sampler", "--solver", "--sampling-method"),
        help="dpm++ (default) or unipc; of first order: euler for flows, ddim for vp processes",
    )
    parser.add_argument("--weights", choices=("ema", "model"), default="ema", help="averaged or raw (default: ema)")
    parser.add_argument("--format", choices=FORMATS, default="mp4", help="mp4, gif, or png (frames side by side)")
    parser.add_argument("--grid", type=int, metavar="COLUMNS", help="also write all videos as one captioned grid.gif")
    parser.add_argument("--fps", type=int, default=8, help="frames per second of the files (default: 8)")
    parser.add_argument("--batch", type=int, default=8, help="prompts sampled at once (default: 8)")
    parser.add_argument(
        "--vae", type=path_text, help="folder of the VAE (default: its folder when the latents were made)"
    )
    parser.add_argument(
        "--text",
        type=path_text,
        aliases=("--text-encoder", "--t5"),
        help="folder of the text encoder (default: its folder when the latents were made)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="what the model computes in (default: as in training)"
    )
    parser.add_argument("--compile", action="store_true", help="compile the model: faster, after a minute")
    arguments = parser.parse_args()
    for name in ("fps", "batch", "grid"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be at least 1")
    if not 0 <= arguments.seed < 1 << 62:
        raise UserError(f"--seed {arguments.seed}: must lie between 0 and 2^62")
    if arguments.format == "png" and arguments.grid is None:
        parser.refuse_unread(arguments, ("fps",), "a png has its frames side by side, without a rate")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"--out {arguments.out}: is a file; name a folder")
    return run(arguments, read_prompts(arguments.prompt, arguments.prompts))


def read_prompts(given: list[str], path: Path | None) -> list[str]:
    """The prompts of the command line and of the file, in that order.

    Raises:
        UserError: there is none, or the file is missing or not UTF-8.
    """
    prompts = list(given)
    if path is not None:
        try:
            lines = (
                read_bounded(path, MAX_PROMPTS_BYTES, "a text file with one prompt per line")
                .decode("utf-8")
                .splitlines()
            )
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts {path}: not readable ({error})") from None
        lines = [line.strip() for line in lines if line.strip()]
        if not lines:
            raise UserError(f"--prompts {path}: an empty file; write one prompt per line")
        prompts += lines
    if not prompts:
        raise UserError("no prompt: give --prompt TEXT or --prompts FILE")
    return prompts


def run(arguments: argparse.Namespace, prompts: list[str]) -> int:
    """Sample every prompt and write the files; nothing is written before all inputs were accepted."""
    from videoscaling.data.export import WRITERS, write_grid
    from videoscaling.diffusion.sampling import SamplerOptions, known_schedulers
    from videoscaling.training.checkpoint import find_checkpoint
    from videoscaling.training.pipeline import VideoPipeline
    from videoscaling.utils.progress import Progress

    options = SamplerOptions(**{name: getattr(arguments, name) for name in SamplerOptions.__dataclass_fields__})
    path = find_checkpoint(arguments.checkpoint, (arguments.weights,))
    pipeline = VideoPipeline.from_run(
        path,
        weights=arguments.weights,
        device=arguments.device,
        dtype=arguments.dtype,
        compiled=arguments.compile,
        vae=arguments.vae,
        text=arguments.text,
    )
    options = replace(options, scheduler=options.scheduler or known_schedulers(pipeline.process)[0])
    settings = asdict(options) | {"weights": arguments.weights, "checkpoint": str(path)}
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    number, end = (len(prompts) * part // world for part in (rank, rank + 1))  # this process's prompts
    records, clips = [], []
    with Progress(end - number, "sampling", "videos") as progress:
        mine, seed = prompts[number:end], arguments.seed + number
        for videos in pipeline.batches(mine, options, seed=seed, batch=arguments.batch):
            for clip in videos:
                name = f"{number:03d}_{_slug(prompts[number])}.{arguments.format}"
                record = {"file": name, "prompt": prompts[number], "seed": arguments.seed + number, **settings}
                WRITERS[arguments.format](arguments.out / name, clip, arguments.fps, json.dumps(record))
                records.append(record)
                clips.append(clip.cpu() if arguments.grid else None)
                number += 1
            progress.update(len(videos))
    if world > 1:
        records, clips = _gathered(records, clips, world)
    if rank > 0:
        return 0
    write_json(arguments.out / "samples.json", records)
    if arguments.grid:
        write_grid(arguments.out / "grid.gif", clips, prompts, arguments.grid, arguments.fps)
    print(f"{arguments.out}: {plural(len(records), 'video')} and samples.json")
    return 0


def _gathered(records: list[dict[str, Any]], clips: list[Any], world: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """The records and clips of all ``world`` processes of a torchrun, in the order of the prompts."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, (records, clips))
    dist.destroy_process_group()
    return [record for part, _ in parts for record in part], [clip for _, part in parts for clip in part]


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:48] or "empty"


if __name__ == "__main__":
    run_cli(main)
