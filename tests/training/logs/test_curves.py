"""A run's training curve as arrays."""

import json
from pathlib import Path

import numpy as np
import pytest

from videoscaling import read_curve
from videoscaling.utils.errors import UserError

ROW = {"step": 10, "tokens": 640, "loss": 2.5, "lr": 1e-3, "skipped": 0}


def test_a_curve_has_a_number_or_nan_for_every_line(tmp_path: Path) -> None:
    """Damaged lines are left out; older ones and skipped steps have gaps."""
    rows = [ROW, ROW | {"step": 20, "loss": None, "mfu": 0.4}, ROW | {"step": 30, "lr": "fast"}]
    text = "\n".join([*map(json.dumps, rows), '{"step": "no"}', '{"step": 40, "tok'])
    (tmp_path / "metrics.jsonl").write_text(text)
    curve = read_curve(tmp_path)
    assert len(curve) == 3
    assert curve.step.tolist() == [10, 20, 30]
    assert curve.tokens.dtype == np.int64
    np.testing.assert_equal(curve.loss, [2.5, np.nan, 2.5])
    np.testing.assert_equal(curve.lr, [1e-3, 1e-3, np.nan])
    np.testing.assert_equal(curve.mfu, [np.nan, 0.4, np.nan])


def test_a_folder_without_a_curve_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics.jsonl: no such file; name a run directory"):
        read_curve(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="holds no logged step"):
        read_curve(tmp_path)
