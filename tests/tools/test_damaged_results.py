"""A damaged file of one cell stops no command of its sweep: it is shown, left out of fits, and trained again."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sweeps.sweeps import write_sweep
from tests.sweeps.test_plan import finish
from tests.sweeps.test_run import here
from videoscaling.sweeps import local
from videoscaling.sweeps.grid import load_sweep
from videoscaling.sweeps.state import FAILURE
from videoscaling.tools.sweep import data_of
from videoscaling.utils.results import FILE, Failure, read_failure, write_failure, write_result

FAULTS = ("[]", "null", "", "[" * 100_000, '{"run_id": 3}', '{"status": "done", "milestones": [3]}', "\0" * 4096)


@pytest.fixture
def sweep(cache: Path, tmp_path: Path) -> Path:
    """A sweep of 1 size x 3 rates x 1 batch, finished."""
    path = write_sweep(tmp_path, cache, batch_tokens=[64], lr=[1e-3, 2e-3, 3e-3], executor={"workers": 2})
    for result in finish(path):
        write_result(result.parent, json.loads(result.read_text()))
    return path


def folders(sweep: Path) -> list[Path]:
    return sorted(path.parent for path in sweep.parent.glob(f"runs/grid/*/{FILE}"))


def state(sweep: Path, name: str, *words: str) -> dict:
    status = json.loads(here("status", sweep, "--json", *words)[0])
    return next(cell for cell in status["cells"] if cell["run_id"] == name)


def damage_result(folder: Path, fault: str) -> Path:
    (folder / FILE).write_text(fault)
    return folder / FILE


def damage_failure(folder: Path, fault: str) -> Path:
    (folder / FAILURE).write_text(fault)
    return folder / FAILURE


@pytest.mark.parametrize(
    ("damage", "fault"),
    [*((damage_result, fault) for fault in FAULTS), (damage_failure, "[]")],
    ids=[f"result-{number}" for number in range(len(FAULTS))] + ["failure"],
)
def test_a_damaged_file_is_a_state_of_its_cell(
    sweep: Path, damage: Callable[[Path, str], Path], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = folders(sweep)
    path = damage(first, fault)
    shown = state(sweep, first.name)
    assert shown["state"] == "damaged"
    assert str(path) in shown["reason"]
    text = here("status", sweep)[0]
    assert "1 damaged, 2 done" in text
    assert f"damaged grid/{first.name}: {path}: " in text
    # Training begins with it.
    begun: list[str] = []
    monkeypatch.setattr(
        local, "_stacked", lambda queue, keys: begun.extend(r.config.run_dir.name for r in queue) or []
    )
    monkeypatch.setattr(local, "_server", lambda: None)
    loaded = load_sweep(sweep, [], data_of)
    with local.Interrupt() as interrupt:
        local.run_cells(loaded.cells, loaded.keys.executor, lambda run, outcome: None, interrupt)
    assert begun == ([first.name] if damage is not damage_failure else [])  # a result next to it was whole


def test_collect_and_fits_leave_a_damaged_result_out_with_a_line(sweep: Path, tmp_path: Path) -> None:
    first, *others = folders(sweep)
    path = first / FILE
    path.write_text(path.read_text().replace('"ema_val_loss": 1.0', '"ema_val_loss": 1.1', 1))
    said = here("collect", sweep, "--out", tmp_path / "all.csv")[1]
    assert f"warning: {path}: not as the run wrote it (another checksum); left out, as 1 of 3 results is" in said
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert {row["run_id"] for row in rows} == {folder.name for folder in others}
    assert str(path) in here("extend", sweep, "--json")[1]


def test_a_damaged_result_is_healed_from_the_committed_one_and_heals_it(sweep: Path, tmp_path: Path) -> None:
    committed = f"results={tmp_path / 'committed'}"
    here("collect", sweep, committed)
    first, second, _ = folders(sweep)
    whole = (first / FILE).read_bytes()
    (first / FILE).write_text("[]")
    (tmp_path / "committed" / second.name / FILE).write_text("[]")
    assert state(sweep, first.name, committed)["state"] == "done"
    here("collect", sweep, committed)
    assert (first / FILE).read_bytes() == whole
    assert (tmp_path / "committed" / second.name / FILE).read_bytes() == (second / FILE).read_bytes()


def test_the_record_of_a_failure_is_sealed_and_older_ones_are_read(tmp_path: Path) -> None:
    path = tmp_path / FAILURE
    failure = Failure("out of memory", attempts=2, exit_status=1)
    write_failure(path, failure)
    facts = {"attempts": 2, "exit_status": 1, "reason": "out of memory"}
    assert read_failure(path) == failure
    path.write_text(path.read_text().replace("memory", "memori"))
    assert read_failure(path) is None
    path.write_text(json.dumps(facts | {"state": "done", "tokens": 10**9}))
    assert read_failure(path) == failure  # and takes no other key for the cell's own
