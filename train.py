"""Train a video DiT on cached latents.

    python train.py --config configs/train/base.yaml data.cache=runs/latents model.size=2x64 train.tokens=2e5
    torchrun --nproc_per_node 8 train.py --config configs/train/base.yaml optim.lr=3e-4

The same command again continues the run; a finished one is left as it is. With --dry-run it only says what the run
would be: its size, FLOPs, memory and, after a few steps, its time. docs/training.md has every key.
"""

import argparse
import os
import sys

from utils.errors import Parser, UserError, run_cli


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="a YAML file; see configs/train, and docs/training.md for the keys")
    parser.add_argument("--dry-run", action="store_true", help="say what the run would be and take; write nothing")
    parser.add_argument("--json", action="store_true", help="with --dry-run: print one JSON object")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys that override the file's")
    arguments = parser.parse_intermixed_args()
    from training.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    if arguments.json and not arguments.dry_run:
        raise UserError("--json: goes with --dry-run; a run leaves result.json")
    if arguments.dry_run:
        from training.dryrun import dry_run

        return leave(dry_run(config, arguments.json))
    from training.trainer import train  # after the configuration: its errors should not wait for torch

    return leave(train(config))


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
