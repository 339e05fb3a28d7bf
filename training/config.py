"""A configuration: read, merged strictly (defaults < YAML < command line), checked, and hashed into a run's id."""

import dataclasses
import functools
import hashlib
import json
import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from videoscaling.training.keys import (
    ALWAYS,
    CHANGED,
    NEVER,
    WITH_DECAY,
    KeyInfo,
    check_value,
    info_of,
    keys_of,
    older_values,
)
from videoscaling.training.schema import Config
from videoscaling.utils.errors import UserError, nearest, nearest_path, shown
from videoscaling.utils.messages import warn
from videoscaling.utils.typed import typed
from videoscaling.utils.user_text import check_literal, check_printable, expand_home
from videoscaling.utils.yaml_text import Values, number, parse_override, read_yaml

CONFIG = "config.yaml"  # the resolved configuration in a run directory and in a checkpoint
# Other trainers' keys and options for what needs no key here, and what to do instead.
ELSEWHERE = (
    (
        "accelerator cuda device devices gpu gpus n_gpus num_gpus num_processes nproc nproc_per_node world_size",
        "a run takes the GPU where there is one, else the CPU (CUDA_VISIBLE_DEVICES= before the command hides GPUs), "
        "and several GPUs under torchrun",
    ),
    (
        "resume resume_from resume_from_checkpoint ckpt ckpt_path checkpoint_path load load_from",
        "a run continues from its newest checkpoint if it is started again with the same name=...; train.init=... "
        "begins another with its weights",
    ),
    (
        "num_frames image_size resolution height video_length fps frame_interval sample_rate",
        "clips are cut and encoded by tools/cache_latents.py (--frames, --size, --fps)",
    ),
    (
        "num_workers dataloader_num_workers",
        "training reads latents from memory maps; tools/cache_latents.py, which decodes, has --workers",
    ),
    (
        "entity wandb_project wandb_entity wandb_name wandb_mode wandb_group tracker_project_name",
        "wandb and trackio, which log.to names, read environment variables such as WANDB_PROJECT and WANDB_MODE",
    ),
    ("config yaml", "a configuration file is given as --config FILE"),
    ("push_to_hub hub_model_id", "tools/export.py writes a folder with a card, for hf upload"),
    ("use_ema", "the weights are always averaged; ema.width says how"),
)
HINTS = {word: f"; {hint}" for words, hint in ELSEWHERE for word in words.split()}


def known_keys(schema: type = Config) -> dict[str, dataclasses.Field]:
    """Every dotted key of the schema with its field."""
    return keys_of(schema)


def is_text(name: str) -> bool:
    """Whether the values of the dotted key ``name`` are text ("log.prompts[]": the entries of a list)."""
    return name in text_keys()


@functools.cache
def text_keys() -> frozenset[str]:
    """The keys whose values are text, "log.prompts[]" where lists of it, and ``extends``."""
    names = {"extends"}
    for name, entry in known_keys().items():
        if entry.type is Any and info_of(Config)[name].path:  # one path, or a list of them
            names |= {name, f"{name}[]"}
        elif "str" in str(entry.type):
            names.add(f"{name}[]" if "list" in str(entry.type) else name)
    return frozenset(names)


