"""The examples of every help text, of README and of the pages in docs/, as typed.

Nothing is trained: each command is called up to the end of its parsing. Then train.py's configuration is resolved
for clips of the embedded VAE, a sweep's YAML is read, and files under configs/ and results/ must be there. Files
elsewhere are the reader's own, or written by another example. Those that take a second or two run to their end.
"""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from tests.commands import call
from videoscaling.sweeps.grid import read_keys
from videoscaling.tools.update_docs import SCRIPTS
from videoscaling.training.config import load_config
from videoscaling.training.run import beta2_warnings, resolve
from videoscaling.utils.errors import Parser

ROOT = Path(__file__).resolve().parents[1]
META = {"latent_shape": [16, 5, 4, 4], "fingerprint": "f00d"}  # 17 frames of 32 x 32: 80 tokens
COMMAND = re.compile(r"^\s*((?:python|torchrun) [\w-]*[-./].*)$", re.MULTILINE)
# In a sentence, without dots or brackets for what the reader puts there; and what sbatch wraps.
INLINE = re.compile(r"`(?:[A-Z_]+=\S+ )?((?:python|torchrun) (?!tests/|\S*/x\.py|[^`]*(?:\.\.\.|\[))[^`]*\.py [^`]*)`")
WRAPPED = re.compile(r'--wrap "(python [^"]*)"')


class Parsed(Exception):
    """The command line was understood: the outermost parse's result."""


def examples(text: str) -> list[str]:
    """The commands in ``text``, on lines of their own, with the lines that continue them, or in a sentence."""
    text = re.sub(r"\\\n\s*", "", text)
    return [line for kind in (COMMAND, INLINE, WRAPPED) for line in kind.findall(text)]


def help_of(path: Path) -> str:
    name = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
    return importlib.import_module(f"videoscaling.{name}").__doc__


ALL = [(path.name, line) for path in SCRIPTS for line in examples(help_of(path))]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# commands.md repeats the help texts.
TYPED = [page for page in PAGES if page.name != "commands.md"]
ALL += [(page.name, line) for page in TYPED for line in examples(page.read_text(encoding="utf-8"))]


@pytest.fixture
def only_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every command stop where its options are parsed."""
    depth = 0

    def stopping(original):
        def parse(*args, **more):
            nonlocal depth
            depth += 1
            try:
                result = original(*args, **more)
            finally:
                depth -= 1
            if depth == 0:
                raise Parsed(result)
            return result

        return parse

    for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
        monkeypatch.setattr(Parser, name, stopping(getattr(Parser, name)))


def test_every_command_has_an_example() -> None:
    pages = {"README.md", "cluster.md", "data.md", "planning.md", "sweeps.md", "training.md"}
    assert {path.name for path in SCRIPTS} | pages <= {name for name, _ in ALL}
    assert len(ALL) >= 100


def test_the_makefile_has_the_targets_that_pages_name() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "CONTRIBUTING.md"]]
    named = {name for text in texts for name in re.findall(r"(?:^|`)make ([a-z-]+)(?: |`|$)", text, re.MULTILINE)}
    assert {"install", "quickstart", "test"} <= named <= targets


def test_the_tests_that_pages_name_are_there_and_slow_where_they_say_so() -> None:
    commands = [words for page in PAGES for words in re.findall(r"`pytest ([^`]*)`", page.read_text(encoding="utf-8"))]
    named = [(words, ROOT / name) for words in commands for name in re.findall(r"tests/[\w/]+\.py", words)]
    assert named
    for words, path in named:
        assert path.is_file(), words
        assert "-m slow" not in words or "mark.slow" in path.read_text(), words


@pytest.mark.parametrize(("where", "line"), ALL)
def test_an_example_runs_as_typed(where: str, line: str, only_parsed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)
    words = words[: words.index(">")] if ">" in words else words
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2])
        return
    script = next(number for number, word in enumerate(words) if word.endswith(".py"))
    with pytest.raises(Parsed) as caught:
        call(words[script], *words[script + 1 :])
    result = caught.value.args[0]
    arguments, overrides = result if isinstance(result, tuple) else (result, getattr(result, "overrides", []))
    values = [value for value in vars(arguments).values() if isinstance(value, str | Path)]
    for value in values:
        if str(value).startswith(("configs/", "results/")) and value != getattr(arguments, "out", None):
            assert (ROOT / value).exists(), value
    if words[script] == "train.py" and (ROOT / arguments.config).exists():
        meta = META | ({"latent_shape": [16, 5, 32, 32]} if arguments.account else {})
        run = resolve(load_config(arguments.config, overrides), meta, bfloat16=lambda: True)
        # The paper's batches of millions of tokens are above what any usual half-life allows, and the account says so.
        train = run.config.train
        assert arguments.account or beta2_warnings([(run.config.optim, train.batch_tokens)]) == []
    if words[script] == "tools/sweep.py":
        assert read_keys(arguments.config, overrides).sizes


# What other examples would have made: runs and their law stand for a sweep's.
MADE = {"law.json": "law.json", "runs/law.json": "law.json", "runs/quickstart/sweep": "cells"}
QUICK = (
    "plan.py",
    "fit.py all runs/quickstart/sweep",
    "--account",
    "predict.py --law configs/laws/paper.json",
    "predict.py --law law.json",
)
TABLES = {"runs.csv": "N,T,B,lr\n1e8,2e9,65536,1e-3\n", "table.csv": "params,tokens\n1e8,2e9\n"}  # the reader's own
RUN = sorted(
    {
        line.partition("#")[0].strip()
        for where, line in ALL
        if (where == "README.md" or where.endswith(".py")) and any(words in line for words in QUICK)
    }
)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a checkout, in which examples may write, with what other examples would have made."""
    for name in ("configs", "results"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, made in MADE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / "results" / "mini" / made)
    for name, text in TABLES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", RUN)
def test_a_quick_example_runs_to_its_end(line: str, checkout: Path) -> None:
    words = shlex.split(line)
    if "--out" in words:  # through the link it would be written into the repository
        (checkout / words[words.index("--out") + 1]).unlink(missing_ok=True)
    done = call(words[1], *words[2:])
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if "--out" in words:
        assert (checkout / words[words.index("--out") + 1]).is_file()


def test_there_are_quick_examples_of_every_kind() -> None:
    assert all(any(words in line for line in RUN) for words in QUICK)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    folders = "data|models|diffusion|training|sweeps|scaling|utils|tools|configs|tests"
    named = [ROOT / name for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", text)]
    assert [path for path in named if not path.exists()] == []
