"""Train a video DiT on cached latents.

    python train.py --config configs/train/base.yaml data.cache=runs/latents model.size=2x64 train.tokens=2e5
    torchrun --nproc_per_node 8 train.py --config configs/train/base.yaml optim.lr=3e-4

The same command again continues the run; a finished one is left as it is.
"""

import argparse

from utils.errors import run_cli


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="a YAML file; see configs/train and training/config.py for the keys")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys that override the file's")
    arguments = parser.parse_intermixed_args()
    from training.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from training.trainer import train  # after the configuration: its errors should not wait for torch

    return train(config)


if __name__ == "__main__":
    run_cli(main)
