"""A run whose result is damaged is trained again, to the same result."""

from pathlib import Path

import pytest

from tests.training.test_trainer import result, run
from videoscaling.training.result import result_damage
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


def test_a_folder_in_the_place_of_a_result_is_damage(tmp_path: Path) -> None:
    """One of them stopped the status of its whole sweep."""
    (tmp_path / FILE).mkdir()
    assert result_damage(tmp_path) == f"{tmp_path / FILE}: not a run's result (a folder)"
