"""YAML as people write it: text stays what was written, and numbers are to the base 10."""

from pathlib import Path

import pytest

from videoscaling.sweeps.config import is_sweep_text
from videoscaling.training.config import is_text, load_config
from videoscaling.utils.errors import UserError
from videoscaling.utils.yaml_text import parse_override, parse_yaml, read_yaml

WRITTEN = ["007", "1.10", "1e3", "no", "12:00:00", "0x10", "2026-11-29", "true", "-1", ".5", "1_000"]


@pytest.mark.parametrize("text", WRITTEN)
def test_text_is_what_was_written(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"name: {text}\nlog: {{prompts: [{text}]}}\ndata: {{cache: [{text}]}}\n")
    for config in (
        load_config(path, []),
        load_config(None, [f"name={text}", f"log.prompts=[{text}]", f"data.cache=[{text}]"]),
    ):
        assert (config.name, config.log.prompts, config.data.cache) == (text, [text], [text])
    assert load_config(None, [f"data.cache={text}"]).data.cache == text


@pytest.mark.parametrize("written", ["'null'", '"null"'])
def test_quotes_are_yamls(written: str) -> None:
    assert load_config(None, [f"name={written}"]).name == "null"


@pytest.mark.parametrize("nothing", ["null", ""])
def test_no_value_is_no_name(nothing: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"name: {nothing}\n")
    for given in ((path, []), (None, [f"name={nothing}"])):
        with pytest.raises(UserError, match="name: no value"):
            load_config(*given)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12:00:00", "12:00:00"),
        ("1:30", "1:30"),
        ("010", 10),
        ("0x1f", 31),
        ("-0b11", -3),
        ("1_000", 1000),
        ("3e-4", 3e-4),
        ("1.", 1.0),
        ("-.5", -0.5),
        ("2e9", 2e9),
        ("1234567890123456789e0", 1234567890123456789),
        ("1e23", 10**23),
        ("-.inf", float("-inf")),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("2026-11-29", "2026-11-29"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("{1: 2, no: 3}", {"1": 2, "no": 3}),
        ("{a: &x {b: 1}, c: {<<: *x, d: 2}}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
    ],
)
def test_values(text: str, value: object) -> None:
    found = parse_yaml(text, lambda key: False)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "duplicate key 'a'; give it once"),
        ("a: !!python/name:os.system\n", "tag tag:yaml.org,2002:python/name:os.system is not supported"),
        ("a: !!int x\n", "not of the type"),
        ("? [1]\n: 2\n", "a key must be a name"),
        ("a: [1\n", "not a YAML file"),
        ("[" * 5000, "nested too deep"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(10 * ['*' + chr(97 + i)])}]\n" for i in range(9)),
            "more than 200,000 values",
        ),
    ],
)
def test_what_is_no_configuration_is_refused_in_a_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(path, lambda key: False)
    assert "\n" not in str(caught.value)


def test_an_empty_file_has_no_keys(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "x.yaml", is_text) == {}


def test_options_of_sbatch_are_what_was_written() -> None:
    assert parse_override("executor.slurm.options.qos=007", is_sweep_text) == "007"
    assert parse_override("executor.slurm.options={qos: no, nice: 010}", is_sweep_text) == {"qos": "no", "nice": "010"}
    assert parse_override("config.optim.lr=1e-3", is_sweep_text) == 1e-3
