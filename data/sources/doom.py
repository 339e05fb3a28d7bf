"""Captioned clips of a first-person game: levels of Freedoom, played and drawn by ViZDoom (``pip install vizdoom``).

Walk w is a function of (seed, w): a level, and in it CLIPS times a random place, direction and motion. Each walk
starts the game anew, since a later episode of one game differs from a first one in a few pixels. The caption names the
motion, the level and what is in view half way. Validation has levels of its own.

ViZDoom is under the MIT licence, its engine ZDoom under several, and Freedoom's levels and pictures under the
3-clause BSD licence: clips may be used and shared, with Freedoom's copyright notice.
"""

import importlib.util
import re
import tempfile
from contextlib import ExitStack, chdir
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from videoscaling.utils.errors import UserError
from videoscaling.utils.random import derive_seed, uniform

VERSION = 1  # raised when levels, motions or captions change
HEIGHT, WIDTH = 120, 160  # as the game draws; clips are cut from the centre
CLIPS = 32  # of a walk; starting the game takes as long as ten of them
TICS = 2  # from one frame to the next
FPS = 35 / TICS
SETTLE = 6  # tics from arriving to the first frame
MIN_AREA = 40  # pixels of a thing that the caption names
NAMED = 2  # things that it names at most
# By game: its file, and its levels. Every eighth is for validation alone.
LEVELS = [("freedoom1", f"E{e}M{m}") for e in range(1, 5) for m in range(1, 10)]
LEVELS += [("freedoom2", f"MAP{m:02d}") for m in range(1, 33)]
HELD_OUT = LEVELS[3::8]
# What the caption says, and the game's forward, sideways and turning speeds, and whether the player shoots.
MOTIONS = {
    "walking forward": (25, 0, 0, 0),
    "walking forward and turning right": (25, 0, 2, 0),
    "walking forward and turning left": (25, 0, -2, 0),
    "turning right": (0, 0, 3, 0),
    "turning left": (0, 0, -3, 0),
    "walking backward": (-15, 0, 0, 0),
    "stepping right": (0, 20, 0, 0),
    "stepping left": (0, -20, 0, 0),
    "standing and shooting": (0, 0, 0, 1),
}
ON_THE_SPOT = "turning right"  # what a player does instead of leaving the level
UNNAMED = re.compile("Player|Puff|Blood|Smoke|Fog|Spot|Gibs|Nonsolid")  # the player's own, effects and scenery


def game_version() -> str:
    """ViZDoom's version, which determines the pictures.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("vizdoom") is None:
        raise UserError("--source doom: pip install vizdoom")
    import vizdoom

    return vizdoom.__version__


def play(walk: int, clips: int, seed: int, frames: int, validation: bool = False) -> tuple[list[str], np.ndarray]:
    """The first ``clips`` clips of a walk.

    Args:
        walk: which one of the data set ``seed``.
        clips: at most ``CLIPS``.
        validation: whether its level is one of ``HELD_OUT``, or one of the others.

    Returns:
        captions, and frames uint8 [clips, frames, HEIGHT, WIDTH, 3].
    """
    levels = HELD_OUT if validation else [level for level in LEVELS if level not in HELD_OUT]
    draws = uniform(seed, "doom/walk", torch.tensor([walk]), 1 + 3 * CLIPS)[0].tolist()
    wad, level = levels[int(draws[0] * len(levels))]
    captions, pictures = [], []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as games:

        def start() -> Any:
            game = _start(wad, level, derive_seed(seed, f"doom/game {walk}") % 2**31, Path(folder))
            games.callback(game.close)
            return game

        game = start()
        things = [thing for thing in game.get_state().objects if "Player" not in thing.name]
        places = [(thing.position_x, thing.position_y) for thing in things]
        for clip in range(clips):
            place, turn, motion = draws[1 + 3 * clip : 4 + 3 * clip]
            where, doing = places[int(place * len(places))], list(MOTIONS)[int(motion * len(MOTIONS))]
            shown = _clip(game, where, 360 * turn, doing, frames)
            if shown is None:  # one clip of 500 walks through the level's exit, which ends the game
                game, doing = start(), ON_THE_SPOT
                shown = _clip(game, where, 360 * turn, doing, frames)
            captions.append(f"{doing} in Freedoom level {level}{_in_view(shown.labels)}")
            pictures.append(shown.frames)
    return captions, np.stack(pictures)


class _Shown(NamedTuple):
    """Frames uint8 [frames, HEIGHT, WIDTH, 3], and the game's labels of the middle one."""

    frames: np.ndarray
    labels: Any


def _clip(game: Any, place: tuple[float, float], turn: float, doing: str, frames: int) -> _Shown | None:
    """One clip from ``place``, turned by ``turn`` degrees; None where the player leaves the level."""
    game.send_game_command(f"warp {place[0]} {place[1]}")
    game.make_action([0, 0, turn, 0], 1)
    game.make_action([0, 0, 0, 0], SETTLE - 1)
    shown, labels = [], None
    for frame in range(frames):
        state = game.get_state()
        if state is None:
            return None
        shown.append(state.screen_buffer.copy())
        if frame == frames // 2:
            labels = state.labels
        game.make_action(list(MOTIONS[doing]), TICS)
    return _Shown(np.stack(shown), labels)


def _start(wad: str, level: str, seed: int, folder: Path) -> Any:
    """A game at the beginning of a level; its own files are written into ``folder``."""
    import vizdoom
    from vizdoom import Button

    game = vizdoom.DoomGame()
    game.set_doom_game_path(str(Path(vizdoom.__file__).with_name(f"{wad}.wad")))
    game.set_doom_map(level)
    game.set_doom_config_path(str(folder / "game.ini"))
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.set_render_hud(False)
    game.set_render_messages(False)
    game.set_labels_buffer_enabled(True)
    game.set_objects_info_enabled(True)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_episode_timeout(0)
    game.set_available_buttons(
        [
            Button.MOVE_FORWARD_BACKWARD_DELTA,
            Button.MOVE_LEFT_RIGHT_DELTA,
            Button.TURN_LEFT_RIGHT_DELTA,
            Button.ATTACK,
        ]
    )
    game.set_seed(seed)
    with chdir(folder):  # where it makes a folder _vizdoom
        game.init()
    game.send_game_command("cl_showsecretmessage 0")  # text in the middle of the picture
    game.send_game_command("god")  # a player who dies sees the floor
    game.make_action([0, 0, 0, 0], 20)  # until the weapon is up
    return game


def _in_view(labels: Any) -> str:
    """The largest things in view, as the end of a caption: ", with a zombieman and a medikit in view"."""
    areas: dict[str, int] = {}
    for label in labels:
        if not UNNAMED.search(label.object_name):
            areas[label.object_name] = max(areas.get(label.object_name, 0), label.width * label.height)
    names = sorted((name for name in areas if areas[name] >= MIN_AREA), key=lambda name: (-areas[name], name))[:NAMED]
    words = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() for name in names]
    things = [f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in words]
    return f", with {' and '.join(things)} in view" if things else ""


def check_size(height: int, width: int) -> None:
    """Raise UserError where the game's frames would be enlarged, which teaches a model blur."""
    if height > HEIGHT or width > WIDTH:
        raise UserError(f"--size {height}x{width}: the game's frames have {HEIGHT}x{WIDTH} pixels (height x width)")
