"""Bring the generated parts of docs/ up to date: commands, tables of keys and the index of decisions.

python tools/update_docs.py
"""

import argparse
import contextlib
import importlib
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import yaml

from videoscaling import ROOT
from videoscaling.sweeps.config import SizeKeys, SweepKeys
from videoscaling.training.keys import default_of, keys_of
from videoscaling.training.schema import Config
from videoscaling.utils.errors import Parser, run_cli
from videoscaling.utils.files import write_text

DOCS = ROOT / "docs"
DECISIONS = DOCS / "decisions"
SCRIPTS = [ROOT / "train.py", ROOT / "sample.py"]
SCRIPTS += [path for path in sorted((ROOT / "tools").glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]


def key_table(schema: type, prefix: str = "") -> str:
    """Every key of ``schema`` with its default, as it would be written on a command line, and its meaning."""
    lines = [
        f"| `{prefix}{name}` | {_default(default_of(entry))} | {entry.metadata['info'].help} |"
        for name, entry in keys_of(schema).items()
    ]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *lines])


def sweep_keys() -> str:
    """The keys of a sweep's YAML, and those of its sizes."""
    return f"{key_table(SweepKeys)}\n\nThe keys of each size:\n\n{key_table(SizeKeys)}"


def size_table() -> str:
    """The paper's sizes on its clips: FLOPs, memory and hours by the formulas of ``train.py --account``."""
    from videoscaling.models.sizes import PAPER
    from videoscaling.training.config import load_config
    from videoscaling.training.planning.account import Machine, account
    from videoscaling.utils.devices import planned_peak

    gpus, tokens, n_ctx = ("a100", "h100", "b200"), 10**9, 1280
    heads = [f"hours on one {gpu}" for gpu in gpus]
    memory = "GB on one GPU | on each of 8, fsdp"
    lines = [f"| size | N | heads | FLOPs of a training clip | of a sampled clip | {memory} | {' | '.join(heads)} |"]
    lines.append("|---" * (7 + len(gpus)) + "|")
    for size in PAPER:
        keys = [f"model.size={size}", f"train.batch_tokens={n_ctx}", "train.micro_batch=1", f"train.tokens={tokens}"]
        report = account(load_config(ROOT / "configs/train/cogvideox-256.yaml", keys), n_ctx, Machine())
        shared = [*keys, f"train.batch_tokens={8 * n_ctx}", "train.parallel=fsdp"]
        share = account(load_config(ROOT / "configs/train/cogvideox-256.yaml", shared), n_ctx, Machine(gpus=8))
        token, mfu = report["flops"]["C_token"], Machine().mfu
        hours = [token * tokens / (mfu * planned_peak(gpu, "bfloat16")) / 3600 for gpu in gpus]
        cells = [
            f"{report['N']:.3g}",
            report["config"]["model"]["heads"],
            f"{token * n_ctx:.3g}",
            f"{token * n_ctx / 3 * 100:.3g}",
        ]
        cells += [f"{value:.3g}" for value in (report["memory_gb"], share["memory_gb"], *hours)]
        lines.append(f"| {size} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def commands() -> str:
    """Each command: what its help says, its examples, and its options."""
    lines = ["| command | purpose |", "|---|---|"]
    parts = []
    for script in SCRIPTS:
        name = str(script.relative_to(ROOT))
        parser = parser_of(script)
        purpose, _, details = (parser.description or "").strip().replace("``", "`").partition("\n")
        lines.append(f"| [`{name}`](#{anchor(name)}) | {purpose} |")
        parts.append(f"## {name}\n\n{purpose}\n\n{_markdown(details)}\n\n{_options(parser, name)}")
    return "\n".join(lines) + "\n\n" + "\n\n".join(parts)


def parser_of(script: Path) -> Parser:
    """The parser of the command ``script``, found without the command's work."""
    name = str(script.relative_to(ROOT).with_suffix("")).replace("/", ".")
    module = importlib.import_module(f"videoscaling.{name}")
    found: list[Parser] = []

    def stop(self: Parser, *args: Any, **more: Any) -> NoReturn:
        found.append(self)
        raise _Stopped

    parsing = dict.fromkeys(("parse_args", "parse_known_args", "parse_intermixed_args"), stop)
    with (
        contextlib.suppress(_Stopped),
        mock.patch.object(sys, "argv", [script.name]),
        mock.patch.multiple(Parser, **parsing),
    ):
        module.main()
    if found:
        return found[0]
    raise AssertionError(f"{script}: main() parses no options")


def decisions() -> str:
    """The title of each decision, which is its outcome, by page."""
    lines = []
    for page in sorted(DECISIONS.glob("*.md")):
        if page.name == "README.md":
            continue
        title, *headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        lines += [f"\n### [{title.removeprefix('Decisions: ').capitalize()}]({page.name})\n"]
        lines += [f"- [{heading}]({page.name}#{anchor(heading)})" for heading in headings]
    return "\n".join(lines).strip("\n")


PARTS: dict[Path, tuple[str, Callable[[], str]]] = {
    DOCS / "training.md": ("keys", lambda: key_table(Config)),
    DOCS / "sweeps.md": ("keys", sweep_keys),
    DOCS / "planning.md": ("sizes", size_table),
    DOCS / "commands.md": ("commands", commands),
    DECISIONS / "README.md": ("index", decisions),
}


def anchor(heading: str) -> str:
    """The fragment by which a page's ``heading`` is linked, as on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def updated(text: str, name: str, content: str) -> str:
    """A page's ``text`` with ``content`` between the marks of its part ``name``."""
    begin, end = f"<!-- {name}: made by python tools/update_docs.py -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def _markdown(text: str) -> str:
    """The paragraphs of a help text; commands as code."""
    blocks = [textwrap.dedent(block) for block in re.split(r"\n\s*\n", text.strip("\n"))]
    return "\n\n".join(
        f"```\n{block}\n```" if re.match("python |torchrun ", block) else textwrap.fill(block, 120) for block in blocks
    )


def _options(parser: argparse.ArgumentParser, name: str) -> str:
    """The options of a command as a table; one for each of its subcommands."""
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            return "\n\n".join(
                f"### {name} {word}\n\n{helps[word][0].upper()}{helps[word][1:]}.\n\n{_options(inner, name)}"
                for word, inner in action.choices.items()
            )
        if action.dest != "help" and action.help != argparse.SUPPRESS:
            formatter = parser._get_formatter()
            words = [*action.option_strings[-1:], formatter._format_args(action, action.dest.upper())]
            required = " (required)" if action.required and action.option_strings else ""
            meaning = formatter._expand_help(action) if action.help else ""
            cells = f"`{' '.join(words).strip()}`", f"{meaning}{required}"
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(["| option | meaning |", "|---|---|", *rows]) if rows else "It has no options."


class _Stopped(BaseException):
    """A parser was asked to parse."""


def _default(value: Any) -> str:
    # Numbers without padding: 1e-8 for 1e-08, 5e6 for 5e+06.
    text = f"{value:g}".replace("e+0", "e").replace("e-0", "e-") if isinstance(value, float) else None
    text = text or yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    return "" if value in (None, "", [], {}) else f"`{text}`"


def main() -> None:
    Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page, (name, make) in PARTS.items():
        write_text(page, updated(page.read_text(encoding="utf-8"), name, make()))


if __name__ == "__main__":
    run_cli(main)
