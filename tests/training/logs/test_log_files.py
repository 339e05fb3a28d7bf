"""metrics.jsonl and TensorBoard's events: no fault of theirs ends a run, or changes its result."""

import json
import os
from pathlib import Path

import pytest

from tests.training.test_trainer import metrics, overrides, run
from videoscaling.sweeps.state import last_metrics
from videoscaling.training.checkpoints.checkpoint import checkpoint_paths
from videoscaling.training.config import load_config
from videoscaling.training.logs.log_files import Board, MetricsFile
from videoscaling.training.train import train

FAULTS = {
    "null": b"null\n",
    "a list": b"[1, 2]\n",
    "nested": b"[" * 100_000 + b"\n",
    "no step": b'{"tokens": 3}\n',
    "a step that is a text": b'{"step": "3", "tokens": 384}\n',
    "NaN": b'{"step": 3, "tokens": 384, "loss": NaN}\n',
    "zeros": bytes(5000) + b"\n",
    "half a line": b'{"step": 3, "tok\n',
    "not UTF-8": b"\xff\xfe\n",
}


def line(step: int) -> bytes:
    return json.dumps({"step": step, "tokens": 128 * step, "tokens_per_second": 1.0}).encode() + b"\n"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_line_costs_that_line(tmp_path: Path, fault: str, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    content = line(1) + line(2) + FAULTS[fault] + line(4) + line(9)
    path.write_bytes(content)
    log = MetricsFile(path, 4)
    assert log.last == json.loads(line(4))
    log.append(json.loads(line(5)))
    log.close()
    assert path.read_bytes() == line(1) + line(2) + line(4) + line(5)
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == content
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {path}: 1 of 5 lines are damaged; they are left out")


def test_what_a_kill_cut_short_is_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2) + line(3)[:20])
    MetricsFile(path, 2).close()
    assert path.read_bytes() == line(1) + line(2)
    assert capsys.readouterr().err == ""
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_folder_in_its_place_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.mkdir()
    log = MetricsFile(path, 2)
    log.append(json.loads(line(3)))
    log.close()
    assert path.read_bytes() == line(3)
    assert "metrics.jsonl is begun anew" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")  # noqa: PTH110
def test_a_full_disk_is_said_once_and_later_lines_are_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path, real = tmp_path / "metrics.jsonl", tmp_path / "real"
    log = MetricsFile(path, 0)
    path.symlink_to("/dev/full")
    log.append(json.loads(line(1)))
    log.append(json.loads(line(2)))
    path.unlink()
    path.symlink_to(real)
    log.append(json.loads(line(3)))
    log.append(json.loads(line(4)))
    log.close()
    assert real.read_bytes() == b"\n" + line(3) + line(4)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: a line is missing: {path}: disk full; ")
    assert MetricsFile(real, 4).last == json.loads(line(4))  # an empty line is no damage
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "last",
    [
        b"[]\n",
        b"null\n",
        b'{"tokens": 1}\n',
        b'{"tokens": "x", "tokens_per_second": 1}\n',
        b"[" * 3000 + b"\n",
        b'{"tokens": 1, "tokens_per_second": 1, "share": 0}\n',
    ],
)
def test_a_status_does_not_trust_the_last_line(tmp_path: Path, last: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(line(1) + last)
    assert last_metrics(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_bytes(last + line(1))
    assert last_metrics(tmp_path)["tokens"] == 128


def test_a_run_continues_past_damaged_metrics(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    keys = ("train.milestones=[640]", "checkpoint.every_steps=5", "train.tokens=1280")
    whole = run(cache, tmp_path, "whole", *keys)
    run(cache, tmp_path, "x", "train.tokens=640", "checkpoint.every_steps=5")
    assert checkpoint_paths(tmp_path / "x" / "checkpoints")
    path = tmp_path / "x" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b"null\n")
    capsys.readouterr()
    assert run(cache, tmp_path, "x", *keys)["milestones"] == whole["milestones"]
    assert "1 of 6 lines are damaged" in capsys.readouterr().err
    assert metrics(tmp_path / "x") == metrics(tmp_path / "whole")


def test_a_run_ends_as_ever_where_tensorboard_cannot_write(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    keys = ("train.tokens=640",)
    whole = run(cache, tmp_path, "whole", *keys)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "tensorboard").write_text("a file where a folder should be")
    capsys.readouterr()
    assert train(load_config(None, overrides(cache, tmp_path, "x", *keys))) == 0
    assert json.loads((tmp_path / "x" / "result.json").read_text())["milestones"] == whole["milestones"]
    (warning,) = capsys.readouterr().err.splitlines()
    assert "x/tensorboard: TensorBoard's events end here" in warning


def test_a_disk_that_fills_up_ends_tensorboard_alone(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    board = Board(str(tmp_path / "tensorboard"))
    for event in (tmp_path / "tensorboard").iterdir():
        event.unlink()
        event.symlink_to("/dev/full")
    for step in range(50):
        board.add_points({"loss": 1.0}, step)
        board.flush()
    board.close()
    said = capfd.readouterr().err
    assert said.count("warning: ") == 1
    assert "Traceback" not in said
