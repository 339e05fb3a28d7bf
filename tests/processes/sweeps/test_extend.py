"""``sweep.py extend``: what it shows is what it adds, and what it adds is trained like the rest."""

import csv
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.processes.sweeps.commands import tool
from tests.tools.test_extend import asks, sweep  # noqa: F401
from videoscaling.sweeps import added_cells
from videoscaling.sweeps.added_cells import AddedCell
from videoscaling.utils.errors import UserError

# About four runs. Losses after 256 tokens hardly depend on the rate, so that the tolerance alone asks for none.
BUDGET = ("--budget-flops", "1e8")


@pytest.mark.slow
def test_shown_added_trained_and_extended_again(sweep: Path, asks, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has the sweep run?"):
        asks("extend")
    tool("run", sweep)
    folder = tmp_path / "runs" / "grid"
    shown = json.loads(asks("extend", "--json", *BUDGET))
    assert not (folder / "extended.json").exists(), "showing adds nothing"
    assert {cell["size"] for cell in shown["cells"]} == {"1x32"}, "no held-out size"
    assert shown["cells"]
    assert shown["flops"] == pytest.approx(sum(cell["flops"] for cell in shown["cells"]))
    text = asks("extend", *BUDGET)
    assert f"{len(shown['cells'])} runs to add" in text
    assert "--run adds them" in text
    assert "N_opt at 1e+09 FLOPs is unknown" in asks("extend", "--flops", "1e9", status=3)

    keys = ("size", "lr", "batch_tokens", "repeat", "milestones")
    # A first --run that was killed before its runs were trained: the second trains those, and adds no more.
    added_cells.add(folder, [AddedCell(**{key: cell[key] for key in (*keys, "why")}) for cell in shown["cells"]])
    assert f"{len(shown['cells'])} cells of the sweep unfinished" in asks("extend")
    tool("extend", sweep, "--run", *BUDGET)
    added = [asdict(cell) for cell in added_cells.read(folder)]
    assert [{k: c[k] for k in keys} for c in added] == [{k: c[k] for k in keys} for c in shown["cells"]]
    counts = json.loads(asks("status", "--json"))["counts"]
    assert sum(counts.values()) == 10 + len(added)
    assert {state for state, count in counts.items() if count} <= {"done", "diverged"}
    asks("collect", "--out", str(tmp_path / "out.csv"))
    rows = {(float(r["lr"]), int(r["B"])) for r in csv.DictReader((tmp_path / "out.csv").open())}
    assert {(c["lr"], c["batch_tokens"]) for c in added} <= rows

    again = json.loads(asks("extend", "--json", *BUDGET))
    seen = {(c["lr"], c["batch_tokens"], c["repeat"], tuple(c["milestones"])) for c in added}
    assert not seen & {(c["lr"], c["batch_tokens"], c["repeat"], tuple(c["milestones"])) for c in again["cells"]}
