"""A run whose result is damaged is trained again, to the same result."""

from contextlib import suppress
from pathlib import Path

import pytest

from tests.training.test_trainer import overrides, result, run
from videoscaling.training.checks import check_directory
from videoscaling.training.config import load_config
from videoscaling.training.result import result_damage
from videoscaling.utils.errors import UserError
from videoscaling.utils.results import FILE

KEYS = ("train.tokens=640", "train.milestones=[256]")


@pytest.mark.parametrize("final", ["full", "ema"])
def test_a_damaged_result_is_made_again(
    cache: Path, tmp_path: Path, final: str, capsys: pytest.CaptureFixture
) -> None:
    keys = (*KEYS, f"checkpoint.final={final}")
    whole = run(cache, tmp_path, "x", *keys)
    path = tmp_path / "x" / FILE
    path.write_text(path.read_text().replace('"val_loss": ', '"val_loss": 1', 1))
    capsys.readouterr()
    run(cache, tmp_path, "x", *keys)
    assert f"warning: {path}: not as the run wrote it (another checksum); the run is trained again from " in (
        capsys.readouterr().err
    )
    assert result(tmp_path / "x")["milestones"] == whole["milestones"]
    run(cache, tmp_path, "x", *keys)
    assert "already done" in capsys.readouterr().out


def test_of_a_torchrun_the_first_process_speaks(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Each said that the run was finished, and that its configuration was damaged."""
    run(cache, tmp_path, "x", *KEYS)
    (tmp_path / "x" / "config.yaml").write_text("null")
    capsys.readouterr()
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        run(cache, tmp_path, "x", *KEYS)
        with suppress(UserError):  # of keys that a run resolves from its data
            check_directory(load_config(None, overrides(cache, tmp_path, "x", *KEYS)))
        said = capsys.readouterr()
        assert (said.out.count("already done"), said.err.count("written anew")) == ((0, 0), (1, 1))[rank == "0"]


def test_a_folder_in_the_place_of_a_result_is_damage(tmp_path: Path) -> None:
    """One of them stopped the status of its whole sweep."""
    (tmp_path / FILE).mkdir()
    assert result_damage(tmp_path) == f"{tmp_path / FILE}: not a run's result (a folder)"
