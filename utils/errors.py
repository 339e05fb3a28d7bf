"""User errors: one clear line and exit status 2, never a traceback."""

import argparse
import errno
import io
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from videoscaling.utils.messages import escaped
from videoscaling.utils.os_errors import concerns_one_process, describe

LISTED = 20
MAX_NAMES = 10_000  # of a folder's files that are compared with a mistyped one: a tenth of a second
REQUIRED = "the following arguments are required: "  # argparse's
NUMBERS = {"int": "a whole number, such as 8", "float": "a number without a unit, such as 0.5 or 1e22"}
PREEMPTED = 75  # EX_TEMPFAIL: a signal stopped the command; run the same command again
CONTINUES = "the same command continues"


class UserError(Exception):
    """An error in the user's input. The message names the thing and the fix, in one line.

    With several processes the first of each node prints it.
    """


class OwnError(UserError):
    """A UserError that may concern one process only, such as its part of the data or its GPU's memory.

    Every process that meets it prints it.
    """


class DataFault(UserError):
    """Damaged or non-finite training or validation data: not a result, and a fault for every run that reads them."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors: one line, without the usage that argparse prints first.

    Options of the types ``Path`` and ``path_text`` have the home directory for a leading ~.

    Args:
        key_of: a hint for an unknown option that is a configuration key, such as --lr; empty for another.
    """

    def __init__(self, *args: Any, key_of: Callable[[str], str] | None = None, **more: Any) -> None:
        self._key_of, self._aliases = key_of, {}
        # Unabbreviated: sample.py's --n, for a number of videos, would be --negative-prompt.
        super().__init__(*args, allow_abbrev=False, **more)
        self.register("type", Path, user_path)  # of groups' options too

    def add_argument(
        self, *names: Any, aliases: tuple[str, ...] = (), reads: object = None, writes: str | None = None, **more: Any
    ) -> argparse.Action:
        """As argparse's; an error for one of ``aliases``, other programs' names for this option, names ours.

        ``reads`` is the ``utils.inputs.Input`` that the option's path names; ``writes`` is "file" or "folder", where
        the command writes such a one at the path.
        """
        action = super().add_argument(*names, **more)
        action.reads, action.writes = reads, writes
        self._aliases |= dict.fromkeys(aliases, names[0])
        return action

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Before argparse, which would first report the required option that was given under another name as missing.
        if self._subparsers is None:
            for word in sys.argv[1:] if args is None else args:
                if word == "--":
                    break
                self._check_option(word.partition("=")[0])
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise argparse's ``message`` as a UserError, with the nearest choice, or what a number must be."""
        if wrong := re.fullmatch(r"argument (.+?): invalid (int|float) value: (.*)", message, re.DOTALL):
            option, kind, value = wrong.groups()
            message = f"{option} {value}: must be {NUMBERS[kind]}"
        elif wrong := re.fullmatch(r"argument .+?: invalid choice: '(.*?)' \(choose from (.*)\)", message, re.DOTALL):
            message += nearest(wrong[1], re.findall(r"[\w.+-]+", wrong[2]))
        elif message.startswith(REQUIRED):
            message = REQUIRED + "; ".join(_name_and_help(a) for a in self._actions if _is_in(a, message))
        raise UserError(message)

    def refuse_unread(self, arguments: argparse.Namespace, names: Sequence[str], reason: str) -> None:
        """Refuse the options ``names``, which would be ignored for this ``reason``, where they are not the default.

        Raises:
            UserError: one was given.
        """
        for name in names:
            if getattr(arguments, name) != self.get_default(name):
                raise UserError(f"--{name.replace('_', '-')}: {reason}; leave it out")

    def _check_option(self, word: str) -> None:
        known = list(self._option_string_actions)
        if not word.startswith("--") or word in known:
            return
        plain = word.replace("_", "-")
        if plain in known or plain in self._aliases:
            raise UserError(f"{word}: no such option; did you mean {self._aliases.get(plain, plain)!r}?")
        key = self._key_of(word) if self._key_of else ""
        close = [option[2:] for option in known if len(plain) > 4 and option.startswith(plain)]
        close = close or get_close_matches(plain[2:], [option[2:] for option in known if option[:2] == "--"], 1, 0.6)
        hint = f"; did you mean '--{close[0]}'?" if close else "; --help lists them"
        raise UserError(f"{word}: no such option{key or hint}")


