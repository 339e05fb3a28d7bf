"""A sweep's YAML as cells: one resolved training configuration each."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from training import extended
from training.config import Config, config_from_dict, load_yaml, run_id, whole
from training.resolve import Run, resolve
from utils.errors import UserError, nearest, shown
from utils.random import fold

WANTED = "; a sweep's YAML is wanted, such as configs/sweep/quickstart.yaml"
AXES = ("lr", "batch_tokens", "milestones", "repeats")


@dataclass
class SizeKeys:
    """One size of the ladder; what is not given here is the sweep's."""

    size: str = ""
    lr: list[float] | None = None
    batch_tokens: list[int] | None = None
    milestones: list[int] | None = None
    repeats: int | None = None
    heldout: bool = False


@dataclass
class ExecutorKeys:
    """How the cells are run.

    Attributes:
        workers: cells trained at once, each on a GPU, or on its share of the CPU's cores; one per GPU, or core where
            there is no GPU, if not given.
        retries: further attempts at a cell that crashes.
    """

    workers: int | None = None
    retries: int = 2


@dataclass
class SweepKeys:
    """A sweep: sizes x learning rates x batch sizes x repeats, each cell with its milestones.

    Attributes:
        name, out: the sweep's folder is out/name.
        base: the training configuration the cells share, relative to the sweep's YAML.
        sizes: the ladder's sizes, such as {size: 2x64, milestones: [1e5, 2e5]}.
        lr, batch_tokens, milestones, repeats: the grid of every size that does not give its own.
        seed: cells draw their training seeds from it, each its own.
    """

    name: str = "sweep"
    out: str = "runs"
    base: str = ""
    sizes: list[SizeKeys] = field(default_factory=list)
    lr: list[float] | None = None
    batch_tokens: list[int] | None = None
    milestones: list[int] | None = None
    repeats: int = 1
    seed: int = 0
    executor: ExecutorKeys = field(default_factory=ExecutorKeys)


@dataclass(frozen=True)
class Sweep:
    """A sweep's settings and its cells, in the order they are run: the costliest first."""

    keys: SweepKeys
    directory: Path
    cells: list[Run]


def load_sweep(path: str | Path, overrides: list[str], meta_of: Any) -> Sweep:
    """The sweep that the YAML at ``path`` describes.

    Args:
        overrides: keys of the sweep, such as ``executor.workers=4``.
        meta_of: the meta of a latent cache (its latent shape and fingerprint) for a cell's configuration.

    Raises:
        UserError: an unknown key, an empty grid, a cell that cannot be trained, or a size both fitted and held out.
    """
    try:
        values = load_yaml(path)
    except UserError as error:
        raise UserError(f"{error}{WANTED}") from None
    for override in overrides:
        name, equals, _ = override.partition("=")
        if not equals or name.split(".")[0] not in SweepKeys.__dataclass_fields__:
            hint = nearest(name, list(SweepKeys.__dataclass_fields__))
            raise UserError(f"{override!r}: not an override of a sweep's key, such as executor.workers=4{hint}")
        try:
            values = OmegaConf.to_container(OmegaConf.merge(values, OmegaConf.from_dotlist([override])))
        except Exception as error:  # the YAML parser's, for values such as "[1,", or keys inside a list
            raise UserError(f"{override}: {' '.join(str(error).split())}") from None
    keys = _typed(values, path)
    base = load_yaml(Path(path).parent / keys.base) if keys.base else {}
    directory = Path(keys.out) / keys.name
    cells: dict[str, Run] = {}
    for size in keys.sizes:
        for run in _cells(keys, size, base, directory, meta_of):
            cells[run.config.name] = run
    for run in _added(keys, base, directory, meta_of):
        milestones = cells[run.config.name].config.train.milestones if run.config.name in cells else []
        if not set(run.config.train.milestones) <= set(milestones):
            cells[run.config.name] = run
    if not cells:
        raise UserError(f"{path}: an empty grid; give sizes, lr and batch_tokens")
    fitted = {run.config.model.size for run in cells.values() if not run.config.heldout}
    both = sorted({run.config.model.size for run in cells.values() if run.config.heldout} & fitted)
    if both:
        raise UserError(f"{path}: size {both[0]} is held out and in the fit; it can be one of them")
    ordered = sorted(cells.values(), key=lambda run: -run.flops_per_token * run.config.train.tokens)
    return Sweep(keys, directory, ordered)


