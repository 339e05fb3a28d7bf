"""The replay's command: a table in, what extend would have trained out."""

import json
import sys
from pathlib import Path

import pytest

from videoscaling.scaling import laws, runs, simulate
from videoscaling.tools import replay as module
from videoscaling.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    law = laws.load(ROOT / "configs" / "laws" / "paper.json")
    cells = simulate.grid(law, (1e8, 4e8), (2e9,), 7, 7, 2.0)
    path = tmp_path / "table.csv"
    runs.write_csv(simulate.ledger(law, cells, (2e9,), 1e-4), path)
    return path


def replayed(monkeypatch, capsys, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["replay.py", *words])
    assert module.main() == 0
    return capsys.readouterr().out


def test_methods_side_by_side(table: Path, monkeypatch, capsys) -> None:
    found = json.loads(replayed(monkeypatch, capsys, str(table), "--json"))
    assert [(g["N"], g["T"], g["cells"]) for g in found["grids"]] == [(1e8, 2e9, 49), (4e8, 2e9, 49)]
    assert found["methods"]["full grid"]["within"] == 2
    assert found["methods"]["extend"]["share_mean"] < found["methods"]["random, 25%"]["share_mean"] * 2
    assert set(found["methods"]) >= {"extend", "full grid", "full, believed", "random, 15%", "plain 4 x 4"}
    text = replayed(monkeypatch, capsys, str(table), "--noise", "1e-3", "--seeds", "2", "--most", "0.2")
    assert "within 0.10% of each grid's best, noise 0.10%" in text
    assert "the first of the studies" in text


def test_bad_input_is_named(table: Path, monkeypatch, capsys) -> None:
    for words, told in ((("--noise", "2"), "--noise"), (("--seeds", "0"), "--seeds"), (("--most", "nan"), "--most")):
        with pytest.raises(UserError, match=told):
            replayed(monkeypatch, capsys, str(table), *words)
    with pytest.raises(UserError, match="no such file"):
        replayed(monkeypatch, capsys, "nothing.csv")
