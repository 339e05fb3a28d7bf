"""A process's share of a cache's shards: alone, in a torchrun, or as a task of a Slurm array."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from videoscaling.utils.errors import UserError
from videoscaling.utils.messages import warn

SLURM = "SLURM_ARRAY_TASK_"


class WorkShare(NamedTuple):
    """The number of this process among those that make a cache: ``rank`` of ``world``, from 0."""

    rank: int = 0
    world: int = 1


def this_share(option: str = "auto", environ: Mapping[str, str] = os.environ) -> WorkShare:
    """This process's share.

    Args:
        option: "auto" (of a torchrun, a Slurm array, or an array of torchruns, by the environment), "none" (all of the
            work), or "R/N" with R from 0 to N - 1.

    Raises:
        UserError: no such option; an array whose numbers are not in a row; variables that are no numbers.
    """
    if option == "none":
        return WorkShare()
    rank, world = _number(environ, "RANK", 0), _number(environ, "WORLD_SIZE", 1)
    if option != "auto":
        return _named_share(option, world)
    if not from_slurm(environ):
        return WorkShare(rank, world)
    number, first, tasks, step = (
        _number(environ, SLURM + name, default) for name, default in (("ID", 0), ("MIN", 0), ("COUNT", 1), ("STEP", 1))
    )
    task, off = divmod(number - first, max(step, 1))
    if off or not 0 <= task < tasks:
        raise UserError(
            "this Slurm array's numbers have gaps, so that its tasks cannot share the work; "
            f"submit it with --array=0-{tasks - 1}, or give --share none for all of it"
        )
    return WorkShare(task * world + rank, tasks * world)


def from_slurm(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether "auto" takes the share from a Slurm array."""
    return SLURM + "ID" in environ


def slurm_warning(share: WorkShare, environ: Mapping[str, str] = os.environ) -> str | None:
    """The warning that "auto" leaves a part of the work to other tasks of a Slurm array; None if it does not."""
    if not from_slurm(environ) or _number(environ, SLURM + "COUNT", 1) < 2:
        return None
    return (
        f"task {environ[SLURM + 'ID']} of a Slurm array: this process makes 1/{share.world} of the cache "
        f"(share {share.rank}/{share.world}) and leaves the rest to the array's other tasks; --share none makes all "
        "of it, where the array is for something else"
    )


def _named_share(option: str, world: int) -> WorkShare:
    match = re.fullmatch(r"(\d+)/(\d+)", option, re.ASCII)
    if not match or not int(match[1]) < int(match[2]):
        raise UserError(f"--share {option}: neither auto, none nor R/N with R from 0 to N - 1, such as 0/4 to 3/4")
    if world > 1:
        raise UserError(
            f"--share {option} is for one process; the {world} of this torchrun share the work by "
            "themselves (--share auto)"
        )
    return WorkShare(int(match[1]), int(match[2]))


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(environ.get(name, default))
    except ValueError:
        raise UserError(
            f"{name}={environ[name]} in the environment is no number; unset it, or give --share none"
        ) from None


def warn_of_node(text: str) -> None:
    """Print a warning, once a node."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        warn(text)
