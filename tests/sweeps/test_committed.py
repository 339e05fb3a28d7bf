"""A sweep whose results are committed can be asked on a fresh clone, without the clips that it was trained on."""

import csv
import json
import sys
from pathlib import Path

import pytest

from videoscaling.sweeps.directory import committed_data
from videoscaling.tools import sweep
from videoscaling.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
STUDY = "configs/sweep/mini.yaml"
GAME = Path("configs/sweep/doom")


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs a command of tools/sweep.py on the committed study as a fresh clone would, and returns what it prints."""
    monkeypatch.chdir(ROOT)  # which is what `results:` in the YAML is relative to
    fresh = [f"out={tmp_path}", f"config.data.cache={tmp_path / 'latents'}"]

    def run(command: str, *words: str, path: str | Path = STUDY) -> str:
        monkeypatch.setattr(sys, "argv", ["sweep.py", command, str(path), *fresh, *words])
        assert sweep.main() == 0
        return capsys.readouterr().out

    return run


def test_status_collect_and_extend_find_the_committed_cells(ask, tmp_path: Path) -> None:
    assert json.loads(ask("status", "--json"))["counts"] == {"done": 139}
    planned = json.loads(ask("run", "--dry-run", "--json"))["cells"]
    assert {cell["state"] for cell in planned} == {"done"}
    assert {cell["run_id"] for cell in planned} == {
        path.parent.name for path in ROOT.glob("results/mini/cells/*/*.json")
    }
    ask("collect", "--out", str(tmp_path / "all.csv"))
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert len({row["run_id"] for row in rows}) == 139
    extended = json.loads(ask("extend", "--json"))
    assert extended["unfinished"] == 0
    assert extended["target"]["N"] == 2359296, "the largest held-out size is predicted"


def test_a_data_set_has_every_row_as_csv_and_parquet_and_a_card(ask, tmp_path: Path) -> None:
    folder, law = tmp_path / "published", tmp_path / "all.csv"
    ask("collect", "--out", str(law), "--dataset", str(folder), "--licence", "mit")
    assert (folder / "runs.csv").read_bytes() == law.read_bytes()
    rows = list(csv.DictReader(law.open()))
    parquet = pytest.importorskip("pyarrow.parquet").read_table(folder / "runs.parquet").to_pylist()
    assert [row["run_id"] for row in parquet] == [row["run_id"] for row in rows]
    for column in ("N", "T", "lr", "ema_loss", "heldout"):
        assert [row[column] for row in parquet] == [float(row[column]) if row[column] else None for row in rows]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert "139 training runs of" in card
    assert all(f"| `{column}` |" in card for column in rows[0])
    assert "| schedule | constant |" in card
    assert str(tmp_path) not in card
    ask("collect", "--out", str(law), "--dataset", str(folder))  # its own is replaced, another folder is not
    (folder / "README.md").write_text("my notes")
    for other in (tmp_path, folder):
        with pytest.raises(UserError, match="is no data set"):
            ask("collect", "--out", str(law), "--dataset", str(other))
    assert (folder / "README.md").read_text() == "my notes"


def test_a_data_set_is_of_all_sweeps_that_share_their_results(ask, tmp_path: Path) -> None:
    folder = tmp_path / "game"
    printed = ask("collect", "--out", str(tmp_path / "gate.csv"), "--dataset", str(folder), path=GAME / "gate.yaml")
    cells = {path.parent.name for path in ROOT.glob("results/doom/cells/*/result.json")}
    published, own = (
        {row["run_id"] for row in csv.DictReader(file.open())} for file in (folder / "runs.csv", tmp_path / "gate.csv")
    )
    assert len(own) == 12 < len(cells)
    assert published == cells
    assert "README.md" in printed
    assert "# game: losses" in (folder / "README.md").read_text()


def test_what_trains_still_wants_the_clips(ask) -> None:
    for command in (["run"], ["extend", "--run"]):
        with pytest.raises(UserError, match="no latent cache here; make one with tools/cache_latents.py"):
            ask(*command)


def test_results_that_do_not_agree_on_the_data_say_nothing_of_them(ask, tmp_path: Path) -> None:
    one = json.loads(next(ROOT.glob("results/mini/cells/*/result.json")).read_text())
    for name, fingerprint in (("a", "f00d"), ("b", "beef")):
        one["config"]["data"]["fingerprint"] = fingerprint
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "result.json").write_text(json.dumps(one))
    with pytest.raises(UserError, match="no latent cache here"):
        ask("status", f"results={tmp_path / 'results'}")
    committed_data.cache_clear()
    (tmp_path / "results" / "b" / "result.json").write_text("[]")
    # A damaged result says nothing of the data either: the other's are taken.
    assert json.loads(ask("status", f"results={tmp_path / 'results'}", "--json"))["counts"] == {"pending": 139}
