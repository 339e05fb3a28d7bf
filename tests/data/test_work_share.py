"""Which part of a cache a process makes."""

import pytest

from videoscaling.data.work_share import WorkShare, slurm_warning, this_share
from videoscaling.utils.errors import UserError

ARRAY = {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "10"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("option", "environ", "share"),
    [
        ("auto", ARRAY, (4, 10)),
        ("auto", ARRAY | TORCHRUN, (35, 80)),
        ("none", ARRAY, (0, 1)),
        ("none", ARRAY | TORCHRUN, (0, 1)),
        ("0/1", ARRAY, (0, 1)),
        ("2/3", ARRAY, (2, 3)),
        ("2/3", {}, (2, 3)),
    ],
)
def test_a_share_is_named_or_from_the_environment(option, environ, share):
    assert this_share(option, environ) == WorkShare(*share)


@pytest.mark.parametrize(
    ("option", "environ", "message"),
    [
        ("3/3", {}, "--share 3/3: neither auto, none nor R/N with R from 0 to N - 1"),
        ("-1/3", {}, "--share -1/3: neither"),
        ("half", {}, "--share half: neither"),
        ("0/0", {}, "--share 0/0: neither"),
        ("0/2", TORCHRUN, "is for one process; the 8 of this torchrun"),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID=x in the environment is no number"),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_ID": "12"}, "--array=0-9, or give --share none"),
        ("auto", {"RANK": ""}, "RANK= in the environment is no number"),
    ],
)
def test_a_bad_share_is_a_users_error(option, environ, message):
    with pytest.raises(UserError, match=message):
        this_share(option, environ)


def test_a_share_of_an_array_is_warned_of():
    assert slurm_warning(WorkShare(4, 10), ARRAY).startswith(
        "task 4 of a Slurm array: this process makes 1/10 of the cache (share 4/10)"
    )
    assert "--share none" in slurm_warning(WorkShare(4, 10), ARRAY)
    assert slurm_warning(WorkShare(3, 8), TORCHRUN) is None
    assert slurm_warning(WorkShare(), ARRAY | {"SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MIN": "4"}) is None
