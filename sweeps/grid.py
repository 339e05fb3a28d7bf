"""A sweep's YAML as cells: one resolved training configuration each. No torch here, so that listing is quick."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from videoscaling.data.index import CacheMeta
from videoscaling.models.sizes import parameters, parse_size
from videoscaling.sweeps import added_cells
from videoscaling.sweeps.config import EXAMPLE, SET_BY_SWEEP, SizeKeys, SweepKeys, is_sweep_text, overridden, typed
from videoscaling.training.config import Config, checked_keys, config_from_dict, flatten, load_yaml, merge, run_id
from videoscaling.training.run import WARMUP_FRACTION, Run, clip_tokens, label, resolve
from videoscaling.utils.errors import UserError
from videoscaling.utils.seeds import derive_seed
from videoscaling.utils.yaml_text import Values

AXES = ("lr", "batch_tokens", "repeats")
BOARDS = "tensorboard"  # in the sweep's folder: a folder of TensorBoard events for each cell

# (N, T) -> the best (lr, B in tokens) that a law predicts.
Prediction = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Sweep:
    """A sweep's settings and its cells, in the order they are run: the costliest first.

    Attributes:
        shared: the training keys that all cells share, nested: the base's under the sweep's ``config``.
    """

    keys: SweepKeys
    directory: Path
    cells: list[Run]
    shared: Values


def load_sweep(
    path: str | Path, overrides: list[str], meta_of: Any, law_of: Callable[[Path], Prediction] | None = None
) -> Sweep:
    """The sweep that the YAML at ``path`` describes.

    Args:
        overrides: keys of the sweep, such as ``executor.workers=4``.
        meta_of: the meta of a latent cache (its latent shape and fingerprint) for a cell's configuration.
        law_of: reads the law file that ``around`` names.

    Raises:
        UserError: an unknown key, an empty grid, a cell that cannot be trained, or a size both fitted and held out.
    """
    keys = read_keys(path, overrides)
    shared = _shared(keys, Path(path))
    predict = None
    if keys.around is not None:
        assert law_of is not None
        next_to_yaml = Path(path).parent / keys.around
        predict = law_of(next_to_yaml if next_to_yaml.exists() else Path(keys.around))
    directory = Path(keys.out) / keys.name
    cells: dict[str, Run] = {}
    for size in keys.sizes:
        for run in _cells(keys, size, shared, meta_of, predict):
            join(cells, run)
    added = _added(keys, shared, directory, meta_of)
    for run in added:
        join(cells, run)
    last: dict[str, int] = {}
    for run in cells.values():
        last[run.config.model.size] = max(run.config.train.tokens, last.get(run.config.model.size, 0))
    for config in (cells[run.config.run_dir.name].config for run in added):
        if config.train.tokens < last[config.model.size]:
            config.checkpoint.final = "full"  # extend may continue it
    if not cells:
        raise UserError(f"{path}: an empty grid; give sizes, lr and batch_tokens")
    fitted = {run.config.model.size for run in cells.values() if not run.config.heldout}
    both = sorted({run.config.model.size for run in cells.values() if run.config.heldout} & fitted)
    if both:
        raise UserError(f"{path}: size {both[0]} is held out and in the fit; it can be one of them")
    ordered = sorted(cells.values(), key=lambda run: -run.flops_per_token * run.config.train.tokens)
    return Sweep(keys, directory, ordered, shared)


def read_keys(path: str | Path, overrides: list[str]) -> SweepKeys:
    """The sweep's own keys: the YAML at ``path`` under ``overrides``; UserError where it is not a sweep's."""
    try:
        values = load_yaml(path, is_text=is_sweep_text)
    except UserError as error:
        raise UserError(f"{error}{'' if str(error).endswith('?') else EXAMPLE}") from None
    return typed(overridden(values, overrides), path)


def cell_seed(keys: SweepKeys, size: str, lr: float, batch: int, repeat: int) -> int:
    """The seed of a cell's initialisation, different for each of its repeats."""
    return derive_seed(keys.seed, size, lr, batch, repeat) & (1 << 31) - 1


def join(cells: dict[str, Run], run: Run) -> None:
    """Add a cell by its run id; two that differ only in their milestones are one run, with the milestones of both."""
    there = cells.get(number := run.config.run_dir.name)
    if there is not None:
        train = run.config.train
        train.milestones = sorted({*train.milestones, *there.config.train.milestones})
        train.tokens = train.milestones[-1]
    cells[number] = run


def _shared(keys: SweepKeys, path: Path) -> Values:
    """The training keys of all cells; those that the sweep sets itself are refused where it would hide them."""
    for name in flatten(keys.config):
        own = next((key for key in SET_BY_SWEEP if name == key or name.startswith(f"{key}.")), None)
        if own is not None:
            raise UserError(f"{path}: config.{own}: the sweep sets it; use {SET_BY_SWEEP[own]}")
    base = load_yaml(path.parent / keys.base) if keys.base else {}
    given = {name: value for name, value in merge(base, keys.config).items() if value is not None}
    try:
        return checked_keys(given)
    except UserError as error:
        raise UserError(f"{error} (in the base or config of {path})") from None