def _argument_name(action: argparse.Action) -> str:
    """As argparse's messages name it."""
    return "/".join(action.option_strings) or str(action.metavar or action.dest)


def _is_in(action: argparse.Action, message: str) -> bool:
    return action.required and _argument_name(action) in message.removeprefix(REQUIRED).split(", ")


def _name_and_help(action: argparse.Action) -> str:
    first = (action.help or "").partition(";")[0].partition(" (")[0]
    return f"{_argument_name(action)}, {first}" if first else _argument_name(action)


def path_text(text: str) -> str:
    """An option's text that is a path, or a name that may be one, with the home directory for a leading ~."""
    return os.path.expanduser(text)  # noqa: PTH111 (a hub id is no Path)


def user_path(text: str) -> Path:
    """An option's path, with the home directory for a leading ~."""
    return Path(path_text(text))


def nearest(word: str, known: list[str], cutoff: float = 0.5) -> str:
    """``"; did you mean 'x'?"`` for the known word closest to ``word``, or an empty string below ``cutoff`` of 1.

    Upper and lower case are one.
    """
    folded = {name.lower(): name for name in reversed(known)}
    match = get_close_matches(word.lower(), list(folded)[::-1], n=1, cutoff=cutoff)
    return f"; did you mean {folded[match[0]]!r}?" if match else ""


def nearest_path(path: str | Path, others: Iterable[Path] = ()) -> str:
    """``"; did you mean 'x'?"`` for a missing ``path``: one of ``others`` that has its name, with or without an
    ending, or else the name most like it in its folder; an empty string without any."""
    missing = Path(path)
    with suppress(OSError, ValueError):  # a folder that may not be read, a path that cannot be one
        if missing.exists():  # as another kind of thing than is wanted
            return ""
        if same := [other for other in others if missing.name in (other.name, other.stem) and other.exists()]:
            return f"; did you mean {str(same[0])!r}?"
        while not missing.parent.exists():  # of runs/smal/result.json the folder is what is mistyped
            missing = missing.parent
        names = (entry.name for entry in missing.parent.iterdir() if not entry.name.startswith("."))
        return nearest(missing.name, sorted(islice(names, MAX_NAMES)), 0.75)
    return ""


def shown(value: object, limit: int = 60) -> str:
    """``value`` quoted for a message, cut at ``limit`` characters: a text given as a name may be a whole file."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def listed(names: Sequence[str]) -> str:
    """Columns or keys for a message: ``LISTED`` of them at most, each cut at 60 characters."""
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(name if len(name) <= 60 else f"{name[:57]}..." for name in names[:LISTED]) + more


def plural(count: int, one: str, many: str = "") -> str:
    """``count`` things as text: ``one`` of them, or ``many`` (by default with s or es): 1 clip, 2,000 clips."""
    many = many or one + ("es" if one.endswith("s") else "s")
    return f"{count:,} {one if count == 1 else many}"


def first_line(error: Exception) -> str:
    """The first line of another library's error message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _unread() -> bool:
    """Whether the reader of this process's stdout has closed it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


@contextmanager
def resumable(what: str, where: str = "") -> Iterator[None]:
    """On Ctrl-C or SIGTERM, print that the work can be continued (and ``where``), and exit with ``PREEMPTED``."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{what}: stopped; {CONTINUES}{where}", file=sys.stderr, flush=True)
        sys.exit(PREEMPTED)
    finally:
        # The work may have set its own to stay: a sweep that was stopped ignores a second signal to its end.
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, before)


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit with its status; users' errors exit with 2 and one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files need not be UTF-8
    own = False
    try:
        try:
            sys.exit(main() or 0)
        except SystemExit:
            sys.stdout.flush()  # here, so that a closed pipe is still recognised
            raise
    except UserError as error:
        message, own = str(error), isinstance(error, OwnError)
    except OSError as error:
        if error.errno == errno.EPIPE and _unread():
            # The reader (such as head) has closed the pipe: discard the rest, and Python's message about it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        described = describe(error)
        if described is None:
            raise
        message, own = described, concerns_one_process(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if own or os.environ.get("LOCAL_RANK", "0") == "0":  # one line a node, not one per process of a torchrun
        print(f"error: {escaped(message)}", file=sys.stderr)
    sys.exit(2)
