"""Whether a checkpoint can be where one is named. No torch here: its import takes seconds."""

from math import ceil
from pathlib import Path

from videoscaling.training.config import CONFIG, config_of_run
from videoscaling.utils.errors import UserError, nearest_path
from videoscaling.utils.files import pickles
from videoscaling.utils.locks import is_locked
from videoscaling.utils.results import FILE, read_result

PREFIX = "step_"
STATE = "state.json"


def check_exists(path: str | Path) -> None:
    """Refuse a ``path`` where nothing is, a cache of latents, and a run that has not written a checkpoint yet.

    "embedded", the model that ships here, always exists.

    Raises:
        UserError: names what is there, and for a run when its first checkpoint comes.
    """
    folder = Path(path)
    if str(path) == "embedded":
        return
    if not folder.exists():
        raise UserError(f"{path}: no such checkpoint or run directory{nearest_path(folder, [Path('runs', folder)])}")
    if (folder / "index.json").is_file():
        raise UserError(
            f"{path}: a cache of latents, which train.py reads as data.cache; give a run directory, such as runs/x"
        )
    is_checkpoint = folder.name.startswith(PREFIX) or (folder / STATE).is_file()
    if (folder / CONFIG).is_file() and not is_checkpoint and not any((folder / "checkpoints").glob(f"{PREFIX}*")):
        _refuse_run_without_checkpoint(folder)


def instead_of_file(file: Path) -> str:
    """What to give where a ``file`` is given for a checkpoint, which is a folder; to append to a message."""
    inside = (file.parent / STATE).is_file()
    return f"; give {file.parent}, the checkpoint that it is part of" if inside else pickles(file)


def _refuse_run_without_checkpoint(folder: Path) -> None:
    if (folder / FILE).is_file() and read_result(folder / FILE)["status"] == "diverged":
        raise UserError(
            f"{folder}: diverged before its first checkpoint; train it under another name, at a lower rate"
        )
    config = config_of_run(folder)
    if config is None or not config.train.batch_tokens:
        return
    train, checkpoint = config.train, config.checkpoint
    first = min([checkpoint.every_steps, *(ceil(tokens / train.batch_tokens) for tokens in train.milestones)])
    minutes = f", after {checkpoint.every_minutes:g} minutes" if checkpoint.every_minutes else ""
    ended = "" if is_locked(folder) else "; no process trains it here, so repeat its train.py command"
    raise UserError(
        f"{folder}: has no checkpoint yet; the first is written at step {first:,}{minutes} or when it is "
        f"stopped{ended}"
    )
