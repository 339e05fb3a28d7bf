"""Which runs may be trained in one process, and how many at once. No torch here."""

import json

from training.config import Config, flatten, to_dict

# What runs that share their steps may each have their own of; beside their seeds, while those of their data agree.
OWN = (
    "name",
    "heldout",
    "seed",
    "data.seed",
    "optim.lr",
    "optim.beta1",
    "optim.beta2_half_life",
    "optim.eps",
    "optim.weight_decay",
    "optim.clip",
    "optim.schedule",
    "optim.warmup_tokens",
    "optim.decay_fraction",
)


def stack_key(config: Config) -> str:
    """What runs must have in common to be trained in lock-step: equal where they do."""
    shared = {name: value for name, value in flatten(to_dict(config)).items() if name not in OWN}
    return json.dumps(shared | {"data seed": config.data_seed}, sort_keys=True)
