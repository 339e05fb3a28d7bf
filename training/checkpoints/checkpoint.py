"""Checkpoints: a folder of safetensors and JSON, written under a temporary name and renamed, so that each is whole or
absent. It is renamed before it is removed, too. ``recover`` removes the leftovers of a killed process.

checkpoints/step_0000100/   model.safetensors  ema.safetensors  optimizer.safetensors  config.yaml  state.json

state.json holds the size and the CRC-32 of every other file, and a CRC-32 of itself: a checkpoint that was cut short,
or has a flipped bit anywhere, is refused, and the one before it is used. Processes with shards write pieces instead of
whole files (``pieces``).
"""

import os
import shutil
import sys
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from videoscaling.training.checkpoints.paths import PREFIX, STATE, check_exists, instead_of_file
from videoscaling.training.checkpoints.pieces import collect_facts, pieces_to_read, shapes_of
from videoscaling.training.checkpoints.stored_tensors import StoredTensors, read_header
from videoscaling.training.config import CONFIG, Config, to_dict
from videoscaling.utils.errors import UserError, plural
from videoscaling.utils.files import (
    parse_json,
    pickles,
    recover_folder,
    remove_folder,
    remove_leftovers,
    replace_folder,
    write_json,
    write_text,
)
from videoscaling.utils.messages import is_first_process, warn
from videoscaling.utils.os_errors import warn_of_os_error, with_filename
from videoscaling.utils.seal import read_sealed, sealed

CHUNK = 1 << 20  # bytes of a file that are read at once


def save_checkpoint(
    directory: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any], config: Config
) -> Path:
    """Write ``directory``/step_<step>, replacing one of the same step.

    Args:
        tensors: {"model" | "ema" | "optimizer": {name: tensor}}, one file each.
        state: what else the run needs to continue; JSON.

    Raises:
        OSError: the disk is full, say; nothing is left behind and older checkpoints stay.
    """
    tmp = _new_folder(directory, step)
    try:
        return _commit(tmp, _write_tensors(tmp, tensors), state | {"step": step}, config)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def save_pieces(
    directory: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: dict[str, Any],
    config: Config,
    *,
    group: dist.ProcessGroup,
) -> None:
    """``save_checkpoint`` by all processes of ``group``: each writes its ``tensors``, the first one all the rest.

    Raises:
        OSError: the disk is full, say, for one of them; it is raised there and on the first.
    """
    first = dist.get_rank(group) == 0
    tmp = _new_folder(directory, step) if first else _temporary(directory, step)
    dist.barrier(group)
    files, error = {}, None
    try:
        try:
            files = _write_tensors(tmp, tensors)
        except OSError as failed:
            error = failed
        files = collect_facts(files, error, group)
        if first:
            _commit(tmp, files, state | {"step": step}, config)
    except BaseException:
        if first:
            shutil.rmtree(tmp, ignore_errors=True)
        raise


def _temporary(directory: Path, step: int) -> Path:
    return directory / f".{path_of(directory, step).name}.tmp"


def _new_folder(directory: Path, step: int) -> Path:
    tmp = _temporary(directory, step)
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    return tmp


def _write_tensors(tmp: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, int]]:
    """Write a file of each kind; the size and CRC-32 of each by name."""
    with ThreadPoolExecutor() as pool:
        saved = {f"{k}.safetensors": _save_tensors(tmp / f"{k}.safetensors", v, pool) for k, v in tensors.items()}
    return {name: facts.result() for name, facts in sorted(saved.items())}


def _commit(tmp: Path, files: dict[str, dict[str, int]], state: dict[str, Any], config: Config) -> Path:
    """Write the rest of a checkpoint whose tensors are written, and put it in place."""
    write_text(tmp / CONFIG, OmegaConf.to_yaml(OmegaConf.create(to_dict(config))))
    # Written last: a checkpoint with a state is a checkpoint whose files were all written.
    write_json(tmp / STATE, sealed(state | {"files": _describe([tmp / CONFIG]) | files}))
    final = path_of(tmp.parent, state["step"])
    replace_folder(tmp, final)
    return final


