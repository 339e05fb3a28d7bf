"""The replay's command: a table in, what extend would have trained out."""

import json
from functools import partial
from pathlib import Path

import pytest

from tests.commands import call
from tests.scaling import planted
from videoscaling.scaling.fitting.surface.fit import fit_surface


@pytest.fixture(autouse=True)
def one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right shape and form, which spares the fits of all others."""
    fit = partial(fit_surface, form="joint", batch="one_sided", bent=False)
    monkeypatch.setattr("videoscaling.scaling.search.replay.fit_surface", fit)
    monkeypatch.setattr("videoscaling.scaling.search.replay.ROUNDS", 2)


def test_methods_next_to_each_other(tmp_path: Path) -> None:
    path = planted.write_table(planted.cells(sizes=3), tmp_path / "runs.csv")
    done = call("tools/replay.py", path, "--shares", "0.2", "--seeds", 1, "--json")
    assert done.returncode == 0, done.stderr
    extend, random, everything = json.loads(done.stdout)["rows"]
    assert extend["share"] <= 0.2
    assert random["share"] <= 0.2
    assert (everything["method"], everything["share"]) == ("all", 1.0)
    assert everything["regret"] < 0.01


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (["--shares", "2"], "--shares 2.0: must be a number from 0.001 to 1"),
        (["--noise", "1"], "--noise"),
        (["--held-out", "1"], "3 sizes, 1 of them held out"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, words: list[str], reported: str) -> None:
    path = planted.write_table(planted.cells(sizes=3), tmp_path / "runs.csv")
    done = call("tools/replay.py", path, *words)
    assert done.returncode == 2
    assert reported in done.stderr