def load_yaml(path: str | Path, seen: tuple[Path, ...] = (), *, is_text: Callable[[str], bool] = is_text) -> Values:
    """A YAML file as a nested dict, on top of the file its ``extends`` names (relative to its own folder).

    Args:
        is_text: the keys whose values stay the text as written; training's where not given.

    Raises:
        UserError: the file is missing, is not a YAML mapping, or extends itself.
    """
    path = Path(os.path.realpath(Path(path).expanduser()))  # resolve() ends in a traceback at a loop of links
    if path in seen:
        raise UserError(f"{path}: extends itself, by way of {' -> '.join(p.name for p in seen)}")
    try:
        values = read_yaml(path, is_text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file{nearest_path(path)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a YAML mapping of keys to values")
    base = values.pop("extends", None)
    if base is None:
        return values
    return merge(load_yaml(path.parent / Path(str(base)).expanduser(), (*seen, path), is_text=is_text), values)


def load_config(path: str | Path | None, overrides: list[str]) -> Config:
    """Defaults < the YAML at ``path`` < ``overrides`` such as ``optim.lr=3e-4``.

    Raises:
        UserError: a key is unknown (the nearest known one is named) or a value has the wrong type.
    """
    values = load_yaml(path) if path else {}
    for override in overrides:
        name, equals, _ = override.partition("=")
        if not equals and override.endswith((".yaml", ".yml")):
            raise UserError(f"{override}: a configuration file is given as --config {override}")
        if not equals or name.startswith("-"):
            raise UserError(f"{override!r}: not an override; write key=value, such as optim.lr=3e-4")
        values = merge(values, nested({name: parse_override(override, is_text)}))
    return config_from_dict(values)


def config_from_dict(values: Values, schema: type = Config) -> Config:
    """A typed Config from nested values; every key must be known and every value of its type."""
    config = typed(schema, checked_keys(values, schema))
    _validate(config)
    return config


def recorded_config(values: Values, schema: type = Config) -> Config:
    """The Config that a run recorded, perhaps before some of today's keys existed or under the names they had then."""
    infos, flat = info_of(schema), flatten(values)
    renamed = {info.formerly: name for name, info in infos.items() if info.formerly}
    flat = {renamed.get(name, name): value for name, value in flat.items()}
    for name, info in infos.items():
        if info.identity in (ALWAYS, WITH_DECAY) and name not in flat:
            raise UserError(f"{name}: missing, which every run recorded; the record is damaged")
    return config_from_dict(nested(older_values(schema) | flat), schema)


def read_config(path: Path) -> Config:
    """The resolved configuration inside a checkpoint or run directory."""
    values = load_yaml(path / CONFIG)
    try:
        return recorded_config(values)
    except UserError as error:
        raise UserError(f"{path / CONFIG}: {error}") from None


def config_of_run(directory: Path, verbose: bool = False) -> Config | None:
    """The configuration that made a run directory, None without one.

    If its own file is damaged or missing, its newest checkpoint's: a run is not lost by a file that it writes anew.
    """
    checkpoints = sorted(directory.glob(f"checkpoints/step_*/{CONFIG}"), reverse=True)
    for path in (directory / CONFIG, *checkpoints):
        if path.is_file() or path.is_dir():
            try:
                return read_config(path.parent)
            except UserError as error:
                if verbose:
                    warn(f"{error}; it is written anew")
    return None


def cache_folders(config: Config) -> list[str]:
    """The folders in ``data.cache``, which is one or a list of them."""
    return config.data.cache if isinstance(config.data.cache, list) else [config.data.cache]


def copied(config: Config) -> Config:
    """Another Config of the same values, whose keys may be set; lists, which nothing changes in place, are shared."""
    groups = (entry.name for entry in dataclasses.fields(config) if dataclasses.is_dataclass(entry.type))
    return dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name)) for name in groups})


def to_dict(config: Config) -> Values:
    return dataclasses.asdict(config)


def flatten(values: Values, prefix: str = "") -> Values:
    """Nested values as {dotted key: value}."""
    flat: Values = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def nested(flat: Values) -> Values:
    """The inverse of ``flatten``."""
    values: Values = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        inner = values
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return values


def identity(config: Config) -> Values:
    """The keys that identify a (resolved) run, {hashed name: value}; equal for two runs that are the same run.

    ``training.keys`` says which keys are in it. A key added after the first committed runs is left out where it has
    the value, or the effect, that every run had before.
    """
    values = {}
    for name, value_of, info in _hashed(type(config), config.optim.schedule == "constant"):
        value = value_of(config)
        same = value == info.before or (info.matters is not None and not info.matters(config))
        if info.identity != CHANGED or not same:
            values[info.formerly or name] = value
    return values


def hashed_values(config: Config) -> Values:
    """Every key's value under the name that ids know it by, {hashed name: value}."""
    infos = info_of(type(config))
    return {infos[name].formerly or name: value for name, value in flatten(to_dict(config)).items()}


@functools.cache
def _hashed(schema: type, grows: bool) -> list[tuple[str, Callable[[Config], Any], KeyInfo]]:
    """The keys that enter ``identity`` and their getters, cached: a sweep hashes a thousand cells."""
    left_out = (NEVER, WITH_DECAY) if grows else (NEVER,)
    infos = info_of(schema).items()
    return [(name, operator.attrgetter(name), info) for name, info in infos if info.identity not in left_out]


