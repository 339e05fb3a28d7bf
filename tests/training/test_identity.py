"""Run ids outlive changes of the schema: those of committed results stay, whatever keys come later."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from videoscaling.sweeps.grid import load_sweep
from videoscaling.training.config import (
    Config,
    config_from_dict,
    flatten,
    identity,
    known_keys,
    load_config,
    recorded_config,
    run_id,
    to_dict,
)
from videoscaling.training.keys import ALWAYS, CHANGED, NEVER, WITH_DECAY, info_of, key
from videoscaling.training.schema import OptimKeys, TrainKeys
from videoscaling.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "results/mini").glob("*/*/result.json"))
CELLS = ROOT / "results/mini/cells"
# The keys that came after the first committed runs, with what runs did before. A key whose default changes keeps its
# value here: `before=` at the key is what holds it. Add a new key's first default here.
BEFORE = {"data.seed": None, "optim.beta2_range": [0.0, 1.0], "train.init": ""}


@dataclass
class GrownTrain(TrainKeys):
    noise_scale: bool = key(False, "a key that came later")


@dataclass
class GrownOptim(OptimKeys):
    beta2_warmup: list[float] = key([0.0, 0.5], "another one, a list")


@dataclass
class Grown(Config):
    """The schema after two keys were added to it, and one that says nothing about what a run is."""

    train: GrownTrain = field(default_factory=GrownTrain)
    optim: GrownOptim = field(default_factory=GrownOptim)
    owner: str = key("", "who pays", identity=NEVER)


def grown(values: dict[str, Any], **flat: Any) -> Config:
    config = recorded_config(values, Grown)
    for name, value in flat.items():
        group, _, last = name.partition("__")
        setattr(getattr(config, group) if last else config, last or group, value)
    return config


def test_the_committed_runs_keep_their_ids() -> None:
    results = [json.loads(path.read_text()) for path in RESULTS]
    assert len(results) >= 139
    for path, result in zip(RESULTS, results):
        assert run_id(recorded_config(result["config"])) == result["run_id"] == path.parent.name


def test_the_study_s_sweep_still_finds_its_committed_cells() -> None:
    one = json.loads(RESULTS[0].read_text())
    meta = {"latent_shape": [16, 5, 4, 4], "fingerprint": one["config"]["data"]["fingerprint"]}
    sweep = load_sweep(ROOT / "configs/sweep/mini.yaml", [], lambda config: meta)
    assert {cell.config.run_dir.name for cell in sweep.cells} == {path.parent.name for path in CELLS.glob("*/*.json")}
    assert len(sweep.cells) == 139


def test_an_added_key_changes_no_id_until_it_is_used() -> None:
    values = json.loads(RESULTS[0].read_text())["config"]
    before = run_id(recorded_config(values))
    assert run_id(grown(values)) == before == run_id(grown(values, owner="me"))
    used = [run_id(grown(values, train__noise_scale=True)), run_id(grown(values, optim__beta2_warmup=[0.0, 0.9]))]
    assert len({before, *used}) == 3
    assert identity(grown(values, train__noise_scale=True))["train.noise_scale"] is True


def test_a_default_that_changes_keeps_the_ids_of_both_values() -> None:
    @dataclass
    class LaterTrain(TrainKeys):
        noise_scale: bool = key(True, "its default was False once", before=False)

    @dataclass
    class Later(Config):
        train: LaterTrain = field(default_factory=LaterTrain)

    values = json.loads(RESULTS[0].read_text())["config"]
    old, new = recorded_config(values), grown(values, train__noise_scale=True)
    # A run recorded before the key existed did what its first default does, not what today's does.
    assert run_id(recorded_config(values, Later)) == run_id(old)
    named = {
        flag: config_from_dict(values | {"train": values["train"] | {"noise_scale": flag}}, Later)
        for flag in (False, True)
    }
    assert run_id(named[False]) == run_id(old)
    assert run_id(named[True]) == run_id(new) == run_id(config_from_dict(values, Later))


def test_an_old_key_whose_default_changes_keeps_its_ids_too() -> None:
    @dataclass
    class LaterOptim(OptimKeys):
        beta1: float = key(0.95, "its default was 0.9 once", identity=ALWAYS, before=0.9)

    @dataclass
    class Later(Config):
        optim: LaterOptim = field(default_factory=LaterOptim)

    values = json.loads(RESULTS[0].read_text())["config"]
    assert run_id(config_from_dict(values, Later)) == run_id(recorded_config(values))
    assert run_id(load_config(None, ["optim.beta1=0.9"])) == run_id(config_from_dict({"optim": {"beta1": 0.9}}, Later))


def test_a_key_that_has_no_effect_is_not_hashed() -> None:
    @dataclass
    class LaterOptim(OptimKeys):
        floor: float = key(0.5, "acts on rates below it", before=0.0, matters=lambda config: config.optim.lr < 0.5)

    @dataclass
    class Later(Config):
        optim: LaterOptim = field(default_factory=LaterOptim)

    def later(lr: float) -> str:
        return run_id(config_from_dict({"optim": {"lr": lr}}, Later))

    assert later(0.6) == run_id(load_config(None, ["optim.lr=0.6"]))
    assert later(0.4) != run_id(load_config(None, ["optim.lr=0.4"]))


def test_a_renamed_key_keeps_its_hashed_name_and_is_read_under_both() -> None:
    @dataclass
    class Renamed(Config):
        random_seed: int = key(0, "the key that was called seed", identity=ALWAYS, formerly="seed")

    del Renamed.__dataclass_fields__["seed"]  # as if it stood there no longer
    schema = dataclasses.make_dataclass(
        "Renamed", [(f.name, f.type, f) for f in dataclasses.fields(Renamed)], bases=(), namespace={}
    )
    values = json.loads(RESULTS[0].read_text())["config"]
    config = recorded_config(values, schema)
    assert config.random_seed == values["seed"] != 0
    assert run_id(config) == run_id(recorded_config(values))
    with pytest.raises(UserError, match="unknown key 'seed'; it is called 'random_seed' now"):
        config_from_dict(values, schema)


def test_what_came_later_and_what_it_was_before_is_on_record() -> None:
    infos = info_of(Config)
    assert {name: info.before for name, info in infos.items() if info.identity == CHANGED} == BEFORE
    assert {info.identity for info in infos.values()} == {ALWAYS, CHANGED, NEVER, WITH_DECAY}
    assert set(identity(load_config(None, ["optim.schedule=cosine", "train.batch_tokens=80000"]))) == {
        name for name, info in infos.items() if info.identity in (ALWAYS, WITH_DECAY)
    }


def test_a_configuration_survives_being_recorded() -> None:
    config = load_config(None, ["seed=3", "data.seed=4", "train.milestones=[5]", "model.patch=[1,2,2]"])
    assert recorded_config(to_dict(config)) == config
    assert set(flatten(to_dict(config))) == set(known_keys())
