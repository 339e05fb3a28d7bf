"""train.dtype=auto is hashed, recorded and resumed as what it resolved to."""

from pathlib import Path

import pytest
import torch
import yaml

import videoscaling.training.train
from tests.sweeps.sweeps import write_sweep
from tests.training.test_trainer import overrides, run
from videoscaling.sweeps.grid import load_sweep
from videoscaling.training.config import load_config, run_id
from videoscaling.training.run import resolve
from videoscaling.training.train import train
from videoscaling.utils import devices
from videoscaling.utils.errors import UserError

META = {"latent_shape": [4, 2, 4, 4], "fingerprint": "x"}
KEYS = ["model.size=2x32", "train.batch_tokens=128", "train.tokens=1e5"]


@pytest.mark.parametrize(("there", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_has_the_id_of_what_it_becomes(there: bool, dtype: str) -> None:
    auto = resolve(load_config(None, [*KEYS, "train.dtype=auto"]), META, bfloat16=lambda: there).config
    named = resolve(load_config(None, [*KEYS, f"train.dtype={dtype}"]), META).config
    assert auto.train.dtype == dtype
    assert run_id(auto) == run_id(named)


def test_without_a_device_auto_is_refused_and_the_device_is_asked_for_auto_alone() -> None:
    with pytest.raises(UserError, match="train.dtype=auto: .* name bfloat16 or float32"):
        resolve(load_config(None, [*KEYS, "train.dtype=auto"]), META)
    resolve(load_config(None, KEYS), META, bfloat16=lambda: pytest.fail("asked"))


@pytest.mark.parametrize(("cuda", "own", "found"), [(False, True, False), (True, False, False), (True, True, True)])
def test_bfloat16_is_that_of_a_gpu(cuda: bool, own: bool, found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: own or including_emulation)
    assert devices.has_bfloat16() is found


def test_a_run_holds_what_auto_became_and_another_device_cannot_continue_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("train.dtype=auto", "train.tokens=640")
    monkeypatch.setattr(videoscaling.training.train, "has_bfloat16", lambda: False)
    found = run(cache, tmp_path, "x", *more)
    assert found["recipe"]["dtype"] == found["config"]["train"]["dtype"] == "float32"
    assert yaml.safe_load((tmp_path / "x" / "config.yaml").read_text())["train"]["dtype"] == "float32"
    assert run(cache, tmp_path, "x", *more)["run_id"] == found["run_id"]
    monkeypatch.setattr(videoscaling.training.train, "has_bfloat16", lambda: True)
    with pytest.raises(UserError, match=r"another configuration \(train.dtype: float32 -> bfloat16\)"):
        train(load_config(None, overrides(cache, tmp_path, "x", *more)))


@pytest.mark.parametrize("where", ["base", "config"])
def test_a_sweep_refuses_auto(where: str, tmp_path: Path) -> None:
    """Its cells are listed on a login node too, where there is no GPU to ask: their ids would be others there."""
    auto = {"train": {"dtype": "auto"}}
    path = write_sweep(tmp_path, tmp_path, **{where: auto}, lr=[1e-3], batch_tokens=[128])
    with pytest.raises(UserError, match="train.dtype=auto: .* name config.train.dtype=bfloat16 or float32"):
        load_sweep(path, [], lambda config: META)
    assert load_sweep(path, ["config.train.dtype=bfloat16"], lambda config: META).cells
