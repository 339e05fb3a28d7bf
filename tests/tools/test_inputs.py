"""Every option of every command that reads a path: what is missing, of the wrong kind, empty or no text is one line
that names the option, the path and the fix, before anything is written."""

import argparse
from pathlib import Path

import pytest

from tests.commands import call
from tests.test_options import ROOT, parsers_of
from videoscaling.tools.update_docs import SCRIPTS
from videoscaling.utils.errors import UserError, path_text
from videoscaling.utils.inputs import CHECKED_BYTES, Input, check_input, check_output

LAW, CELLS = ROOT / "configs/laws/paper.json", ROOT / "results/mini/cells"
CONFIG, SWEEP = ROOT / "configs/train/mini.yaml", ROOT / "configs/sweep/quickstart.yaml"
# The rest of a command line that is right; {out} is not there. A positional path is its last word.
RIGHT = {
    "benchmark.py": "",
    "train.py": "",
    "sample.py": "--prompt x --out {out}",
    "cache_latents.py": f"--source {CELLS} --out {{out}}",
    "cache_latents.py --root": f"--source {CELLS} --out {{out}}",
    "evaluate_samples.py": "embedded",
    "evaluate_vae.py": "",
    "export.py": f"--checkpoint {CELLS} --out {{out}}",
    "fit.py": f"all --out {{out}} {CELLS}",
    "fit.py --prior": f"hyperparameters --method grids --out {{out}} {CELLS}",
    "plan.py": f"--law {LAW} --flops 1e20 --out {{out}}",
    "predict.py": f"--law {LAW} --out {{out}} {LAW}",
    "presets.py": f"--law {LAW} --base {CONFIG} --out {{out}} --page {{out}} 2x96:3e6",
    "replay.py": f"{LAW}",
    "report.py": f"--law {LAW} --out {{out}} {CELLS}",
    "study.py": f"--law {LAW} {CELLS}",
    "sweep.py run": f"run {SWEEP}",
    "sweep.py status": f"status {SWEEP}",
    "sweep.py collect": f"collect {SWEEP}",
    "sweep.py extend": f"extend {SWEEP}",
    "sweep.py simulate": f"simulate {SWEEP}",
    "train_vae.py": "--out {out}",
}


def path_options() -> list[tuple[Path, str, argparse.Action]]:
    """(Script, its name with the subcommand, option) of all options that name a path."""
    return [
        (script, parser.prog, action)
        for script in SCRIPTS
        for parser in parsers_of(script)
        for action in parser._actions
        if action.type in (path_text, Path) and action.help != argparse.SUPPRESS
    ]


READ = [option for option in path_options() if option[2].reads]
WRITTEN = [option for option in path_options() if not option[2].reads]


def test_every_path_is_known_to_be_read_or_written() -> None:
    unknown = [(prog, action.dest) for _, prog, action in WRITTEN if not action.writes]
    assert unknown == [("cache_latents.py", "out")]  # with --verify it is read
    assert len(READ) > 30
    assert len(WRITTEN) > 15


def bad_paths(kind: Input, folder: Path) -> dict[str, Path]:
    """Paths that are no input of this kind, by what is wrong."""
    (folder / "folder").mkdir()
    (folder / "file").write_text("text\n")
    (folder / "empty").touch()
    (folder / "bytes.csv").write_bytes("caf\u00e9\n".encode("latin-1"))
    (folder / "loop").symlink_to("loop")
    bad = {"no such ": folder / "missing", "too many levels of symbolic links": folder / "loop"}
    if not kind.folder:
        bad["a folder; give "] = folder / "folder"
    if kind.file:
        bad["an empty file; give "] = folder / "empty"
    if kind.file and kind.is_text(folder / "bytes.csv"):
        bad["not UTF-8 text (byte 3); save it as"] = folder / "bytes.csv"
    if not kind.file:
        bad["a file; give "] = folder / "file"
    return bad


@pytest.mark.parametrize(
    ("script", "prog", "action"),
    READ,
    ids=[f"{prog} {action.option_strings or action.dest}" for _, prog, action in READ],
)
def test_a_bad_path_is_one_line_with_option_path_and_fix(
    script: Path, prog: str, action: argparse.Action, tmp_path: Path
) -> None:
    option = action.option_strings[0] if action.option_strings else ""
    words = RIGHT.get(f"{prog} {option}", RIGHT[prog]).format(out=tmp_path / "out").split()
    bad = bad_paths(action.reads, tmp_path)
    before = sorted(tmp_path.iterdir())
    for wrong, path in bad.items():
        typed = [*words, option, path] if option else [*words[:-1], path]
        done = call(str(script.relative_to(ROOT)), *typed)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {f'{option} {path}'.strip()}: {wrong}")
        assert done.stderr.count("\n") == 1
        assert action.reads.what in done.stderr or "choose another path" in done.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("script", "prog", "action"), WRITTEN, ids=[f"{prog} {action.option_strings[0]}" for _, prog, action in WRITTEN]
)
def test_a_path_that_cannot_be_written_is_refused_before_the_work(
    script: Path, prog: str, action: argparse.Action, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fit.py said so after the fit, sample.py after the first videos, evaluate_samples.py after all models."""
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path / "closed")  # root may write everywhere
    (tmp_path / "file").write_text("text")
    (tmp_path / "closed").mkdir()
    option, words = action.option_strings[0], RIGHT[prog].format(out=tmp_path / "out").split()
    for place, rest, reason in (
        ("file", "x", "is a file"),
        ("file", "new/x", "is a file"),
        ("closed", "new/x", "may not be written to"),
    ):
        path = tmp_path / place / rest
        done = call(str(script.relative_to(ROOT)), *words, option, path)
        message = f"error: {option} {path}: {tmp_path / place} {reason}; choose another path\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["closed", "file"]


def test_what_is_written_may_be_there_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    for path in ("file", "new", "a/b/new", "/dev/null", "/dev/stdout"):
        check_output(path, path)
    for path in (".", "new", "a/b/new", "/tmp"):
        check_output(path, path, folder=True)
    with pytest.raises(UserError, match=r"^file: is a file; name a folder$"):
        check_output("file", "file", folder=True)
    with pytest.raises(UserError, match=r"^\.: is a folder; name a file$"):
        check_output(".", ".")


def test_a_nearly_right_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "laws.json").write_text("{}")
    with pytest.raises(UserError, match=r"^--law .*law\.json: no such file; did you mean 'laws\.json'\?$"):
        check_input(f"--law {tmp_path / 'law.json'}", tmp_path / "law.json", Input("a law file"))


def test_a_character_at_the_end_of_what_is_checked_is_text(tmp_path: Path) -> None:
    text = b"x" * (CHECKED_BYTES - 1) + "\u00e9".encode()
    (tmp_path / "long").write_bytes(text)
    check_input("long", tmp_path / "long", Input("a text"))