def _cells(keys: SweepKeys, size: SizeKeys, base: dict[str, Any], directory: Path, meta_of: Any) -> list[Run]:
    axes = {axis: getattr(size, axis) if getattr(size, axis) is not None else getattr(keys, axis) for axis in AXES}
    empty = [axis for axis, given in axes.items() if not given]
    if empty:
        raise UserError(f"sizes: {size.size or 'an entry'} has no {empty[0]}; give it there or for the whole sweep")
    cells = []
    for batch in axes["batch_tokens"]:
        for lr in axes["lr"]:
            for repeat in range(axes["repeats"]):
                config = _cell_config(keys, size, base, lr, batch, axes["milestones"], repeat)
                run = resolve(config, meta_of(config))
                run.config.name = str(Path(keys.name) / run_id(run.config))
                cells.append(run)
    return cells


def _added(keys: SweepKeys, base: dict[str, Any], directory: Path, meta_of: Any) -> list[Run]:
    """The cells that ``extend`` added, of sizes that the sweep still has."""
    sizes = {size.size: size for size in keys.sizes}
    runs = []
    for cell in extended.read(directory):
        if (size := sizes.get(cell["size"])) is not None:
            axes = cell["lr"], cell["batch_tokens"], cell["milestones"], cell["repeat"]
            config = _cell_config(keys, size, base, *axes)
            run = resolve(config, meta_of(config))
            run.config.name = str(Path(keys.name) / run_id(run.config))
            runs.append(run)
    return runs


def _cell_config(
    keys: SweepKeys, size: SizeKeys, base: dict[str, Any], lr: float, batch: int, milestones: list[int], repeat: int
) -> Config:
    values = copy.deepcopy(base)
    for section in ("model", "optim", "train", "log", "checkpoint"):
        values[section] = values.get(section) or {}
    values |= {"out": keys.out, "name": keys.name, "heldout": size.heldout}
    # Every cell has a seed of its own: cells that shared one would share its luck.
    values["seed"] = fold(keys.seed, size.size, lr, batch, repeat) & (1 << 31) - 1
    values["model"]["size"] = size.size
    values["optim"]["lr"] = lr
    values["train"] |= {"batch_tokens": batch, "milestones": milestones, "tokens": max(milestones)}
    values["checkpoint"]["final"] = "ema"
    values["log"]["prompts"] = []
    return config_from_dict(values)


def _typed(values: dict[str, Any], path: str | Path) -> SweepKeys:
    """Strictly typed keys; whole numbers may be written as 2e5."""
    sizes = values.get("sizes") or []
    if not isinstance(sizes, list) or not all(isinstance(size, dict) for size in sizes):
        raise UserError(f"{path}: sizes: must be a list of entries such as {{size: 2x64}}")
    for keys, schema in [(values, SweepKeys), *((size, SizeKeys) for size in sizes)]:
        known = schema.__dataclass_fields__
        for name in keys:
            if name not in known:
                other = "sizes" not in values  # another file, or a slip: a far hint would only mislead
                hint = nearest(str(name), list(known), 0.75 if other else 0.5) or (WANTED if other else "")
                raise UserError(f"{path}: unknown key {shown(name)}{hint}")
        for name in ("batch_tokens", "milestones", "repeats"):
            if name in keys:
                keys[name] = whole(keys[name])
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SweepKeys), values))
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {error.full_key or 'a group of keys'}: {str(error).splitlines()[0]}") from None
    executor = typed.executor
    if (executor.workers is not None and executor.workers < 1) or executor.retries < 0:
        raise UserError(f"{path}: executor: workers must be at least 1, and retries not negative")
    return typed
