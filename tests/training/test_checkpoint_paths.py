"""A run without a checkpoint is refused with what it waits for; a checkpoint under a name of the user's is none."""

from pathlib import Path

import pytest
import yaml

from videoscaling.training.checkpoints.paths import check_exists
from videoscaling.training.config import load_config, to_dict
from videoscaling.utils.errors import UserError
from videoscaling.utils.files import write_json
from videoscaling.utils.locks import lock_run_dir


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run directory without a checkpoint, of 1,500 steps with one every 1,000 and after 20 minutes."""
    keys = ["train.batch_tokens=64", "train.tokens=96000", "train.milestones=[96000]", "checkpoint.every_minutes=20"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(load_config(None, keys))))
    return tmp_path


def test_the_first_checkpoint_of_a_run_is_announced(begun: Path) -> None:
    when = "the first is written at step 1,000, after 20 minutes or when it is stopped"
    with lock_run_dir(begun), pytest.raises(UserError, match=f"has no checkpoint yet; {when}$"):
        check_exists(begun)
    with pytest.raises(UserError, match=f"{when}; no process trains it here, so repeat its train.py command$"):
        check_exists(begun)
    write_json(begun / "result.json", {"status": "diverged", "milestones": []})
    with pytest.raises(UserError, match="diverged before its first checkpoint; train it under another name, at a lo"):
        check_exists(begun)


def test_a_renamed_checkpoint_is_no_run_without_one(begun: Path) -> None:
    (begun / "state.json").touch()
    check_exists(begun)
