"""What a benchmark prints: on which device with which versions it was measured, and its rows as text."""

import datetime

import torch

from videoscaling.tools.benchmarks.common import Row
from videoscaling.training.result import environment
from videoscaling.utils.errors import plural


def about(device: torch.device) -> Row:
    facts = environment(device, 1)
    return {
        "date": datetime.date.today().isoformat(),
        "device": facts["device"],
        "threads": torch.get_num_threads(),
        "git_revision": facts["git_revision"],
        "versions": facts["versions"],
        "flops": "C_token = 3/4 N (7 + n_ctx / width) per token",
    }


def headline(facts: Row) -> str:
    threads, torch_version = plural(facts["threads"], "thread"), facts["versions"]["torch"]
    return f"{facts['date']}, {facts['device']}, {threads}, torch {torch_version}"


def table(rows: list[Row]) -> str:
    """The rows as text: one line each, medians only."""
    lines = []
    for row in rows:
        cells = []
        for name, value in row.items():
            if isinstance(value, dict) and "value" not in value:
                unit = " ms" if name == "milliseconds" else ""
                cells += [f"{part} {entry['value']:.4g}{unit}" for part, entry in value.items()]
                continue
            number = value["value"] if isinstance(value, dict) else value
            cells.append(f"{name} {number:.4g}" if isinstance(number, float) else f"{name} {number}")
        lines.append("  ".join(cells))
    return "\n".join(lines)
