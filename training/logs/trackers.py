"""Weights & Biases and Trackio: a run's points in a tracker of the user's, over tokens as in TensorBoard.

Results do not depend on a tracker, so a fault of it ends in a warning. Keys and servers are the packages' own matter
(WANDB_API_KEY, WANDB_MODE=offline, TRACKIO_SPACE_ID, ...); no configuration or file of a run holds them, and no path
of this machine is sent as a setting.
"""

import contextvars
import functools
import importlib
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from videoscaling.training.config import Config, identity, run_id
from videoscaling.training.keys import info_of
from videoscaling.training.run import label
from videoscaling.utils.errors import UserError, first_line
from videoscaling.utils.files import write_text
from videoscaling.utils.messages import warn
from videoscaling.utils.os_errors import warn_of_os_error

PROJECT = "videoscaling"  # unless WANDB_PROJECT or TRACKIO_PROJECT names another
FILE = "tracker_id"  # in the run directory: a run that is started again continues its runs in the trackers


class Tracker:
    """A run of a tracker, which its first error ends with a warning.

    Args:
        start: starts or continues the tracker's run, which has methods ``log`` and ``finish``.
    """

    def __init__(self, name: str, start: Callable[[], Any]) -> None:
        self._name, self._run = name, None
        self._run = self._guarded(start)

    def add_points(self, values: Mapping[str, float], tokens: int) -> None:
        if self._run is not None:
            self._guarded(self._run.log, dict(values), step=tokens)

    def close(self) -> None:
        if self._run is not None:
            self._guarded(self._run.finish)
            self._run = None

    def _guarded(self, call: Callable[..., Any], *args: Any, **named_args: Any) -> Any:
        try:
            return call(*args, **named_args)
        except Exception as error:  # any of another library's
            self._run = None
            warn(f"log.to: {self._name} has no more of this run until it is started again: {first_line(error)}")
            return None


def load(name: str) -> ModuleType:
    """The tracker's package; UserError where it is not installed."""
    try:
        package = importlib.import_module(name)
    except ImportError:
        package = None
    if not hasattr(package, "init"):  # a folder of that name, such as wandb makes, is imported too
        raise UserError(f"log.to: {name} is not installed; pip install {name}, or leave it out of log.to")
    return package


def check_installed(config: Config) -> None:
    """Raise UserError if a tracker in ``log.to`` is not installed."""
    for name in STARTS.keys() & config.log.to:
        load(name)


def open_trackers(config: Config, settings: Mapping[str, object]) -> list[Tracker]:
    """The trackers in ``log.to``, with ``settings`` and the keys that determine the run as its configuration there.

    Its name is its size, batch, rate and seed, and its group the sweep, if it is a sweep's cell.
    """
    names = [name for name in config.log.to if name in STARTS]
    path = config.run_dir / FILE
    with warn_of_os_error(f"log.to={names}: not used, as this run could not be continued there"):
        if names and not path.exists():
            write_text(path, uuid.uuid4().hex)
        infos, folder = info_of(Config), Path(config.name)
        keys = {name: value for name, value in identity(config).items() if not (name in infos and infos[name].path)}
        common = {
            "name": label(config) if folder.name == run_id(config) else folder.name,
            "group": None if folder.parent == Path() else str(folder.parent),
            "config": keys | dict(settings),
        }
        return [
            Tracker(
                name,
                functools.partial(
                    STARTS[name],
                    load(name),
                    folder=config.run_dir,
                    number=path.read_text().strip(),
                    project=os.environ.get(f"{name.upper()}_PROJECT", PROJECT),
                    **common,
                ),
            )
            for name in names
        ]
    return []


def _start_wandb(wandb: ModuleType, *, folder: Path, number: str, **common: Any) -> Any:
    """A run of its own beside those of other runs in this process, continued by its id."""
    settings = wandb.Settings(console="off", save_code=False, disable_git=True)
    more = {"id": number, "resume": "allow", "allow_val_change": True, "reinit": "create_new"}
    return wandb.init(dir=str(folder), settings=settings, **more, **common)


def _start_trackio(trackio: ModuleType, *, folder: Path, number: str, name: str, **common: Any) -> Any:
    """A run in a context of its own, as trackio ends the run before in the same one. It continues the latest run of a
    name, which a cell of another sweep may have, so the name ends in digits of ``number``."""
    own = {"name": f"{name}_{number[:6]}", "resume": "allow", "embed": False}
    return contextvars.Context().run(functools.partial(trackio.init, **own, **common))


STARTS: dict[str, Callable[..., Any]] = {"wandb": _start_wandb, "trackio": _start_trackio}
