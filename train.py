"""Train a video DiT on cached latents.

    python train.py --config configs/train/base.yaml data.cache=caches/small model.size=2x64 optim.lr=2e-3 \\
        optim.beta2_half_life=4e4 train.batch_tokens=640 train.tokens=2e5
    torchrun --nproc_per_node 8 train.py --config configs/train/base.yaml data.cache=caches/small model.size=2x64 \\
        optim.lr=2e-3 optim.beta2_half_life=4e4 train.batch_tokens=640 train.tokens=2e5

The same command continues the run; a finished one is left as it is. With --dry-run it only reports what the run
would be: its size, FLOPs, memory and, after a few steps, its time. With --account it says so by formula alone, without
latents and for any GPU:

    python train.py --dry-run --account --gpu h100 --gpus 8 --n-ctx 1280 --config configs/train/gpu.yaml \\
        model.size=16x3072 train.batch_tokens=5365760 train.tokens=7e11 train.parallel=fsdp train.micro_batch=4

docs/training.md has every key.
"""

import argparse
import os
import sys

from videoscaling.tools.inputs import CONFIG
from videoscaling.utils.devices import GPUS
from videoscaling.utils.errors import Parser, UserError, path_text, resumable, run_cli
from videoscaling.utils.inputs import check_paths
from videoscaling.utils.locks import release_abandoned
from videoscaling.utils.messages import is_first_process


def parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, key_of=key_of)
    parser.add_argument(
        "--config",
        type=path_text,
        reads=CONFIG,
        aliases=("--cfg", "--conf", "--yaml"),
        help="a YAML file; see configs/train, and docs/training.md for the keys",
    )
    parser.add_argument("--dry-run", action="store_true", help="report the run's size, cost and memory; write nothing")
    parser.add_argument("--json", action="store_true", help="with --dry-run: print one JSON object")
    parser.add_argument("--account", action="store_true", help="with --dry-run: by formula, without data and steps")
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="on a disk without flock: the process that is named as working in the run's directory has ended",
    )
    formula = parser.add_argument_group("of --account")
    formula.add_argument("--n-ctx", type=int, help="tokens per clip (default: those of data.cache)")
    formula.add_argument("--gpu", help=f"one of {', '.join(GPUS)} (default h100)")
    formula.add_argument("--gpus", type=int, help="GPUs that share each step (default 1)")
    formula.add_argument("--mfu", type=float, help="fraction of the GPU's peak reached (default 0.4)")
    formula.add_argument("--gpu-memory", type=float, metavar="GB", help="of one GPU (default: the largest sold)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys that override the file's")
    return parser


def main() -> int:
    command = parser()
    arguments = command.parse_intermixed_args()
    check_paths(command, arguments)
    from videoscaling.data.index import check_cache
    from videoscaling.training.config import cache_folders, load_config

    config = load_config(arguments.config, arguments.overrides)
    if arguments.json and not arguments.dry_run:
        raise UserError("--json: goes with --dry-run; a run leaves result.json")
    if arguments.account and not arguments.dry_run:
        raise UserError("--account: goes with --dry-run")
    assumed = {
        name: value
        for name in ("n_ctx", "gpu", "gpus", "mfu", "gpu_memory")
        if (value := getattr(arguments, name)) is not None
    }
    if assumed and not arguments.account:
        raise UserError(f"--{next(iter(assumed)).replace('_', '-')}: goes with --dry-run --account")
    if arguments.account:
        from videoscaling.training.planning.account import Machine, print_account

        n_ctx, memory = assumed.pop("n_ctx", None), assumed.pop("gpu_memory", None)
        machine = Machine(**assumed, memory_gb=memory)
        return print_account(config, n_ctx, machine._replace(gpu=machine.gpu.lower()), arguments.json)
    for folder in cache_folders(config):  # before torch is imported, which takes seconds
        check_cache(folder)
    if arguments.dry_run:
        from videoscaling.training.planning.dry_run import dry_run

        return leave(dry_run(config, arguments.json))
    if arguments.take_over and is_first_process():
        release_abandoned(config.run_dir)
    with resumable(str(config.run_dir)):
        # After the configuration, whose errors should not wait for torch.
        from videoscaling.training.train import train

        return leave(train(config))


def key_of(option: str) -> str:
    """A hint for an unknown option, such as --lr, that is a key here; empty for another."""
    from videoscaling.training.config import key_hint

    return key_hint(option.lstrip("-").replace("-", "_"))


def leave(status: int) -> int:
    """``status``; with it, one process of several ends here and now, all its files being closed.

    Python's own end takes process groups apart in any order: with a sharded model one time in eight aborted there; a
    replicated one was seen to once, though its group had been closed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    run_cli(main)
