"""Whether anything is where a checkpoint should be. No torch here: its import takes seconds."""

from pathlib import Path

from videoscaling.utils.errors import UserError


def check_exists(path: str | Path) -> None:
    """Raise UserError where ``path`` is neither "embedded", the model that ships here, nor a file or folder."""
    if str(path) != "embedded" and not Path(path).exists():
        raise UserError(f"{path}: no such checkpoint or run directory")
