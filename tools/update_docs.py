"""Bring the table of keys in docs/training.md up to date with the schema.

python tools/update_docs.py
"""

import argparse

import yaml

from videoscaling import ROOT
from videoscaling.training.config import known_keys
from videoscaling.training.keys import default_of
from videoscaling.utils.errors import Parser, run_cli
from videoscaling.utils.files import write_text

PAGE = ROOT / "docs" / "training.md"
BEGIN, END = "<!-- keys: made by python tools/update_docs.py -->", "<!-- end of keys -->"


def table() -> str:
    """Every key with its default, as it would be written on a command line, and its meaning, in Markdown."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for name, entry in known_keys().items():
        default = default_of(entry)
        # Numbers without padding: 1e-8 for 1e-08, 5e6 for 5e+06.
        text = f"{default:g}".replace("e+0", "e").replace("e-0", "e-") if isinstance(default, float) else None
        text = text or yaml.safe_dump(default, default_flow_style=True).removesuffix("...\n").strip()
        lines.append(
            f"| `{name}` | {'' if default in (None, '', []) else f'`{text}`'} | {entry.metadata['info'].help} |"
        )
    return "\n".join(lines)


def updated(page: str) -> str:
    """``page`` with the table between its marks replaced by the schema's."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_text(PAGE, updated(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    run_cli(main)
