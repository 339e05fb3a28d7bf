"""A sweep's YAML: its keys, defaults and checks."""

import math
import operator
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videoscaling.training.config import alias_hint, as_integer, is_text, key_called, known_keys, merge, nested
from videoscaling.training.keys import NOT_NEGATIVE, POSITIVE, Bound, check_value, info_of, key, keys_of
from videoscaling.utils.errors import UserError, nearest, shown
from videoscaling.utils.typed import typed as dataclass_of
from videoscaling.utils.user_text import check_literal, check_printable, expand_home
from videoscaling.utils.yaml_text import Values, parse_override

EXAMPLE = "; give a sweep's YAML, such as configs/sweep/quickstart.yaml"
# Keys of training that the sweep sets for each cell, and the sweep's key for each.
SET_BY_SWEEP = {
    "name": "name",
    "out": "out",
    "heldout": "sizes[].heldout",
    "seed": "seed",
    "model.size": "sizes[].size",
    "optim.lr": "lr",
    "train.batch_tokens": "batch_tokens",
    "train.milestones": "milestones",
    "train.tokens": "milestones",
    "train.flops": "milestones",
    "log.prompts": "nothing: cells sample no videos",
}
# Options of sbatch that ``executor.slurm.options`` may not give, and the key that does: jobs are found by their names
# and places in the array, and stop at the signal.
_WITHOUT_KEY = "job-name array output error parsable wrap test-only wait clusters ntasks-per-node"
RESERVED_OPTIONS = dict.fromkeys(_WITHOUT_KEY.split(), "") | {
    "signal": "executor.slurm.warning_seconds",
    "partition": "executor.slurm.partition",
    "account": "executor.slurm.account",
    "nodes": "executor.slurm.nodes",
    "gpus-per-node": "executor.slurm.gpus",
    "cpus-per-task": "executor.slurm.cpus",
    "mem": "executor.slurm.mem",
    "time": "executor.slurm.time",
}

# In executor.command, each stands for one word of the shell.
PLACEHOLDERS = r"\{(command|run_id|name)\}"
COMMANDS_AT_ONCE = 32

# Repeats of a cell or steps of an axis: the listing of more would never end.
COUNT = Bound("a number from 1 to 10,000", lambda value: 1 <= value <= 10_000)
AT_LEAST_ONE = Bound("at least 1", lambda value: value >= 1)
ABOVE_ONE = Bound("a number above 1", lambda value: value > 1)


@dataclass
class SizeKeys:
    """One size of the ladder; the sweep's values replace missing ones."""

    size: str = key("", "LAYERSxWIDTH, such as 4x128")
    lr: list[float] | None = key(None, "learning rates, instead of the sweep's")
    batch_tokens: list[int] | None = key(None, "batch sizes in tokens, instead of the sweep's")
    milestones: list[int] | None = key(None, "tokens at which runs are validated, instead of the sweep's")
    tokens_per_parameter: list[float] | None = key(
        None, "milestones as multiples of N, instead of the sweep's", bound=POSITIVE
    )
    repeats: int | None = key(None, "runs of each cell, instead of the sweep's", bound=COUNT)
    heldout: bool = key(False, "leave the size out of fits, to check their predictions with it")


@dataclass
class SlurmKeys:
    """One job of the array, by sbatch's options."""

    partition: str | None = key(None, "sbatch's partition")
    account: str | None = key(None, "sbatch's account")
    nodes: int = key(1, "nodes of one job; more than one train one cell by torchrun", bound=AT_LEAST_ONE)
    gpus: int | None = key(None, "GPUs per node")
    cpus: int | None = key(None, "cores per node")
    time: Any = key(60, "time limit of a job, in minutes or as 12:00:00")
    mem: str | None = key(None, "memory per node, such as 200G")
    array: int = key(256, "most jobs at once", bound=AT_LEAST_ONE)
    runs_per_job: int = key(1, "cells of one job, which trains them as a machine of its own would", bound=AT_LEAST_ONE)
    warning_seconds: int = key(
        120, "how long before its end a job is signalled to write checkpoints; it is requeued and continues"
    )
    setup: list[str] = key([], "lines of shell that run first on the node, such as [module load cuda]")
    python: str | None = key(
        None,
        "command that starts Python on the nodes, such as apptainer exec --nv image.sif python; by default this one's",
        aliases="container container_image image singularity apptainer",
    )
    options: Values = key({}, 'further options of sbatch, such as {qos: low, exclude: "node[3-4]"}')