def _cells(keys: SweepKeys, size: SizeKeys, shared: Values, meta_of: Any, predict: Prediction | None) -> list[Run]:
    axes = {axis: getattr(size, axis) if getattr(size, axis) is not None else getattr(keys, axis) for axis in AXES}
    milestones = _milestones(keys, size)
    config = _first_config(keys, size, shared, milestones)
    meta = meta_of(config)
    if predict is not None and (axes["lr"] is None or axes["batch_tokens"] is None):
        shape = parse_size(size.size)
        T = math.sqrt(min(milestones) * max(milestones))
        lr, batch = predict(parameters(shape.layers, shape.width), T)
        clip = clip_tokens(config, meta["latent_shape"])
        if axes["lr"] is None:
            axes["lr"] = [float(f"{lr * step:.3g}") for step in _steps(keys.lr_steps, keys.ratio)]
        if axes["batch_tokens"] is None:
            clips = [max(round(batch * step / clip), 1) for step in _steps(keys.batch_steps, keys.ratio)]
            axes["batch_tokens"] = sorted({clip * count for count in clips})
    empty = [axis for axis, given in axes.items() if not given]
    if empty:
        raise UserError(f"sizes: {size.size or 'an entry'} has no {empty[0]}; give it there or for the whole sweep")
    cells = []
    for batch in axes["batch_tokens"]:
        for lr in axes["lr"]:
            for repeat in range(axes["repeats"]):
                cells.append(_cell(keys, size, config, meta, (lr, batch, milestones, repeat)))
    return cells


def _steps(count: int, ratio: float) -> list[float]:
    """``count`` factors around 1, each ``ratio`` times the one before."""
    return [ratio ** (number - (count - 1) / 2) for number in range(count)]


def _milestones(keys: SweepKeys, size: SizeKeys) -> list[int]:
    """A size's token budgets: its own before the sweep's, in tokens or as multiples of N."""
    for where, given in ((f"sizes: {size.size}", size), ("the sweep", keys)):
        if given.milestones and given.tokens_per_parameter:
            raise UserError(f"{where}: milestones and tokens_per_parameter; give one of them")
        if given.milestones:
            return given.milestones
        if given.tokens_per_parameter:
            shape = parse_size(size.size)
            count = parameters(shape.layers, shape.width)
            return [round(multiple * count) for multiple in given.tokens_per_parameter]
    raise UserError(f"sizes: {size.size or 'an entry'} has no milestones; give it there or for the whole sweep")


def _added(keys: SweepKeys, shared: Values, directory: Path, meta_of: Any) -> list[Run]:
    """The cells that ``extend`` added, of sizes that the sweep still has."""
    sizes = {size.size: size for size in keys.sizes}
    configs: dict[str, Config] = {}
    runs = []
    for cell in added_cells.read(directory, keys.results):
        if (size := sizes.get(cell.size)) is not None:
            if size.size not in configs:
                configs[size.size] = _first_config(keys, size, shared, cell.milestones)
            config = configs[size.size]
            axes = cell.lr, cell.batch_tokens, cell.milestones, cell.repeat
            runs.append(_cell(keys, size, config, meta_of(config), axes))
    return runs


def _first_config(keys: SweepKeys, size: SizeKeys, shared: Values, milestones: list[int]) -> Config:
    """The settings that the cells of a size share, checked once for a thousand cells.

    Its rate is 1 and its batch the whole run, until ``_cell`` says which.
    """
    values = copy.deepcopy(shared)
    for section in ("model", "optim", "train", "log", "checkpoint"):
        values[section] = values.get(section) or {}
    values |= {"out": keys.out, "name": keys.name, "heldout": size.heldout}
    values["model"]["size"] = size.size
    values["train"] |= {"milestones": milestones, "tokens": max(milestones)}
    if values["optim"].get("warmup_tokens") is None:
        # One for all entries of a size, so that cells that differ in their milestones alone are the same run.
        smallest = min(min(_milestones(keys, other)) for other in keys.sizes if other.size == size.size)
        values["optim"]["warmup_tokens"] = round(WARMUP_FRACTION * smallest)
    values["checkpoint"].setdefault("final", "ema")
    values["log"]["prompts"] = []
    config = config_from_dict(values)
    if config.train.dtype == "auto":
        # Its cells' ids would depend on where they are listed: a login node has no GPU to ask.
        raise UserError(
            "train.dtype=auto: a sweep's cells must be the same wherever it is listed; name "
            "config.train.dtype=bfloat16 or float32"
        )
    return config


def _cell(
    keys: SweepKeys, size: SizeKeys, config: Config, meta: CacheMeta, axes: tuple[float, int, list[int], int]
) -> Run:
    """One cell: ``axes`` are its rate, batch, milestones and the number of its repeat, from 0."""
    lr, batch, milestones, repeat = axes
    if not (math.isfinite(lr) and lr > 0):
        raise UserError(f"sizes: {size.size}: lr={lr}: must be a positive number")
    if min(milestones) < 1:
        raise UserError(f"sizes: {size.size}: milestones={milestones}: must be positive")
    if 0 < min(milestones) < batch:
        raise UserError(
            f"sizes: {size.size}: a token budget of {min(milestones):,} is less than one batch of {batch:,}; "
            "take a later milestone or a smaller batch"
        )
    # Every cell has its own initialisation, because a shared one would correlate the cells' errors. All cells of a
    # size share samples and noise, at any batch: rates can be stacked, and the error of a shared stream drops out of
    # the differences that determine an optimum, equally along both axes.
    stream = derive_seed(keys.seed, "data", size.size, repeat) & (1 << 31) - 1
    config = replace(
        config,
        seed=cell_seed(keys, size.size, lr, batch, repeat),
        data=replace(config.data, seed=stream),
        optim=replace(config.optim, lr=lr),
        train=replace(config.train, batch_tokens=batch, milestones=list(milestones), tokens=max(milestones)),
    )
    run = resolve(config, meta)
    run.config.name = str(Path(keys.name) / run_id(run.config))
    # Under a name that says what it is, and not in the cell's own folder too: TensorBoard follows links, and listed
    # every cell twice.
    run.config.log = replace(run.config.log, tensorboard_dir=f"../{BOARDS}/{label(run.config)}")
    return run
