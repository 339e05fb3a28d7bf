"""The schema: every key, its default and its meaning. Merged strictly: defaults < YAML < command line."""

import dataclasses
import functools
import hashlib
import json
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils.errors import UserError, nearest, shown
from utils.sixties import refuse_sixties


def key(default: Any, help: str) -> Any:
    """A configuration key with its meaning, from which the documentation is generated."""
    factory = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return field(**factory, metadata={"help": help})


@dataclass
class ModelKeys:
    size: str | None = key(None, "a named size, LAYERSxWIDTH, such as 4x128; it sets layers, width and heads")
    layers: int | None = key(None, "blocks")
    width: int | None = key(None, "model width d")
    heads: int | None = key(None, "attention heads; default: of 32 channels below 12 layers and width 512, else 64")
    patch: list[int] = key([1, 1, 1], "latent frames, rows and columns that make one token")
    attention: str = key(
        "auto", "attention kernels: auto, sdpa, xformers or plain (no kernel: matrices and a softmax)"
    )


@dataclass
class DataKeys:
    cache: Any = key("", "folder of cached latents, made by tools/cache_latents.py, or a list of several to be mixed")
    weights: list[float] = key(
        [], "of several caches: how often each is seen, in any unit; by their sizes if not given"
    )
    seed: int | None = key(
        None, "seed of data order, noise, t and caption dropout, where runs are to share them; seed if not given"
    )
    fingerprint: str = key("", "of the cache; filled in when a run begins, and a cache with another is refused")
    caption_dropout: float = key(0.1, "share of captions replaced by the empty prompt, for guidance")


@dataclass
class DiffusionKeys:
    process: str = key("rectified_flow", "forward process: rectified_flow, vp_linear, vp_cosine or vp_zero_snr")
    target: str = key("flow", "what the model predicts: flow, or eps, v, x0 for the vp processes")
    timesteps: str = key("logit_normal", "how training draws t: logit_normal or uniform")
    logit_mean: float = key(0.0, "mean of logit(t) under logit_normal")
    logit_std: float = key(1.0, "standard deviation of logit(t) under logit_normal")


@dataclass
class OptimKeys:
    lr: float = key(1e-3, "peak learning rate of AdamW")
    beta1: float = key(0.9, "AdamW's first beta")
    beta2_half_life: float = key(5e6, "half-life of the second moment in tokens: beta2 = 2^(-B / half-life)")
    eps: float = key(1e-8, "AdamW's epsilon")
    weight_decay: float = key(0.0, "decoupled weight decay of the matrices; 0 in every law configuration")
    clip: float = key(1.0, "clip the gradient's global norm here")
    schedule: str = key("constant", "constant, cosine (to zero) or wsd (linear decay at the end), after the warm-up")
    warmup_tokens: int | None = key(None, "tokens of linear warm-up; 10 % of the smallest milestone where not given")
    decay_fraction: float = key(0.2, "share of the run that wsd decays over")


@dataclass
class EmaKeys:
    width: float = key(0.05, "relative width of the weights' power-function average (EDM2, arXiv 2312.02696)")


@dataclass
class TrainKeys:
    tokens: int | None = key(None, "end of the run, in tokens; rounded up to a whole step")
    flops: float | None = key(None, "end of the run, in training FLOPs by C_token; instead of train.tokens")
    milestones: list[int] = key([], "tokens at which the run is validated; its end always is")
    batch_tokens: int = key(0, "global batch B in tokens: a whole number of clips")
    micro_batch: int | None = key(None, "clips per forward pass and process; the process's whole share if not given")
    dtype: str = key("float32", "what the blocks compute in: float32 or bfloat16; master weights are float32")
    max_skipped: int = key(10, "steps in a row without a finite gradient after which a run counts as diverged")
    parallel: str = key("ddp", "several processes: ddp (each holds the model) or fsdp (FSDP2: each holds a shard)")
    activation_checkpointing: bool = key(False, "recompute each block's activations in the backward pass")
    timeout_minutes: float = key(30.0, "minutes to wait for a process that does not answer before giving up")
    compile: bool = key(False, "torch.compile, of up to 6 blocks as a whole (on the CPU: needs a C++ compiler)")