@dataclass
class ExecutorKeys:
    """Settings of the executor that runs the cells."""

    kind: str = key(
        "local",
        "local: this machine; slurm: an array of jobs; command: any scheduler, by executor.command",
        choices=("local", "slurm", "command"),
    )
    command: str | None = key(
        None,
        "with kind command: a line of shell that trains one cell or submits it, such as sbatch --wrap {command}; "
        "{command}, {run_id} and {name} are replaced by the cell's, each as one word",
        aliases="template submit submit_command launcher scheduler",
    )
    workers: int | None = key(
        None,
        "cells trained at once; if not given, as many as fit on the GPUs, or one per core without a GPU; of kind "
        f"command, {COMMANDS_AT_ONCE} commands",
        bound=AT_LEAST_ONE,
    )
    runs_per_gpu: int = key(1, "processes, of a cell or of a stack each, that share a GPU", bound=AT_LEAST_ONE)
    processes: int = key(
        1,
        "processes of one cell on each of its nodes, a GPU each; more than one start by torchrun",
        bound=AT_LEAST_ONE,
    )
    stack: Any = key(
        "auto", "most cells that one process trains together: auto stacks small models, 1 none (docs/stacked_runs.md)"
    )
    retries: int = key(2, "further attempts at a cell that crashes, or whose job is lost", bound=NOT_NEGATIVE)
    slurm: SlurmKeys = field(default_factory=SlurmKeys)

    @property
    def world(self) -> int:
        """Processes that train one cell together, on all of its nodes."""
        return self.processes * (self.slurm.nodes if self.kind == "slurm" else 1)


@dataclass
class CostKeys:
    """The throughput by which hours are estimated before any is measured."""

    flops_per_second: float | None = key(
        None,
        "training FLOPs (by C_token) per second of one GPU, or of one worker on the CPU, until cells have run",
        bound=POSITIVE,
    )
    price_per_hour: float | None = key(None, "price of a GPU or worker, in any currency", bound=POSITIVE)


@dataclass
class SweepKeys:
    """A sweep: sizes x learning rates x batch sizes x repeats, each cell with its milestones."""

    name: str = key("sweep", "name of the sweep; its folder is out/name")
    out: str = key("runs", "folder of sweeps")
    base: str = key("", "training configuration that the cells share, relative to the sweep's YAML")
    config: Values = key({}, "keys of training that replace the base's, such as {train: {dtype: bfloat16}}")
    sizes: list[SizeKeys] = key([], "the sizes, such as {size: 2x64, milestones: [1e5, 2e5]}; their keys follow below")
    lr: list[float] | None = key(None, "learning rates of the grid")
    batch_tokens: list[int] | None = key(None, "batch sizes of the grid, in tokens")
    milestones: list[int] | None = key(None, "tokens at which runs are validated; the last is their end")
    tokens_per_parameter: list[float] | None = key(
        None, "milestones as multiples of N, instead of milestones", bound=POSITIVE
    )
    around: str | None = key(
        None, "law file whose best pair is the middle of lr and batch_tokens where they are not given; a path as base"
    )
    lr_steps: int = key(5, "with around: number of learning rates", bound=COUNT)
    batch_steps: int = key(3, "with around: number of batch sizes", bound=COUNT)
    ratio: float = key(2.0, "with around: each rate or batch is this many times the one before", bound=ABOVE_ONE)
    repeats: int = key(1, "runs of each cell, with other seeds", bound=COUNT)
    seed: int = key(0, "cells derive their seeds from it: of initialisation one each, of data one per size and repeat")
    results: str | None = key(
        None, "folder of finished cells (RUN_ID/result.json) that are not run again; collect fills it"
    )
    executor: ExecutorKeys = field(default_factory=ExecutorKeys)
    cost: CostKeys = field(default_factory=CostKeys)


# Text keys of a sweep, in addition to training's under ``config``. The values of sbatch's options are passed as
# written, and true for an option without a value.
TEXT = {"name", "out", "base", "around", "results", "extends", "sizes[].size", "executor.kind", "executor.command"}
TEXT |= {f"executor.slurm.{name}" for name in ("partition", "account", "time", "mem", "setup[]", "python")}
PATHS = ("out", "base", "around", "results")
OPTIONS = "executor.slurm.options."
SETUP = "executor.slurm.setup"


def is_sweep_text(name: str) -> bool:
    """Whether the values of a sweep's dotted key are text, as ``training.config.is_text`` says of training's."""
    if name.startswith("config."):
        return is_text(name.removeprefix("config."))
    return name in TEXT or name.startswith(OPTIONS)


