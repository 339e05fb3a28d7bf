"""Make videos from prompts, with a trained model or the small one that ships here.

    python sample.py --prompt "a large red circle gliding right over black and navy gradient drifting up" --upscale 8
    python sample.py --checkpoint runs/x --prompts configs/prompts.txt --out samples/ --steps 50 --guidance 5 --seed 0
    torchrun --nproc_per_node 2 sample.py --checkpoint runs/x --prompts configs/prompts.txt      # shared among GPUs

Prompt i is sampled with seed + i in every batch; a table of prompts may have a column "seed". The prompt, the seed
and the settings lie in each file's metadata, and all of them in OUT/samples.json. With --grid 4, OUT/grid.mp4
(grid.gif for other formats) shows all videos, four in a row, captioned.
"""

import argparse
import json
import math
import os
import re
import sys
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from videoscaling.diffusion.sampler_options import SamplerOptions
from videoscaling.tools.inputs import CHECKPOINT, PROMPTS, TEXT, VAE
from videoscaling.training.checkpoints.paths import check_exists
from videoscaling.utils.errors import Parser, UserError, listed, path_text, plural, run_cli, shown
from videoscaling.utils.files import read_bounded, write_json
from videoscaling.utils.inputs import check_paths
from videoscaling.utils.messages import is_first_process
from videoscaling.utils.options import check_range, height_and_width, options_of, pixels_text
from videoscaling.utils.tables import read_table, table_kind, text_of

FORMATS = ("mp4", "gif", "png")
MAX_PROMPTS_BYTES = 1 << 24
# How long a process that has no prompt left waits for the others' videos, one of which may take an hour; torch's own
# half hour would end the job after them. The processes of one that died are ended by torchrun.
PATIENCE = timedelta(days=7)
MAX_FPS = 1000  # no screen shows more; at 1e10 writing the finished videos ended in a traceback
SMALL = 128  # pixels: a shorter picture is hard to see at its own size


def parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint",
        default="embedded",
        type=path_text,
        reads=CHECKPOINT,
        aliases=("--ckpt", "--ckpt-path", "--model", "--model-path", "--resume", "--run"),
        help="a run directory (its newest), a checkpoint, or a folder of tools/export.py (default: embedded, the "
        "model that ships here)",
    )
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    parser.add_argument(
        "words", nargs="*", type=path_text, help=argparse.SUPPRESS
    )  # refused, with the option that is meant
    parser.add_argument(
        "--prompts",
        type=Path,
        reads=PROMPTS,
        aliases=("--prompt-path", "--prompt-file"),
        help="a text file with one prompt per line, or a table (CSV, "
        "TSV, JSON lines, Parquet) with a column prompt and perhaps seed",
    )
    parser.add_argument("--negative-prompt", default="", help="a prompt to lead away from (default: none)")
    parser.add_argument(
        "--out",
        type=Path,
        writes="folder",
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
    parser.add_argument("--grid", type=int, metavar="COLUMNS", help="also write all videos as one captioned grid")
    parser.add_argument("--upscale", type=int, default=1, metavar="TIMES", help="repeat each pixel (default: 1)")
    parser.add_argument("--frames", type=int, help="frames of a video (default: the training's; others are untested)")
    parser.add_argument(
        "--size",
        type=height_and_width,
        metavar="N|HxW",
        aliases=("--height", "--width", "--image-size", "--resolution"),
        help="pixels of a video: a square's side, or height x width (default: the training's, as --frames)",
    )
    parser.add_argument("--fps", type=float, help="frames per second of the files (default: the training's, else 8)")
    parser.add_argument("--batch", type=int, default=8, help="prompts sampled at once (default: 8)")
    parser.add_argument(
        "--vae", type=path_text, reads=VAE, help="folder of the VAE (default: its folder when the latents were made)"
    )
    parser.add_argument(
        "--text",
        type=path_text,
        reads=TEXT,
        aliases=("--text-encoder", "--t5"),
        help="folder of the text encoder (default: its folder when the latents were made)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="what the model computes in (default: as in training)"
    )
    parser.add_argument("--compile", action="store_true", help="compile the model: faster, after a minute")
    return parser


def main() -> int:
    command = parser()
    arguments = command.parse_args()
    if arguments.words:
        words = " ".join(arguments.words)
        option = "--checkpoint" if Path(words).exists() else "--prompt"
        raise UserError(f"{shown(words)}: without an option; write {option} {shown(words)}")
    for name in ("fps", "batch", "grid", "upscale", "frames"):
        if getattr(arguments, name) is not None and not 1 <= getattr(arguments, name) < math.inf:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be at least 1")
    check_range("fps", arguments.fps, 1, MAX_FPS)
    if not 0 <= arguments.seed < 10**18:
        raise UserError(f"--seed {arguments.seed}: must lie between 0 and 10^18")
    if arguments.format == "png" and arguments.grid is None:
        command.refuse_unread(arguments, ("fps",), "a png has its frames side by side, without a rate")
    # Numbers out of range and mistyped paths are reported before torch is imported, which takes seconds.
    options = options_of(SamplerOptions, arguments)
    check_paths(command, arguments)
    prompts = read_prompts(arguments)
    check_exists(arguments.checkpoint)
    return run(arguments, options, prompts)


class Prompt(NamedTuple):
    text: str
    seed: int


def read_prompts(arguments: argparse.Namespace) -> list[Prompt]:
    """The prompts of the command line and of the file, in that order, each with its seed.

    Raises:
        UserError: there is none, or the file is not UTF-8, or a seed is none.
    """
    path = arguments.prompts
    given: list[tuple[str, Any]] = [(text, None) for text in arguments.prompt]
    if path is not None:
        given += _from_table(path) if table_kind(path) else [(text, None) for text in _lines(path)]
        if len(given) == len(arguments.prompt):
            raise UserError(f"--prompts {path}: no prompt in it; write one per line")
    if not given:
        raise UserError("no prompt: give --prompt TEXT or --prompts FILE")
    prompts = []
    for number, (text, seed) in enumerate(given):
        value = arguments.seed + number if seed in (None, "") else seed
        if not re.fullmatch(r"\d{1,18}", str(value)):
            raise UserError(f"--prompts {path}: seed {value!r} of {text!r}: must be a whole number below 10^18")
        prompts.append(Prompt(text, int(value)))
    return prompts


def _lines(path: Path) -> list[str]:
    content = read_bounded(path, MAX_PROMPTS_BYTES, "a text file with one prompt per line")
    return [line.strip() for line in text_of(content, f"--prompts {path}").splitlines() if line.strip()]


def _from_table(path: Path) -> list[tuple[str, Any]]:
    """(prompt, seed or None) of each row."""
    table = read_table(path, lambda names: "prompt" in map(_plain, names))
    # The very name first, where several are one in another case.
    columns = {_plain(name): name for name in reversed(table.columns)} | {name: name for name in table.columns}
    if "prompt" not in columns:
        raise UserError(f"--prompts {path}: has no column prompt; it has {', '.join(table.columns) or 'none'}")
    found = {ours: columns[ours] for ours in ("prompt", "seed") if ours in columns}
    unread = [name for name in table.columns if name.strip() and name not in found.values()]
    if unread and is_first_process():
        print(f"note: --prompts {path}: columns not read: {listed(unread)}", file=sys.stderr)
    rows = [
        [row.get(name) for name in (found["prompt"], found.get("seed"))] for _, row in table.rows([*found.values()])
    ]
    return [("" if prompt is None else str(prompt).strip(), seed) for prompt, seed in rows]


def _plain(column: str) -> str:
    return column.strip().casefold()


def run(arguments: argparse.Namespace, options: SamplerOptions, prompts: list[Prompt]) -> int:
    """Sample every prompt and write the files; nothing is written before all inputs were accepted."""
    from videoscaling.data.export import DEFAULT_FPS, WRITERS, GridLayout, check_sides, enlarged, write_grid
    from videoscaling.diffusion.sampling import known_schedulers
    from videoscaling.training.pipeline import VideoPipeline
    from videoscaling.utils.progress import Progress

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    pipeline = VideoPipeline.from_run(
        arguments.checkpoint,
        weights=arguments.weights,
        device=arguments.device,
        dtype=arguments.dtype,
        compiled=arguments.compile,
        vae=arguments.vae,
        text=arguments.text,
        options=options,
    )
    if arguments.frames or arguments.size:
        pipeline.resize(arguments.frames, arguments.size)
    if arguments.checkpoint == "embedded" and rank == 0:
        print("the embedded model: moving shapes of 32x32 pixels, described as in configs/prompts.txt")
    options = replace(options, scheduler=options.scheduler or known_schedulers(pipeline.process)[0])
    settings = asdict(options) | {"weights": arguments.weights, "checkpoint": pipeline.path}
    fps = arguments.fps or pipeline.fps or DEFAULT_FPS
    number, end = (len(prompts) * part // world for part in (rank, rank + 1))  # this process's prompts
    height, width = (side * arguments.upscale for side in pipeline.clip_shape[1:])
    captions, grid = [prompt.text for prompt in prompts], "mp4" if arguments.format == "mp4" else "gif"
    check_sides("videos", arguments.format, height, width, "a smaller --upscale or --size")
    if arguments.grid:
        sides = GridLayout.of(captions, height, width, arguments.grid).sides
        check_sides("the grid", grid, *sides, "another number of --grid columns, or fewer prompts")
    hint = ""
    if arguments.upscale == 1 and max(height, width) < SMALL:
        hint = f" ({pixels_text(height, width)}; --upscale {2 * SMALL // max(height, width)} enlarges them)"
    records, clips = [], []
    with Progress(end - number, "sampling", "videos") as progress:
        texts, seeds = ([prompt[column] for prompt in prompts[number:end]] for column in (0, 1))
        for videos in pipeline.batches(texts, seeds, options, batch=arguments.batch):
            for clip in enlarged(videos, arguments.upscale):
                prompt = prompts[number]
                name = f"{number:03d}_{_slug(prompt.text)}.{arguments.format}"
                record = {"file": name, "prompt": prompt.text, "seed": prompt.seed, **settings}
                WRITERS[arguments.format](arguments.out / name, clip, fps, json.dumps(record))
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
        write_grid(arguments.out / f"grid.{grid}", clips, captions, columns=arguments.grid, fps=fps)
    written = records[0]["file"] if len(records) == 1 else plural(len(records), "video")
    print(f"{arguments.out}: {written} and samples.json{hint}")
    return 0


def _gathered(records: list[dict[str, Any]], clips: list[Any], world: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """The records and clips of all ``world`` processes of a torchrun, in the order of the prompts."""
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=PATIENCE)
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, (records, clips))
    dist.destroy_process_group()
    return [record for part, _ in parts for record in part], [clip for _, part in parts for clip in part]


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:48] or "empty"


if __name__ == "__main__":
    run_cli(main)
