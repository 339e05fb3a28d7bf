"""A sweep's folder belongs to the sweep that began it, whatever keys came since."""

from pathlib import Path

import pytest
import yaml

from tests.sweeps.sweeps import write_sweep
from videoscaling.sweeps import directory as module
from videoscaling.sweeps.grid import Sweep, load_sweep
from videoscaling.training.config import Config, flatten, to_dict
from videoscaling.utils.errors import UserError

META = {"latent_shape": [4, 2, 4, 4], "fingerprint": "f00d"}
FIRST = {name: value for name, value in flatten(to_dict(Config())).items() if name != "name"}
CLAMPED = 32 * 125  # tokens, 0.2 half-lives of 2e4: beta2 would be 0.871


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "data_of", lambda config: META)
    module.read_sweep_file.cache_clear()


def sweep(folder: Path, batch: int = 64, **optim: object) -> Sweep:
    base = {"optim": {"beta2_half_life": 2e4, **optim}}
    path = write_sweep(folder, folder / "none", base, batch_tokens=[batch], lr=[1e-3], milestones=[8000])
    return load_sweep(path, [], lambda config: META)


def forget(folder: Path, *names: str) -> None:
    """As an older version recorded the sweep: only the keys of its YAML, and none of ``names``."""
    path = folder / "runs" / "grid" / "sweep.yaml"
    record = yaml.safe_load(path.read_text())
    record["settings"] = {name: value for name, value in record["settings"].items() if name not in names}
    path.write_text(yaml.safe_dump(record))


@pytest.mark.parametrize("batch", [64, CLAMPED])
def test_a_key_may_be_spelled_out_with_the_value_that_it_has(tmp_path: Path, batch: int) -> None:
    module.write_sweep_file(sweep(tmp_path, batch))
    module.write_sweep_file(sweep(tmp_path, batch, beta2_range=[0.9, 0.9999], clip=1.0))


def test_a_value_without_effect_makes_no_other_sweep(tmp_path: Path) -> None:
    module.write_sweep_file(sweep(tmp_path))
    module.write_sweep_file(sweep(tmp_path, beta2_range=[0.0, 1.0]))


def test_a_value_that_makes_other_cells_is_refused(tmp_path: Path) -> None:
    module.write_sweep_file(sweep(tmp_path, CLAMPED))
    with pytest.raises(UserError, match=r"another sweep \(optim.beta2_range: \[0.9, 0.9999\] -> \[0.0, 1.0\]\)"):
        module.write_sweep_file(sweep(tmp_path, CLAMPED, beta2_range=[0.0, 1.0]))
    with pytest.raises(UserError, match=r"another sweep \(optim.clip: 1.0 -> 2.0\)"):
        module.write_sweep_file(sweep(tmp_path, CLAMPED, clip=2.0))


def test_a_sweep_of_other_clips_names_their_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fingerprint alone does not show which clips are meant."""
    module.write_sweep_file(sweep(tmp_path))
    again = sweep(tmp_path)
    again.cells[0].config.data.cache = "caches/new"
    monkeypatch.setattr(module, "data_of", lambda config: META | {"fingerprint": "beef"})
    moved = rf"\(data.fingerprint: f00d -> beef; data.cache: \['{tmp_path}/none'\] -> \['caches/new'\]\)"
    with pytest.raises(UserError, match=f"made by another sweep {moved}; put that back, or choose another name"):
        module.write_sweep_file(again)


def test_a_sweep_from_before_a_key_existed_did_what_runs_did_then(tmp_path: Path) -> None:
    module.write_sweep_file(sweep(tmp_path))
    forget(tmp_path, "optim.beta2_range")
    module.write_sweep_file(sweep(tmp_path))  # which acts on none of its cells
    (tmp_path / "large").mkdir()
    module.write_sweep_file(sweep(tmp_path / "large", CLAMPED))
    forget(tmp_path / "large", "optim.beta2_range")
    with pytest.raises(UserError, match=r"another sweep \(optim.beta2_range: \[0.0, 1.0\] -> \[0.9, 0.9999\]\)"):
        module.write_sweep_file(sweep(tmp_path / "large", CLAMPED))
    module.write_sweep_file(sweep(tmp_path / "large", CLAMPED, beta2_range=[0.0, 1.0]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("settings", "data") for value in (None, 3, "x", [1])),
        ("data", {"fingerprint": "f00d"}),
        ("data", {"latent_shape": [4, 2, 4, -4], "fingerprint": "f00d"}),
        ("settings", {"optim.lr": 1e-3}),
        ("settings", {"optim": "x"}),
        ("settings", FIRST | {"optim.lr": "x"}),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path: Path, name: str, value: object) -> None:
    module.write_sweep_file(sweep(tmp_path))
    path = tmp_path / "runs" / "grid" / "sweep.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {name: value}))
    with pytest.raises(UserError, match="; remove it, ") as caught:
        module.write_sweep_file(sweep(tmp_path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "null", "{}", "name: grid\n"])
def test_a_record_that_was_cut_is_not_taken_for_none(tmp_path: Path, text: str) -> None:
    module.write_sweep_file(sweep(tmp_path))
    path = tmp_path / "runs" / "grid" / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="sweep.yaml: damaged .*; remove it"):
        module.read_sweep_file(path.parent)
