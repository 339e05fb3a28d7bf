"""The options of every command: paths know the home directory, and an option that a mode ignores is refused."""

import argparse
import re
from pathlib import Path

import pytest

from tests.commands import call
from tests.test_examples import ROOT
from videoscaling.tools.update_docs import SCRIPTS, parser_of
from videoscaling.utils.errors import Parser, path_text

# Text that is no path. A new option of text is a path, or stands here.
TEXTS = {
    "about",
    "batch_unit",
    "caption_column",
    "columns",
    "device",
    "estimator",
    "fix",
    "gpu",
    "licence",
    "negative_prompt",
    "overrides",
    "pair",
    "path_column",
    "presets",
    "prompt",
    "scheduler",
    "share",
    "size",
    "window",
}


def parsers_of(path: Path) -> list[argparse.ArgumentParser]:
    """The parser of a command, or those of its subcommands."""
    parser = parser_of(path)
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return list(inner[0].choices.values()) if inner else [parser]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_path_has_the_home_directory_for_a_tilde(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for parser in parsers_of(path):
        for action in parser._actions:
            number = getattr(action.type, "__name__", "") in ("int", "float")
            if action.nargs == 0 or action.choices or number or action.dest in TEXTS:
                continue
            assert action.type in (path_text, Path), f"{action.dest}: neither a path nor listed in TEXTS"
            assert str(parser._get_value(action, "~/x")) == "/home/me/x"


def test_options_of_a_group_are_paths_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    parser = Parser()
    parser.add_argument_group("files").add_argument("--out", type=Path)
    assert parser.parse_args(["--out", "~/x"]).out == Path("/home/me/x")


IGNORED = [
    ("tools/cache_latents.py --out x --verify --source videos --share 0/2", "--share: not read with --verify"),
    ("tools/cache_latents.py --out x --verify --dry-run", "--dry-run: not read with --verify"),
    ("tools/cache_latents.py --out x --verify --size 64", "--size: not read by --verify without --source"),
    ("tools/cache_latents.py --out x --verify --caption-column a", "--caption-column: not read by --verify without"),
    (
        "tools/cache_latents.py --out x --source synthetic --fps 8",
        "--fps: for videos; synthetic clips are rendered",
    ),
    ("tools/cache_latents.py --out x --source synthetic --hop 8", "--hop: for videos"),
    ("tools/cache_latents.py --out x --source doom --shots histogram", "--shots: for videos"),
    ("tools/cache_latents.py --out x --source film --root y", "--root: not for --source film"),
    ("tools/cache_latents.py --out x --source synthetic --stride 2", "--stride: for videos"),
    ("tools/cache_latents.py --out x --source synthetic --no-captions", "--no-captions: for videos"),
    ("tools/cache_latents.py --out x --source synthetic --max-rejected 1", "--max-rejected: for videos"),
    ("tools/cache_latents.py --out x --source videos --seed 1", "--seed: for rendered clips"),
    ("tools/evaluate_vae.py --stride 2", "--stride: for videos"),
    ("tools/evaluate_samples.py videos --real others --guidance 2", "--guidance: for models"),
    ("tools/evaluate_samples.py embedded --real videos --size 64", "--size: the clips have the shape"),
    ("tools/evaluate_samples.py a.npy --real b.npy --clips 12", "--clips: not read with .npy files"),
    ("tools/benchmark.py peers --stack 4", "--stack: not read by the part peers"),
    ("tools/benchmark.py data --dtype bfloat16", "--dtype: not read by the part data"),
    ("tools/benchmark.py peers --size 2x64 --size 3x64", "--size: the part peers compares one size"),
    ("sample.py --checkpoint x --prompt a --format png --fps 4", "--fps: a png has its frames side by side"),
    *[
        (
            f"tools/fit.py hyperparameters x.csv --method surface {given}",
            f"{given.split()[0]}: not read by fit.py hyperparameters --method surface",
        )
        for given in ("--optima", "--fix B.N=0", "--prior", "--force")
    ],
    ("tools/fit.py all x.csv --method grids --form joint", "--form: not read by fit.py all --method grids"),
    ("tools/fit.py all x.csv --optima --form joint", "--form: not read by fit.py all --optima"),
    ("tools/fit.py compare x.csv --method grids", "--method: not read by fit.py compare"),
    (
        "tools/predict.py --law configs/laws/paper.json results/doom/before_2x192/rows.csv --batch-unit tokens",
        "--batch-unit: law 'paper' has no",
    ),
    ("tools/sweep.py run configs/sweep/quickstart.yaml --json", "--json: goes with --dry-run"),
]


@pytest.mark.parametrize(("typed", "reason"), IGNORED)
def test_an_option_that_would_be_ignored_is_refused(typed: str, reason: str) -> None:
    done = call(*typed.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {reason}")
    assert done.stderr.count("\n") == 1


def test_every_subcommand_of_a_sweep_shows_its_example() -> None:
    for parser in parsers_of(ROOT / "tools" / "sweep.py"):
        assert re.search(rf"^python tools/{parser.prog} \S+\.yaml", parser.format_help(), re.MULTILINE), parser.prog
