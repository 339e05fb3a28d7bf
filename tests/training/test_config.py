"""The configuration: strict, typed, layered; and every key read by something."""

import re
from collections import Counter
from pathlib import Path

import pytest

from videoscaling.training.config import (
    HINTS,
    Config,
    config_from_dict,
    flatten,
    identity,
    known_keys,
    load_config,
    run_id,
    to_dict,
)
from videoscaling.training.run import resolve, run_warnings, token_numbers, width_warnings
from videoscaling.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
META = {"latent_shape": [4, 2, 4, 4], "fingerprint": "f00d"}


def config(*overrides: str) -> Config:
    return load_config(None, ["model.size=2x32", "train.tokens=2e4", "train.batch_tokens=128", *overrides])


def test_command_line_over_yaml_over_its_base_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("optim: {lr: 1e-4, clip: 2.0, beta1: 0.8}\nname: base\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.yaml").write_text("extends: ../base.yaml\noptim: {lr: 2e-4, clip: 3.0}\n")
    merged = load_config(tmp_path / "sub" / "x.yaml", ["optim.lr=3e-4", "train.milestones=[1e5,2e9]"])
    assert (merged.optim.lr, merged.optim.clip, merged.optim.beta1) == (3e-4, 3.0, 0.8)
    assert (merged.name, merged.optim.eps) == ("base", Config().optim.eps)
    assert merged.train.milestones == [100_000, 2_000_000_000]


def test_a_written_configuration_reads_back_the_same() -> None:
    resolved = resolve(config(), META).config
    assert config_from_dict(to_dict(resolved)) == resolved


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lrr=1"], "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        (["optmi.lr=1"], "unknown key 'optmi'; did you mean 'optim.lr'"),
        (["lr=1e-3"], "did you mean 'optim.lr'"),
        (["optim.learning_rate=1e-3"], "unknown key 'optim.learning_rate'; did you mean 'optim.lr'"),
        (["train.batch_size=8"], "did you mean 'train.batch_tokens'"),
        (["batch_size=8"], "did you mean 'train.batch_tokens'"),
        (["train.steps=8"], "did you mean 'train.tokens'"),
        (["train.epochs=8"], "did you mean 'train.tokens'"),
        (["train.weight_decay=0"], "did you mean 'optim.weight_decay'"),
        (["xyzzy=0"], "unknown key 'xyzzy'$"),
        (["xyzzy" + "y" * 200 + "=0"], r"unknown key 'xyzzy{52}\.\.\.$"),
        (["optim=3"], "optim: a group of keys"),
        (["optim.lr=fast"], "optim.lr='fast': must be a number"),
        (["train.tokens=2.5"], "train.tokens"),
        (["optim.lr=-1e-4"], "optim.lr=-0.0001: must be a positive number"),
        (["optim.lr=0"], "optim.lr=0.0: must be a positive number"),
        (["optim.lr=nan"], "optim.lr=nan: must be a positive number"),
        (["optim.schedule=constnat"], "did you mean 'constant'"),
        (["optim.lr"], "'optim.lr': not an override"),
        (["model.patch=[1,2]"], "model.patch"),
        (["name=../x"], "name='../x'"),
        (["train.milestones=[-5]"], "train.milestones"),
        (["ema.width=0.5"], "below 0.28"),
        (["optim.weight_decay=inf"], "optim.weight_decay=inf: must be a number, and not negative"),
        (["log.guidance=nan"], "log.guidance=nan: must be a finite number"),
    ],
)
def test_bad_values_name_the_key_and_the_fix(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(None, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.batch_tokens=100"], "not a whole number of clips of 32 tokens; nearest: 96 or 128"),
        (["train.batch_tokens=20"], "nearest: 32$"),
        (["train.batch_tokens=0"], "train.batch_tokens: not given"),
        (["train.tokens=100"], "less than one batch of train.batch_tokens=128"),
        (["train.batch_tokens=-64"], "nearest: 32$"),
        (["model.size=2x33"], "width must be a multiple of 32"),
        (["model.size=tiny"], "LAYERSxWIDTH"),
        (["model.size=2x32", "model.width=64"], "contradicts"),
        (["model.heads=3"], "model.heads=3"),
        (["model.patch=[1,2,4]"], "too narrow for tokens of 32 numbers, which need a width of at least 64"),
        (["model.patch=[1,3,1]"], "does not divide"),
        (["train.flops=1e15"], "train.tokens and train.flops"),
        (["data.fingerprint=beef"], "f00d"),
    ],
)
def test_what_the_data_contradicts_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(config(*overrides), META)


