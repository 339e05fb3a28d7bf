"""Bring the generated parts of docs/ up to date: commands, tables of keys and the index of decisions.

python tools/update_docs.py
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from videoscaling import ROOT
from videoscaling.training.config import known_keys
from videoscaling.training.keys import default_of
from videoscaling.utils.errors import Parser, run_cli
from videoscaling.utils.files import write_text

DOCS = ROOT / "docs"
DECISIONS = DOCS / "decisions"


def training_keys() -> str:
    """Every key of training with its default, as it would be written on a command line, and its meaning."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for name, entry in known_keys().items():
        lines.append(f"| `{name}` | {_default(default_of(entry))} | {entry.metadata['info'].help} |")
    return "\n".join(lines)


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
    DOCS / "training.md": ("keys", training_keys),
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