def overridden(values: Values, overrides: list[str]) -> Values:
    """The YAML's ``values`` under ``overrides`` such as ``executor.workers=4`` or ``config.train.dtype=bfloat16``."""
    for override in overrides:
        name, equals, _ = override.partition("=")
        if not equals and name in keys_of(SweepKeys):
            raise UserError(f"{name}: no value; write {name}=...")
        if not equals or name.split(".")[0] not in SweepKeys.__dataclass_fields__:
            known = list(known_keys())
            elsewhere = f"; a key of training: write config.{override}" if name in known else None
            near = sweep_key_hint(name) or nearest(name, list(SweepKeys.__dataclass_fields__)) or alias_hint(name)
            hint = elsewhere or near
            raise UserError(f"{override!r}: not an override of a sweep's key, such as executor.workers=4{hint}")
        if "[" in name:
            raise UserError(f"{override}: entries of a list are changed in the YAML; here a list is given whole")
        values = merge(values, nested({name: parse_override(override, is_sweep_text)}))
    return values


def sweep_key_hint(option: str) -> str:
    """A hint that names the sweep key for an unknown ``option`` such as --lr; empty without one."""
    word = option.lstrip("-").replace("-", "_")
    if word in ("config", "cfg", "yaml"):
        return "; give the sweep's YAML without an option, such as configs/sweep/quickstart.yaml"
    groups = {"": SweepKeys, "executor.": ExecutorKeys, "executor.slurm.": SlurmKeys, "cost.": CostKeys}
    found = [prefix + word for prefix, schema in groups.items() if word in schema.__dataclass_fields__]
    key = key_called(word)
    if not found and key:
        found = [SET_BY_SWEEP.get(key, f"config.{key}")]
    return (
        f"; it is a key: write {found[0]}=..."
        if found and found[0].replace("_", "").replace(".", "").isalpha()
        else ""
    )


def typed(values: Values, path: str | Path) -> SweepKeys:
    """Strictly typed keys; whole numbers may be written as 2e5.

    Raises:
        UserError: an unknown key (with the nearest known one), a value of another type or outside its range.
    """
    for name, value in values.items():
        _check_text(str(name), value)
    values = {name: expand_home(value) if name in PATHS else value for name, value in values.items()}
    sizes = values.get("sizes") or []
    if not isinstance(sizes, list) or not all(isinstance(size, dict) for size in sizes):
        raise UserError(f"{path}: sizes: must be a list of entries such as {{size: 2x64}}")
    executor = _group(values, "executor", path)
    groups: list[tuple[Values, type, str]] = [(values, SweepKeys, "")]
    groups += [(size, SizeKeys, "") for size in sizes]
    groups += [(executor, ExecutorKeys, "executor."), (_group(executor, "slurm", path), SlurmKeys, "executor.slurm.")]
    groups += [(_group(values, "cost", path), CostKeys, "cost.")]
    for keys, schema, prefix in groups:
        known = schema.__dataclass_fields__
        for name in keys:
            if prefix + str(name) == "executor.stop_hopeless":
                raise UserError(f"{path}: executor.stop_hopeless: no cell is stopped early any more; remove the key")
            if name not in known:
                # Another file, or a slip: a far hint would only mislead.
                other = "sizes" not in values and not prefix
                hint = _alias(str(name), schema, prefix) or nearest(str(name), list(known), 0.75 if other else 0.5)
                hint = hint or (EXAMPLE if other else "")
                raise UserError(f"{path}: unknown key {prefix}{shown(name) if not prefix else name}{hint}")
            if "int" in str(known[name].type):
                keys[name] = as_integer(keys[name])
    values, setup = _without_setup(values, path)
    try:
        keys = dataclass_of(SweepKeys, values)
        keys.executor.slurm.setup = setup
        _check(keys)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return keys


def minutes(time: Any) -> int:
    """A time limit in whole minutes, from minutes or sbatch's forms "MM:SS", "HH:MM:SS", "D-HH[:MM[:SS]]".

    Raises:
        ValueError: it is none of them, or not positive.
    """
    text = str(time)
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if len(parts) > 3:
        raise ValueError(text)
    if dash:
        hours, minute, second = (*parts, 0, 0)[:3]
        total = (int(days) * 24 + hours) * 60 + minute + math.ceil(second / 60)
    elif len(parts) == 3:
        total = parts[0] * 60 + parts[1] + math.ceil(parts[2] / 60)
    else:
        total = parts[0] + (math.ceil(parts[1] / 60) if len(parts) == 2 else 0)
    if total < 1:
        raise ValueError(text)
    return total


def _alias(name: str, schema: type, prefix: str) -> str:
    """A hint that names the key of ``schema`` for another word for it; empty without one."""
    found = next((key for key, info in info_of(schema).items() if name in info.aliases), None)
    return f"; did you mean {prefix + found!r}? ({info_of(schema)[found].help})" if found else ""


def _group(values: Values, name: str, path: str | Path) -> Values:
    group = values.get(name) or {}
    if not isinstance(group, dict):
        raise UserError(f"{path}: {name}: a group of keys, not a value")
    return group