def test_yaml_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such configuration file"):
        load_config(tmp_path / "absent.yaml", [])
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "table.yaml").write_text("run_id,N\na,1e6\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    (tmp_path / "loop.yaml").write_text("extends: loop.yaml\n")
    for name, message in (
        ("list", "not a YAML mapping"),
        ("table", "table.yaml: not a YAML mapping of keys to values$"),
        ("broken", "not a YAML file"),
        ("loop", "extends itself"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(tmp_path / f"{name}.yaml", [])


def test_flops_end_a_run_as_tokens_would() -> None:
    by_tokens = resolve(config(), META)
    budget = f"train.flops={by_tokens.flops_per_token * 2e4}"
    by_flops = resolve(load_config(None, ["model.size=2x32", "train.batch_tokens=128", budget]), META)
    assert by_flops.config.train.tokens == pytest.approx(2e4, abs=1)


def test_run_id_ignores_mechanism_and_at_a_constant_rate_growth() -> None:
    def id_of(*overrides: str) -> str:
        return run_id(resolve(config("train.milestones=[5e3]", *overrides), META).config)

    assert id_of() == id_of(
        "name=other", "train.micro_batch=2", "log.every_steps=1", "train.tokens=4e4", "data.cache=/x"
    )
    assert id_of() != id_of("optim.lr=2e-3")
    assert id_of() != id_of("seed=1")
    assert id_of("optim.schedule=cosine") != id_of("optim.schedule=cosine", "train.tokens=4e4")
    assert id_of() != id_of("optim.warmup_tokens=501")


def test_warmup_is_fixed_by_the_first_milestone_and_not_by_the_end() -> None:
    short = resolve(config("train.milestones=[5e3]"), META).config
    long = resolve(config("train.milestones=[5e3]", "train.tokens=9e4"), META).config
    assert short.optim.warmup_tokens == long.optim.warmup_tokens == 500


def unread_keys(keys: list[str]) -> list[str]:
    """Those that are read nowhere outside the schema, as an attribute of their own section."""
    schema = ("config.py", "schema.py")
    files = [
        p.read_text()
        for f in ("training", "sweeps", "tools")
        for p in (ROOT / f).rglob("*.py")
        if p.name not in schema
    ]
    files.append((ROOT / "training/schema.py").read_text().partition("def run_dir")[2])

    def read(key: str, code: str) -> bool:
        section, _, name = key.rpartition(".")
        owners = [section or "(?:config|self)"]
        if section and re.search(rf"\b{section.capitalize()}Keys\b|[.]config[.]{section}\b", code):
            owners += ["keys", "_keys"]  # what a function that takes one section calls it
        return any(re.search(rf"\b{owner}[.]{name}\b", code) for owner in owners)

    return [key for key in keys if not any(read(key, code) for code in files)]


def test_every_key_is_read_by_something() -> None:
    assert unread_keys(list(known_keys())) == []
    # And one that is not would be found, mostly even where another section has a key of its name.
    invented = ["unread", "train.unread", "optim.guidance", "ema.clips", "diffusion.batch", "model.guidance"]
    assert unread_keys(invented) == invented


def test_every_key_says_what_it_means() -> None:
    assert all(field.metadata["info"].help for field in known_keys().values())
    assert set(known_keys()) == set(flatten(to_dict(Config())))
    assert "optim.lr" in identity(Config())


def test_a_word_of_other_trainers_means_one_thing_here() -> None:
    words = [*HINTS, *(alias for field in known_keys().values() for alias in field.metadata["info"].aliases)]
    assert [word for word, count in Counter(words).items() if count > 1] == []


def test_integers_do_not_pass_through_floats(tmp_path: Path) -> None:
    """2^53 and more: of two such seeds a float makes one."""
    path = tmp_path / "x.yaml"
    for seed in (1234567890123456788, 1234567890123456789):
        path.write_text(f"seed: {seed}\ndata: {{seed: {seed}e0}}\n")
        for given in (load_config(path, []), load_config(None, [f"seed={seed}", f"data.seed={seed}e0"])):
            assert (given.seed, given.data.seed) == (seed, seed)
    assert config_from_dict({"seed": "1234567890123456789"}).seed == 1234567890123456789
    assert config_from_dict({"seed": 2e9}).seed == 2_000_000_000


def test_what_another_file_recorded_is_not_replaced_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result.json or a checkpoint of somebody else's: its text reaches reports as it is, or not at all."""
    monkeypatch.setenv("TOKEN", "secret")
    for values in (
        {"name": "${oc.env:TOKEN}"},
        {"log": {"prompts": ["${oc.env:TOKEN}"]}},
        {"data": {"cache": ["${x}"]}},
    ):
        with pytest.raises(UserError, match="is not replaced here") as caught:
            config_from_dict(values)
        assert "secret" not in str(caught.value)


def test_a_prompt_may_have_lines() -> None:
    assert config_from_dict({"log": {"prompts": ["a\nb"]}}).log.prompts == ["a\nb"]


def test_widths_below_four_times_a_token_warn_and_below_twice_are_refused() -> None:
    config = load_config(
        None, ["model.size=2x32", "train.batch_tokens=128", "train.tokens=1e4", "model.patch=[1,2,2]"]
    )
    run = resolve(config, META)
    assert (run.config.model.width, token_numbers(run.config, META["latent_shape"])) == (32, 16)
    assert [text for text in run_warnings(run.config, 16) if "beta2" not in text] == width_warnings([32], 16)
    run.config.optim.warmup_tokens = run.config.train.tokens
    assert any("the run ends at 10," in text for text in run_warnings(run.config, 16))
    (warning,) = width_warnings([run.config.model.width, 64], 16)
    assert warning.startswith("width 32: below 64")
    assert not width_warnings([64], 16)
