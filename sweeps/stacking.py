"""Which runs of a sweep are trained in one process, and how many at once. No torch here."""

import math
from collections.abc import Sequence

from videoscaling.training.run import Run
from videoscaling.training.stacked.stack_key import row_bytes, stack_key

# Limits of automatic stacks: the most runs, and the largest runs that become faster. On the CPU that is batch tokens
# x width: four runs of 2x64 were 1.3, 1.2, 1.1 and 1.0 times as fast as alone at 80, 160, 320 and 640 tokens, of 3x96
# at 320 as fast; compiled, eight runs of 2x64 at 128 tokens and of 4x64 at 512 were 2.0 times as fast
# (docs/stacked_runs.md). On a GPU it is N, and nothing was measured.
MAX_STACK, MAX_WORK, MAX_WORK_COMPILED, MAX_N_ON_GPU = 16, 20_480, 65_536, 3e6


def stacks(runs: Sequence[Run], stack: int | str, gpu: bool, workers: int, memory: float) -> list[list[Run]]:
    """``runs`` in groups that are trained together, each in a process; in the order of their first.

    Args:
        stack: the most runs in a group; or "auto": up to ``MAX_STACK``, as many as fit into half of ``memory`` and
            leave some for every worker, and only runs so small that it makes them faster.
        gpu: whether a process has one.
        workers: processes at a time.
        memory: bytes that a process may use.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(stack_key(run.config), []).append(run)
    found = []
    for group in groups.values():
        group.sort(key=lambda run: run.config.data_seed)  # samples are worked out once for all that see the same
        limit = stack if isinstance(stack, int) else _automatic_size(group[0], gpu, len(runs) / workers, memory)
        if group[0].config.train.activation_checkpointing:  # a stack would spend the memory that it saves
            limit = 1
        parts = math.ceil(len(group) / limit)
        found += [group[len(group) * n // parts : len(group) * (n + 1) // parts] for n in range(parts)]
    place = {id(run): number for number, run in enumerate(runs)}
    return sorted(found, key=lambda group: min(place[id(run)] for run in group))


def _automatic_size(run: Run, gpu: bool, each: float, memory: float) -> int:
    """The number of runs like this one in an automatic stack."""
    config = run.config
    work = config.train.batch_tokens * config.model.width
    if run.N > MAX_N_ON_GPU if gpu else work > (MAX_WORK_COMPILED if config.train.compile else MAX_WORK):
        return 1
    return max(min(MAX_STACK, int(memory / 2 / row_bytes(run)), math.ceil(each)), 1)