def run_id(config: Config) -> str:
    """A hash of what makes the (resolved) run, ``identity``."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:12]


def merge(base: Values, over: Values) -> Values:
    """Nested values with those of ``over`` in their place, group by group."""
    merged = dict(base)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def checked_keys(values: Values, schema: type = Config, prefix: str = "") -> Values:
    """Refuse unknown keys; turn whole numbers written as 2e9 into integers."""
    keys = known_keys(schema)
    sections = {name.rpartition(".")[0] for name in keys}
    checked: Values = {}
    for name, value in values.items():
        full = f"{prefix}{name}"
        if full in keys:
            checked[name] = _checked_value(full, value, keys[full])
        elif full in sections and isinstance(value, dict):
            checked[name] = checked_keys(value, schema, f"{full}.")
        elif full in sections:
            first = next(key for key in keys if key.startswith(f"{full}."))
            raise UserError(f"{full}: a group of keys, not a value; set one of its keys, such as {first}=...")
        else:
            raise UserError(f"unknown key {shown(full)}{_meant(full, value, schema)}")
    return checked


def key_hint(word: str) -> str:
    """A hint that names the key for an unknown option ``word``, such as optim.lr=... for lr; empty without one."""
    name = key_called(word)
    return f"; it is a key: write {name}=... ({info_of(Config)[name].help})" if name else HINTS.get(word.lower(), "")


def key_called(word: str) -> str | None:
    """The dotted key whose name, last part or alias is ``word``; None where there is none."""
    for name in known_keys():
        if word in (name, name.rpartition(".")[2]) or word.lower() in info_of(Config)[name].aliases:
            return name
    return None


def _checked_value(name: str, value: Any, entry: dataclasses.Field) -> Any:
    """``value`` of the key ``name`` with its home directory and its integers filled in; UserError for bad text."""
    check_literal(name, value)
    if "list[str]" not in str(entry.type):  # prompts may have lines
        check_printable(name, value)
    if value is None and entry.type is str:
        raise UserError(f"{name}: no value; leave the key out, or put a name such as 'null' in quotes")
    if entry.metadata["info"].path:
        value = expand_home(value)
    return as_integer(value) if "int" in str(entry.type) else value


def _meant(full: str, value: Any, schema: type) -> str:
    """A hint for an unknown key: a slip of the fingers, a key of that name elsewhere, or another trainer's name."""
    known = list(known_keys(schema))
    renamed = {info.formerly: name for name, info in info_of(schema).items() if info.formerly}
    full = next(iter(flatten({full: value} if isinstance(value, dict) else {full: None})), full)
    if full in renamed:
        return f"; it is called {renamed[full]!r} now"
    last = full.rpartition(".")[2]
    elsewhere = [name for name in known if name.rpartition(".")[2] == last]
    # An exact alias comes before a similar spelling: ema_decay is not weight_decay.
    return (
        alias_hint(last, schema) or nearest(full, known, 0.8) or nearest(full, elsewhere, 0.0) or nearest(full, known)
    )


def alias_hint(word: str, schema: type = Config) -> str:
    """A hint for what another trainer calls one of our keys, with our key's meaning; empty for other words."""
    for name, info in info_of(schema).items():
        if word.lower().replace("-", "_") in info.aliases:
            return f"; did you mean {name!r}? ({info.help})"
    return HINTS.get(word.lower(), "")


def as_integer(value: Any) -> Any:
    """Whole numbers written as 2e9, or "2e9", as integers (in lists too); anything else as it is.

    No integer passes through a float: of 19-digit seeds two would become one.
    """
    if isinstance(value, list):
        return [as_integer(entry) for entry in value]
    if isinstance(value, str):
        try:
            value = number(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _validate(config: Config) -> None:
    flat = flatten(to_dict(config))
    for name, info in info_of(type(config)).items():
        check_value(name, flat[name], info)
    if config.optim.schedule == "wsd" and config.optim.decay_fraction == 0:
        raise UserError("optim.decay_fraction=0: wsd decays over a share of the run; give one above 0")
    if config.log.prompts and "tensorboard" not in config.log.to:
        raise UserError(f"log.prompts: their videos are in TensorBoard alone; add it to log.to={config.log.to}")
    folders = cache_folders(config)
    if not (folders and all(isinstance(folder, str) for folder in folders)):
        raise UserError(f"data.cache={shown(config.data.cache)}: must be a folder, or a list of folders")
    if config.data.weights and len(config.data.weights) != len(folders):
        raise UserError(f"data.weights={config.data.weights}: give one for each folder in data.cache ({len(folders)})")
    low_high = config.optim.beta2_range
    if len(low_high) != 2 or not low_high[0] <= low_high[1] or low_high[0] == 1:
        raise UserError(
            f"optim.beta2_range={low_high}: two numbers, the least and the largest beta2, such as [0.9, 0.9999]"
        )
    if len(config.model.patch) != 3:
        raise UserError(f"model.patch={config.model.patch}: three positive numbers, frames, rows and columns")
    if not Path(config.name).parts or Path(config.name).is_absolute() or ".." in Path(config.name).parts:
        raise UserError(f"name={config.name!r}: must be a folder's name inside out={config.out}")
