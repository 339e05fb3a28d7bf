"""The key that runs of one stack share, and the memory of one run of a stack. No torch here."""

import json

from videoscaling.training.config import Config, flatten, to_dict
from videoscaling.training.keys import info_of
from videoscaling.training.run import Run

TEXT_TOKENS = 64  # of a caption whose length is not known yet


def stack_key(config: Config) -> str:
    """The settings that runs of one stack must share, as text: equal for runs that can be stacked."""
    infos = info_of(type(config))
    shared = {name: value for name, value in flatten(to_dict(config)).items() if not infos[name].differs_in_stack}
    return json.dumps(shared, sort_keys=True)


def row_bytes(run: Run) -> float:
    """Bytes of one run of a stack, by formula: seven numbers a parameter, activations, and attention's scores."""
    model, width = run.config.model, run.config.model.width
    around = 16 * width**2 + 1024 * width  # parameters outside the blocks' matrices
    clips = min(run.config.train.micro_batch or run.clips, run.clips)
    scores = 4 * model.heads * (run.n_ctx + TEXT_TOKENS)
    return 4 * 7 * (run.N + around) + clips * run.n_ctx * model.layers * (122 * width + 3 * scores)