@dataclass
class ValidationKeys:
    clips: int | None = key(None, "the first so many clips of the cache's frozen list; all of them if not given")
    timesteps: int = key(4, "stratified times per clip")
    batch: int | None = key(
        None, "samples per forward pass; up to 32 of 40,960 tokens in all if not given; it does not change the loss"
    )
    seed: int = key(0, "seed of times and noise, common to all runs that are to be compared")


@dataclass
class CheckpointKeys:
    every_steps: int = key(1000, "steps between checkpoints; milestones, the end and SIGTERM make one too")
    keep: int = key(2, "checkpoints kept")
    final: str = key("full", "what a finished run keeps: full, or ema (averaged weights only, as sweeps do)")


@dataclass
class LogKeys:
    every_steps: int = key(10, "steps between lines of metrics.jsonl, of the console and TensorBoard points")
    prompts: list[str] = key([], "prompts sampled as videos to TensorBoard at each milestone")
    sample_steps: int = key(20, "sampler steps of those videos")
    guidance: float = key(3.0, "guidance of those videos")


@dataclass
class Config:
    name: str = key("run", "name of the run; its directory is out/name")
    out: str = key("runs", "folder of run directories")
    heldout: bool = key(False, "whether the run is kept from the fits, to check what they predict")
    seed: int = key(0, "seed of initialisation; of data order, noise, t and caption dropout too (see data.seed)")
    model: ModelKeys = field(default_factory=ModelKeys)
    data: DataKeys = field(default_factory=DataKeys)
    diffusion: DiffusionKeys = field(default_factory=DiffusionKeys)
    optim: OptimKeys = field(default_factory=OptimKeys)
    ema: EmaKeys = field(default_factory=EmaKeys)
    train: TrainKeys = field(default_factory=TrainKeys)
    validation: ValidationKeys = field(default_factory=ValidationKeys)
    checkpoint: CheckpointKeys = field(default_factory=CheckpointKeys)
    log: LogKeys = field(default_factory=LogKeys)

    @property
    def run_dir(self) -> Path:
        return Path(self.out) / self.name

    @property
    def data_seed(self) -> int:
        return self.seed if self.data.seed is None else self.data.seed


# What may change without making it another run: where it lies, how it is watched and kept, how a step is laid out.
MECHANISM = (
    "name",
    "out",
    "heldout",
    "log",
    "checkpoint",
    "data.cache",
    "data.weights",  # data.fingerprint stands for both
    "train.micro_batch",
    "train.max_skipped",
    "train.parallel",
    "train.activation_checkpointing",
    "train.timeout_minutes",
    "train.compile",
    "model.attention",
    "validation.batch",
)
# With a constant rate a run may also grow: nothing before a milestone depends on what follows it.
GROWTH = ("train.tokens", "train.flops", "train.milestones")


def known_keys(schema: type = Config, prefix: str = "") -> dict[str, dataclasses.Field]:
    """Every dotted key of the schema with its field."""
    keys: dict[str, dataclasses.Field] = {}
    for entry in dataclasses.fields(schema):
        if dataclasses.is_dataclass(entry.type):
            keys |= known_keys(entry.type, f"{prefix}{entry.name}.")
        else:
            keys[prefix + entry.name] = entry
    return keys


