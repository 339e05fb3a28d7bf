"""sweep.yaml in a sweep's folder: the keys of its first run, and the data that its cells are trained on.

A folder belongs to one sweep. Commands that train nothing take the data's shape and fingerprint from this file or from
committed results, and need no clips. No torch here, but where a cache is opened.
"""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf

from videoscaling.data.index import CacheMeta, check_cache, is_latent_shape
from videoscaling.sweeps.grid import Sweep
from videoscaling.training.config import (
    Config,
    cache_folders,
    config_from_dict,
    copied,
    flatten,
    load_yaml,
    recorded_config,
    run_id,
    to_dict,
)
from videoscaling.training.keys import NEVER, info_of
from videoscaling.training.run import SEVERAL_SHAPES
from videoscaling.utils.errors import UserError
from videoscaling.utils.files import atomic_write
from videoscaling.utils.results import FILE, whole_results
from videoscaling.utils.yaml_text import Values

SWEEP_FILE = "sweep.yaml"


class CommittedData(NamedTuple):
    """What committed results say of their data: tokens per clip, and the fingerprint."""

    n_ctx: int
    fingerprint: str


def write_sweep_file(sweep: Sweep) -> None:
    """Write the sweep's settings to its folder, which must not belong to another sweep.

    The grid may grow or shrink: finished cells are found by their ids.

    Raises:
        UserError: another sweep made the folder; names the settings that differ.
    """
    first = sweep.cells[0].config
    data = {name: data_of(first)[name] for name in ("latent_shape", "fingerprint")}
    settings = shared_settings(config_from_dict(sweep.shared))
    now = dataclasses.asdict(sweep.keys) | {"settings": settings, "caches": cache_folders(first), "data": data}
    check_same_sweep(sweep, now)
    with atomic_write(sweep.directory / SWEEP_FILE) as tmp:
        OmegaConf.save(OmegaConf.create(now), tmp)


def check_same_sweep(sweep: Sweep, now: Values | None = None) -> None:
    """Check that no other sweep made the sweep's folder.

    Args:
        now: what its sweep.yaml is to hold; without it the data are not compared, which need the cache.

    Raises:
        UserError: another one did; names the settings that differ.
    """
    path = sweep.directory / SWEEP_FILE
    before = _read(path)
    if not before:
        return
    settings = shared_settings(config_from_dict(sweep.shared))
    pairs = [("seed", before.get("seed"), sweep.keys.seed)]
    if "settings" in before:  # the oldest sweeps recorded none
        try:
            earlier = shared_settings(recorded_config(before["settings"]))
        except UserError as error:
            raise UserError(f"{path}: {error}; remove it, and it is written anew") from None
        pairs += [(name, earlier[name], settings[name]) for name in changed_settings(sweep, earlier, settings)]
    if now and "data" in before:
        data = now["data"]
        pairs += [(f"data.{name}", before["data"].get(name), data[name]) for name in data]
        if before["data"].get("fingerprint") != data["fingerprint"]:  # which names no folder
            pairs.append(("data.cache", before.get("caches"), now["caches"]))
    changed = [f"{name}: {was} -> {new}" for name, was, new in pairs if was != new]
    if changed:
        raise UserError(
            f"{sweep.directory}: made by another sweep ({'; '.join(changed)}); put that back, or choose another name"
        )


def shared_settings(config: Config) -> Values:
    """The keys that all cells share and that may enter their ids, {dotted key: value}."""
    infos = info_of(Config)
    return {name: value for name, value in flatten(to_dict(config)).items() if infos[name].identity != NEVER}


def changed_settings(sweep: Sweep, earlier: Values, settings: Values) -> list[str]:
    """The keys whose ``earlier`` value would give one of the sweep's cells another id."""
    found = []
    for name in (name for name in settings if earlier[name] != settings[name]):
        group, _, key = name.rpartition(".")
        for cell in sweep.cells:
            config = copied(cell.config)
            setattr(getattr(config, group) if group else config, key, earlier[name])
            if run_id(config) != run_id(cell.config):
                found.append(name)
                break
    return found


@functools.cache
def opened(folders: tuple[str, ...], weights: tuple[float, ...]) -> CacheMeta:
    """The meta of latent caches; UserError if their clips differ in shape."""
    for folder in folders:
        check_cache(folder)
    # Not at the top: it imports torch, for which neither a status nor a mistyped path waits.
    from videoscaling.data.mixture import open_data

    meta = open_data(folders, weights).meta
    if "shapes" in meta:
        raise UserError(f"data.cache: {SEVERAL_SHAPES}; train such runs one by one with train.py")
    return meta


@functools.cache
def read_sweep_file(directory: Path) -> Values:
    """The content of a sweep's sweep.yaml; {} before the sweep's first run."""
    return _read(directory / SWEEP_FILE)


def _read(path: Path) -> Values:
    if not path.exists():
        return {}
    content = load_yaml(path)
    data = content.get("data")
    whole = isinstance(data, dict) and is_latent_shape(data.get("latent_shape"))
    # The oldest sweeps recorded neither settings nor data.
    if not ("seed" in content and isinstance(content.get("settings", {}), dict) and (whole or "data" not in content)):
        raise UserError(f"{path}: damaged (seed, settings or data); remove it, and sweep.py run writes it anew")
    return content


def data_of(config: Config) -> CacheMeta:
    """The meta of a cell's data; opens its caches."""
    return opened(tuple(cache_folders(config)), tuple(config.data.weights))


def recorded_data(results: str | None, config: Config) -> CacheMeta:
    """The latent shape and fingerprint of a cell's data, from a record if there is one.

    The record is sweep.yaml, or the committed ``results`` if no cache is here. So commands that train nothing need
    no clips.
    """
    before = read_sweep_file(Path(config.out) / config.name)
    if before.get("data") and before.get("caches") == cache_folders(config):
        return before["data"]
    no_cache = not any((Path(folder) / "index.json").exists() for folder in cache_folders(config))
    committed = committed_data(results) if results and no_cache else None
    if committed is None:
        return data_of(config)
    # A result knows its tokens per clip and not their layout: one row of them, of channels that fit every width.
    frames, *sides = config.model.patch
    return {"latent_shape": [0, frames * committed.n_ctx, *sides], "fingerprint": committed.fingerprint}


@functools.cache
def committed_data(results: str) -> CommittedData | None:
    """The data that committed results were trained on; None if results differ in them."""
    found = set()
    for path, result in whole_results(Path(results).glob(f"*/{FILE}"))[0].items():  # a cell's state reports others
        try:
            found.add(CommittedData(result["n_ctx"], result["config"]["data"]["fingerprint"]))
        except (KeyError, TypeError):
            raise UserError(f"{path}: not a run's result; remove it from the committed results") from None
    return found.pop() if len(found) == 1 else None