def _check_text(name: str, value: Any) -> None:
    """Refuse interpolations and control characters in a sweep's values. Lines of shell may have both."""
    if isinstance(value, dict) and name != "config":  # training's own, checked there with prompts allowed lines
        for inner, entry in value.items():
            _check_text(f"{name}.{inner}", entry)
            check_printable(name, str(inner))
    elif name == SETUP:
        check_printable(name, value, allowed="\n\t")
    else:
        check_literal(name, value)
        if name != "config":
            check_printable(name, value)


def _without_setup(values: Values, path: str | Path) -> tuple[Values, list[str]]:
    """``values`` without executor.slurm.setup, and that: the shell's ${VAR} in it is none of OmegaConf's."""
    slurm = _group(_group(values, "executor", path), "slurm", path)
    setup = slurm.get("setup") or []
    if not (isinstance(setup, list) and all(isinstance(line, str) for line in setup)):
        raise UserError(f"{path}: {SETUP}={shown(setup)}: a list of lines of shell, such as [module load cuda]")
    slurm = {name: value for name, value in slurm.items() if name != "setup"}
    options = slurm.get("options")
    if isinstance(options, dict):
        for name, value in options.items():
            if value is None or str(value).lower() == "false":
                raise UserError(
                    f"{path}: {OPTIONS}{name}={value}: leave the option out, or give true for one without a value"
                )
        slurm["options"] = {name: True if str(value).lower() == "true" else value for name, value in options.items()}
    return values | ({"executor": values["executor"] | {"slurm": slurm}} if slurm or setup else {}), setup


def _check_command(executor: ExecutorKeys) -> None:
    """Refuse an executor.command that names no cell, or that another kind of executor would ignore."""
    line, example = executor.command, "executor.command='sbatch --wrap {command}'"
    if (executor.kind == "command") != (line is not None):
        fix = f"give a line of shell, such as {example}" if line is None else "it goes with executor.kind=command"
        raise UserError(f"executor.kind={executor.kind}, executor.command={line}: {fix}")
    if line is None:
        return
    if unknown := re.search(r"\{[a-z_]+\}", re.sub(PLACEHOLDERS, "", line)):
        raise UserError(f"executor.command: {unknown[0]} is unknown; known are {{command}}, {{run_id}} and {{name}}")
    if "{command}" not in line:
        raise UserError(f"executor.command={line}: lacks {{command}}, which trains the cell; write {example}")


def _check(keys: SweepKeys) -> None:
    """Refuse values outside what their keys allow, and keys that contradict each other."""
    for name, info in info_of(SweepKeys).items():
        check_value(name, operator.attrgetter(name)(keys), info)
    for size in keys.sizes:
        for name, info in info_of(SizeKeys).items():
            check_value(f"sizes: {size.size}: {name}", getattr(size, name), info)
    executor, slurm = keys.executor, keys.executor.slurm
    if executor.stack != "auto" and not (type(executor.stack) is int and executor.stack >= 1):
        raise UserError(f"executor.stack={executor.stack}: auto, or how many cells are trained together")
    if executor.stack not in ("auto", 1) and (executor.processes > 1 or executor.kind == "command"):
        which = "of several processes" if executor.processes > 1 else "of a command each"
        raise UserError(f"executor.stack={executor.stack}: cells {which} are not stacked; set it to 1 or auto")
    _check_command(executor)
    if executor.processes > 1 and executor.runs_per_gpu > 1:
        raise UserError("executor: cells of several processes cannot share GPUs; set runs_per_gpu to 1")
    if slurm.nodes > 1 and slurm.runs_per_job > 1:
        raise UserError(f"executor.slurm: a cell over {slurm.nodes} nodes is a job of its own; set runs_per_job to 1")
    if slurm.gpus is not None and slurm.gpus < executor.processes:
        raise UserError(
            f"executor.slurm.gpus={slurm.gpus}: fewer than executor.processes={executor.processes}, which need a GPU "
            "each"
        )
    try:
        limit = minutes(slurm.time)
    except ValueError:
        raise UserError(f"executor.slurm.time={slurm.time}: minutes, or a time such as 12:00:00") from None
    if not 0 < slurm.warning_seconds < 60 * limit:
        raise UserError(
            f"executor.slurm.warning_seconds={slurm.warning_seconds}: must be positive, and less than "
            f"executor.slurm.time, {limit} min"
        )
    for name in slurm.options:
        key = RESERVED_OPTIONS.get(name.replace("_", "-"))
        if key is not None:
            raise UserError(f"executor.slurm.options.{name}: the sweep sets it{key and f'; use {key}'}")