def _save_tensors(path: Path, named: Mapping[str, Tensor], pool: ThreadPoolExecutor) -> Future[dict[str, int]]:
    """Write a file; its "bytes" and "crc32" are computed from the tensors while the disk is busy."""
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in named.items()}
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # it hides the operating system's error number in its text
        raise OSError(_errno(str(error)), str(error), str(path)) from None
    path.chmod(0o644)  # it writes for the owner alone, and a group shares its checkpoints
    with with_filename(path), path.open("rb") as handle:
        facts = pool.submit(_facts_of, read_header(handle), tensors)
        os.fsync(handle.fileno())
    return facts


def _facts_of(head: bytes, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The size and CRC-32 of a safetensors file that begins with ``head`` and holds ``tensors``."""
    header = parse_json(head[8:], "a safetensors header", dict)
    places = {name: header[name]["data_offsets"] for name in tensors}
    crc = zlib.crc32(head)
    for name in sorted(places, key=places.get):
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), crc)
    return {"bytes": len(head) + max((end for _, end in places.values()), default=0), "crc32": crc}


def _errno(text: str) -> int:
    digits = text.rpartition("os error ")[2].rstrip(")")
    return int(digits) if digits.isdigit() else 0


def _describe(paths: list[Path]) -> dict[str, dict[str, int]]:
    """{name: {"bytes", "crc32"}} of files, read side by side: zlib lets other threads run meanwhile."""
    with ThreadPoolExecutor() as pool:
        return dict(zip((p.name for p in paths), pool.map(_size_and_crc32, paths)))


def _size_and_crc32(path: Path) -> dict[str, int]:
    crc = 0
    with with_filename(path), path.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
        return {"bytes": handle.tell(), "crc32": crc}


@warn_of_os_error("old checkpoints stay")
def keep_final(directory: Path) -> None:
    """Remove everything in ``directory`` except the EMA weights of the newest checkpoint."""
    prune_checkpoints(directory, 1)
    path = newest_checkpoint(directory, ("ema",))
    if path is not None:
        keep_only(path, ("ema",))


def is_final(directory: Path) -> bool:
    """Whether ``keep_final`` has nothing left to do, by the names of files."""
    paths = checkpoint_paths(directory)
    others = [file for path in paths for file in path.glob("*.safetensors") if kind_of(file.name) != "ema"]
    return len(paths) <= 1 and not others


@warn_of_os_error("the last checkpoint keeps more than its averages")
def keep_only(path: Path, kinds: tuple[str, ...]) -> None:
    """Drop all tensors of a checkpoint except ``kinds``, first from its state, so that it is always intact."""
    state = read_state(path)
    dropped = [n for n in state["files"] if n.endswith(".safetensors") and kind_of(n) not in kinds]
    state["files"] = {name: facts for name, facts in state["files"].items() if name not in dropped}
    write_json(path / STATE, sealed(state))
    _remove_unlisted(path, state)


def _remove_unlisted(path: Path, state: dict[str, Any]) -> None:
    for file in path.glob("*.safetensors"):
        if file.name not in state["files"]:
            file.unlink()


def update_state(directory: Path, step: int, **facts: Any) -> None:
    """Replace ``facts`` in the state of ``directory``'s checkpoint of ``step``, atomically."""
    path = path_of(directory, step)
    write_json(path / STATE, sealed(read_state(path) | facts))


@warn_of_os_error("leftovers among the checkpoints stay")
def recover(directory: Path) -> None:
    """Remove the leftovers of killed processes among the checkpoints of ``directory``: half-written or half-removed
    folders, and temporary files. The caller has locked the run directory."""
    for old in directory.glob(f".{PREFIX}*.old.tmp"):
        recover_folder(directory / old.name.removeprefix(".").removesuffix(".old.tmp"))
    _remove_temporary(directory)
    for path in checkpoint_paths(directory):
        remove_leftovers(path, STATE)
        with suppress(UserError):  # damaged: reported where it is read
            _remove_unlisted(path, read_state(path))


@warn_of_os_error("a checkpoint that is not needed stays")
def remove_after(directory: Path, step: int) -> None:
    """Remove the checkpoints after ``step``, from which a run continues: they are damaged, or of a longer run. Earlier
    folders without a state are removed too: an older version was removing them."""
    for path in checkpoint_paths(directory):
        if step_of(path) > step or (step_of(path) < step and not (path / STATE).exists()):
            remove_folder(path)
    _remove_temporary(directory)


def _remove_temporary(directory: Path) -> None:
    for tmp in directory.glob(f".{PREFIX}*.tmp"):
        shutil.rmtree(tmp)


@warn_of_os_error("an old checkpoint stays")
def prune_checkpoints(directory: Path, keep: int) -> None:
    """Remove all but the newest ``keep``."""
    for path in checkpoint_paths(directory)[keep:]:
        remove_folder(path)


def path_of(directory: Path, step: int) -> Path:
    """Where ``directory`` keeps the checkpoint of ``step``."""
    return directory / f"{PREFIX}{step:07d}"


def step_of(path: Path) -> int:
    """The step of the checkpoint at ``path``."""
    return int(path.name.removeprefix(PREFIX))


def checkpoint_paths(directory: Path) -> list[Path]:
    """The checkpoints in ``directory``, newest first; folders that are named otherwise are the user's own."""
    # Not glob, which takes a folder that may not be read for an empty one: the run would start again.
    paths = directory.iterdir() if directory.is_dir() else ()
    named = [p for p in paths if p.name.startswith(PREFIX) and p.name.removeprefix(PREFIX).isdigit() and p.is_dir()]
    return sorted(named, key=step_of, reverse=True)


def newest_checkpoint(directory: Path, needs: tuple[str, ...]) -> Path | None:
    """The newest intact checkpoint with the files ``needs``; damaged ones are skipped with a warning."""
    for path in checkpoint_paths(directory):
        try:
            check(path)
        except UserError as error:
            if is_first_process():
                warn(f"{error}; trying the checkpoint before it")
            continue
        if all(holds(path, kind) for kind in needs):
            return path
    return None


def resumable_checkpoint(run_dir: Path) -> Path | None:
    """The newest intact checkpoint of a run from which training can continue; None if the run starts (again).

    Raises:
        UserError: there are checkpoints, and none of them can be read.
    """
    directory = run_dir / "checkpoints"
    path = newest_checkpoint(directory, ("model", "ema", "optimizer"))
    if path is None and (there := checkpoint_paths(directory)):
        if newest_checkpoint(directory, ("ema",)) is None:
            raise UserError(
                f"{directory}: no checkpoint can be read, the newest being {there[0].name}; repair the "
                f"disk, or remove {run_dir} to start again"
            )
        # They are the averages of a finished run, which grows: they stay until there is a newer checkpoint.
        print(f"{directory}: no checkpoint with its optimiser is left; starting again", file=sys.stderr)
    return path


def check(path: Path) -> None:
    """Read the whole checkpoint at ``path`` and compare it with its checksums.

    Raises:
        UserError: a file is missing, or has another size or another content than was written.
    """
    state = read_state(path)
    present = [name for name in state["files"] if (path / name).is_file()]
    found = _describe([path / name for name in present])
    for name, written in state["files"].items():
        if name not in found:
            what = "is missing"
        elif found[name]["bytes"] != written["bytes"]:
            what = f"has {found[name]['bytes']} bytes instead of {written['bytes']}"
        elif found[name] != written:
            what = "has another checksum than when it was written"
        else:
            continue
        raise UserError(f"{path / name}: {what}; the checkpoint is damaged")


def read_state(path: Path) -> dict[str, Any]:
    """The state of the checkpoint at ``path``; the other files are not read (``check`` reads them).

    Raises:
        UserError: there is none, or it is not as it was written.
    """
    if not (path / STATE).is_file():
        raise UserError(f"{path}: not a checkpoint (no {STATE})")
    state = read_sealed(path / STATE)
    if state is None:
        raise UserError(f"{path / STATE}: not as it was written; the checkpoint is damaged")
    return state


def kind_of(name: str) -> str:
    """What a file of tensors holds: "model", "ema" or "optimizer"."""
    return name.partition(".")[0]


def holds(path: Path, kind: str) -> bool:
    """Whether the checkpoint at ``path`` has tensors of a kind, whole or in pieces."""
    return any(path.glob(f"{kind}.*safetensors"))


def read_tensors(path: Path, kind: str) -> StoredTensors:
    """A checkpoint's tensors of one kind, on the CPU, each read when it is asked for."""
    if (whole := path / f"{kind}.safetensors").exists():
        return StoredTensors([whole])
    pieces = sorted(path.glob(f"{kind}.piece-*.safetensors"), key=lambda file: int(file.name.split("-")[1]))
    return StoredTensors(pieces, read_state(path)["shapes"][kind])


def restore(path: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Copy a checkpoint's numbers into ``pieces_to_read``, one range of a tensor at a time.

    Only those and the files' headers are read: ``resumable_checkpoint`` has compared the files with their checksums.

    Raises:
        UserError: the checkpoint is another model's, or damaged.
    """
    shapes = shapes_of(model)
    for kind, pieces in pieces_to_read(model, ema, optimizer).items():
        stored = read_tensors(path, kind)
        _check_shapes(stored.shapes, shapes[kind], path)
        for name, (numbers, begin) in pieces.items():
            numbers.copy_(stored.read(name, begin, len(numbers)))


@torch.no_grad()
def load_into(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy named tensors into ``model``; UserError if they are another model's."""
    own = model.state_dict()
    _check_shapes(*({name: each.shape for name, each in named.items()} for named in (tensors, own)), path)
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def _check_shapes(found: Mapping[str, Sequence[int]], own: Mapping[str, Sequence[int]], path: Path) -> None:
    names = sorted(found.keys() | own.keys())
    if differing := next((n for n in names if tuple(found.get(n, (-1,))) != tuple(own.get(n, (-1,)))), None):
        raise UserError(f"{path}: of another model (first difference: {differing})")


def _kinds(path: Path) -> str:
    """The kinds of tensors in a checkpoint, as text."""
    return " and ".join(sorted({kind_of(file.name) for file in path.glob("*.safetensors")})) or "none"


def find_checkpoint(path: Path, needs: tuple[str, ...] = ("ema",)) -> Path:
    """The checkpoint at ``path``, or the newest intact one if ``path`` is a run directory.

    Raises:
        UserError: there is none, it is damaged, or it does not hold the kinds of weights that it ``needs`` to.
    """
    check_exists(path)
    if path.is_file():
        raise UserError(f"{path}: is a file; a checkpoint is a folder{instead_of_file(path)}")
    if (path / STATE).is_file() or path.name.startswith(PREFIX):
        check(path)
        for kind in needs:
            if not holds(path, kind):
                raise UserError(f"{path}: holds no {kind} weights; there are {_kinds(path)}")
        return path
    if path.name == "checkpoints" and checkpoint_paths(path):
        path = path.parent.absolute()
    runs = sorted(folder.parent for folder in path.glob("*/checkpoints") if checkpoint_paths(folder))
    if runs and not (path / "checkpoints").is_dir():
        raise UserError(f"{path}: holds {plural(len(runs), 'run')} and is none itself; name one, such as {runs[0]}")
    found = newest_checkpoint(path / "checkpoints", needs)
    if found is None:
        raise UserError(f"{path}: holds no whole checkpoint with {' and '.join(needs)} weights{pickles(path)}")
    return found