def load_yaml(path: str | Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file as a nested dict, on top of the file its ``extends`` names (relative to its own folder).

    Raises:
        UserError: the file is missing, is not a YAML mapping, or extends itself.
    """
    path = Path(path).resolve()
    if path in seen:
        raise UserError(f"{path}: extends itself, by way of {' -> '.join(p.name for p in seen)}")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
        # Plain text, such as a CSV, is one YAML string, of which OmegaConf makes a key without a value.
        if len(values) == 1 and isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), str):
            values = None
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except Exception as error:  # YAML's parser has a family of exceptions, all of them the file's fault
        raise UserError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a YAML mapping of keys to values")
    refuse_sixties(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    return merge(load_yaml(path.parent / str(base), (*seen, path)), values)


def load_config(path: str | Path | None, overrides: list[str]) -> Config:
    """Defaults < the YAML at ``path`` < ``overrides`` such as ``optim.lr=3e-4``.

    Raises:
        UserError: a key is unknown (the nearest known one is named) or a value has the wrong type.
    """
    values = load_yaml(path) if path else {}
    for override in overrides:
        name, equals, _ = override.partition("=")
        if not equals or name.startswith("-"):
            raise UserError(f"{override!r}: not an override; write key=value, such as optim.lr=3e-4")
        try:
            given = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
        except Exception as error:  # again the parser's, for values such as "[1,"
            raise UserError(f"{override}: {' '.join(str(error).split())}") from None
        values = merge(values, given)
    return config_from_dict(values)


def config_from_dict(values: dict[str, Any]) -> Config:
    """A typed Config from nested values; every key must be known and every value of its type."""
    keys = known_keys()
    values = _checked(values, keys)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{error.full_key}: {reason}") from None
    _validate(config)
    return config


def cache_folders(config: Config) -> list[str]:
    """The folders in ``data.cache``, which is one or a list of them."""
    return config.data.cache if isinstance(config.data.cache, list) else [config.data.cache]


def copied(config: Config) -> Config:
    """Another Config of the same values, whose keys may be set; lists, which nothing changes in place, are shared."""
    groups = (entry.name for entry in dataclasses.fields(config) if dataclasses.is_dataclass(entry.type))
    return dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name)) for name in groups})


def to_dict(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as {dotted key: value}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def identity(config: Config) -> dict[str, Any]:
    """The resolved keys that make a run what it is: all but ``MECHANISM`` and, at a constant rate, ``GROWTH``."""
    values = {name: value_of(config) for name, value_of in _identifying(config.optim.schedule == "constant")}
    if config.data.seed is None:
        del values["data.seed"]  # runs from before there was such a key are still the runs they were
    return values


@functools.cache
def _identifying(grows: bool) -> list[tuple[str, Callable[[Config], Any]]]:
    """The keys in an ``identity`` and how each is read, found once: a thousand cells are asked for theirs."""
    outside = MECHANISM + (GROWTH if grows else ())
    names = (name for name in known_keys() if not any(name == o or name.startswith(o + ".") for o in outside))
    return [(name, operator.attrgetter(name)) for name in names]


def run_id(config: Config) -> str:
    """A hash of what makes the (resolved) run, ``identity``."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:12]


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested values with those of ``over`` in their place, group by group."""
    merged = dict(base)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def _checked(values: dict[str, Any], keys: dict[str, dataclasses.Field], prefix: str = "") -> dict[str, Any]:
    """Refuse unknown keys; turn whole numbers written as 2e9 into integers, which OmegaConf will not."""
    sections = {name.rpartition(".")[0] for name in keys}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        full = f"{prefix}{name}"
        if full in keys:
            checked[name] = whole(value) if "int" in str(keys[full].type) else value
        elif full in sections and isinstance(value, dict):
            checked[name] = _checked(value, keys, f"{full}.")
        elif full in sections:
            raise UserError(f"{full}: a group of keys, not a value; set one of its keys, such as {full}.x=...")
        else:
            raise UserError(f"unknown key {shown(full)}{_meant(full, value, list(keys))}")
    return checked


# What other trainers call our keys.
_ALIASES = {
    "learning_rate": "optim.lr",
    "max_lr": "optim.lr",
    "grad_clip": "optim.clip",
    "max_grad_norm": "optim.clip",
    "batch_size": "train.batch_tokens",
    "global_batch_size": "train.batch_tokens",
    "gradient_accumulation_steps": "train.micro_batch",
    "steps": "train.tokens",
    "max_steps": "train.tokens",
    "epochs": "train.tokens",
    "precision": "train.dtype",
    "gradient_checkpointing": "train.activation_checkpointing",
}


def _meant(full: str, value: Any, known: list[str]) -> str:
    """A hint for an unknown key: a slip of the fingers, a key of that name elsewhere, or another trainer's name."""
    full = next(iter(flatten({full: value} if isinstance(value, dict) else {full: None})), full)
    last = full.rpartition(".")[2]
    elsewhere = [name for name in known if name.rpartition(".")[2] == last]
    hint = nearest(full, known, 0.8) or nearest(full, elsewhere, 0.0)
    return hint or (f"; did you mean {_ALIASES[last]!r}?" if last in _ALIASES else nearest(full, known))


def whole(value: Any) -> Any:
    """Whole numbers written as 2e9, or "2e9", as integers (in lists too); anything else as it is."""
    if isinstance(value, list):
        return [whole(entry) for entry in value]
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if not isinstance(value, bool) and number.is_integer() else value


_POSITIVE = (
    "model.layers",
    "model.width",
    "model.heads",
    "optim.lr",
    "optim.beta2_half_life",
    "optim.eps",
    "optim.clip",
    "ema.width",
    "train.tokens",
    "train.flops",
    "train.micro_batch",
    "train.max_skipped",
    "train.timeout_minutes",
    "validation.clips",
    "validation.timesteps",
    "validation.batch",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "log.every_steps",
    "log.sample_steps",
    "diffusion.logit_std",
)
_CHOICES = {
    "optim.schedule": ("constant", "cosine", "wsd"),
    "train.dtype": ("float32", "bfloat16"),
    "train.parallel": ("ddp", "fsdp"),
    "checkpoint.final": ("full", "ema"),
}
_FRACTIONS = ("data.caption_dropout", "optim.beta1", "optim.decay_fraction")


def _validate(config: Config) -> None:
    flat = flatten(to_dict(config))
    for name in _POSITIVE:
        value = flat[name]
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{name}={value}: must be a positive number")
    for name, known in _CHOICES.items():
        if flat[name] not in known:
            raise UserError(f"{name}={flat[name]}: one of {', '.join(known)}{nearest(flat[name], list(known))}")
    for name in _FRACTIONS:
        if not 0 <= flat[name] < 1:
            raise UserError(f"{name}={flat[name]}: must be at least 0 and below 1")
    for name in ("optim.weight_decay", "optim.warmup_tokens"):
        if not 0 <= (flat[name] or 0) < math.inf:
            raise UserError(f"{name}={flat[name]}: must be a number, and not negative")
    for name in ("diffusion.logit_mean", "log.guidance"):
        if not math.isfinite(flat[name]):
            raise UserError(f"{name}={flat[name]}: must be a finite number")
    if config.optim.schedule == "wsd" and config.optim.decay_fraction == 0:
        raise UserError("optim.decay_fraction=0: wsd decays over a share of the run; give one above 0")
    folders = cache_folders(config)
    if not (folders and all(isinstance(folder, str) for folder in folders)):
        raise UserError(f"data.cache={shown(config.data.cache)}: must be a folder, or a list of folders")
    if any(not (math.isfinite(weight) and weight > 0) for weight in config.data.weights):
        raise UserError(f"data.weights={config.data.weights}: must be positive numbers")
    if config.data.weights and len(config.data.weights) != len(folders):
        raise UserError(
            f"data.weights={config.data.weights}: one for each of the {len(folders)} folders in data.cache"
        )
    if len(config.model.patch) != 3 or min(config.model.patch) < 1:
        raise UserError(f"model.patch={config.model.patch}: three positive numbers, frames, rows and columns")
    if config.ema.width >= 0.28:
        raise UserError(f"ema.width={config.ema.width}: a power function's relative width is below 0.28")
    if any(m <= 0 for m in config.train.milestones):
        raise UserError(f"train.milestones={config.train.milestones}: must be positive numbers of tokens")
    if not Path(config.name).parts or Path(config.name).is_absolute() or ".." in Path(config.name).parts:
        raise UserError(f"name={config.name!r}: must be a folder's name inside out={config.out}")
