"""train.init: a run begins with another's weights, and is another run than without."""

from pathlib import Path

import pytest
import torch

from tests.training.test_trainer import overrides, run
from videoscaling.training.checkpoints.exported import read_trained
from videoscaling.training.config import load_config, run_id
from videoscaling.training.run import resolve
from videoscaling.utils.errors import UserError

SHORT = ("train.tokens=640", "optim.warmup_tokens=64")


def test_a_run_begins_with_the_weights_that_it_is_given(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "first", *SHORT)
    init = f"train.init={tmp_path / 'first'}"
    still = run(cache, tmp_path, "still", init, *SHORT, "optim.lr=1e-12")
    first = read_trained(tmp_path / "first").tensors
    for name, tensor in read_trained(tmp_path / "still").tensors.items():
        torch.testing.assert_close(tensor, first[name], atol=1e-6, rtol=0)
    fresh = run(cache, tmp_path, "fresh", *SHORT, "optim.lr=1e-12")
    assert still["milestones"][-1]["ema_val_loss"] != fresh["milestones"][-1]["ema_val_loss"]
    assert still["recipe"]["init"] == str(tmp_path / "first")
    assert "init" not in fresh["recipe"]
    # A run that continues reads its own checkpoint, and needs the folder no longer.
    (tmp_path / "first").rename(tmp_path / "moved")
    run(cache, tmp_path, "still", init, "train.tokens=1280", "optim.warmup_tokens=64", "optim.lr=1e-12")


def test_a_run_that_grows_without_its_optimiser_begins_with_them_again(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "first", *SHORT)
    keys = (f"train.init={tmp_path / 'first'}", "optim.warmup_tokens=64", "optim.lr=1e-12", "checkpoint.final=ema")
    run(cache, tmp_path, "x", *keys, "train.tokens=640")
    run(cache, tmp_path, "x", *keys, "train.tokens=1280")
    first, grown = (read_trained(tmp_path / name).tensors for name in ("first", "x"))
    for name, tensor in grown.items():
        torch.testing.assert_close(tensor, first[name], atol=1e-6, rtol=0)


def test_initial_weights_are_a_part_of_the_runs_id_where_they_are_given(tmp_path: Path) -> None:
    meta = {"latent_shape": [4, 2, 4, 4], "fingerprint": "f00d"}
    words = ((), ("train.init=a",), ("train.init=b",))
    configs = [load_config(None, overrides(tmp_path, tmp_path, "x", *each)) for each in words]
    assert len({run_id(resolve(config, meta).config) for config in configs}) == 3


@pytest.mark.parametrize(
    ("init", "message"), [("absent", "absent: no such checkpoint"), ("embedded", "trained with another vae")]
)
def test_weights_that_do_not_fit_are_refused(cache: Path, tmp_path: Path, init: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(cache, tmp_path, "x", f"train.init={init}")
    assert not (tmp_path / "x").exists()


def test_weights_of_another_size_are_refused(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "small", *SHORT)
    with pytest.raises(UserError, match="of another model"):
        run(cache, tmp_path, "x", f"train.init={tmp_path / 'small'}", "model.size=2x32")
