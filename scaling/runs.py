"""Results of runs as one table: from run directories, or from CSV and JSONL of any trainer."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError, nearest
from utils.files import find_files, parse_json, replacing
from utils.results import FILE, read_result, report_left_out

COLUMNS = (
    "run_id", "status", "N", "T", "B", "lr", "seed", "n_ctx",
    "loss", "loss_se", "ema_loss", "ema_loss_se", "flops", "heldout",
)  # fmt: skip
MEASURED = {  # a milestone's, as ours -> in result.json
    "loss": "val_loss", "loss_se": "val_se", "ema_loss": "ema_val_loss", "ema_loss_se": "ema_val_se", "flops": "flops",
}  # fmt: skip
UNFINISHED = ("pending", "running", "preempted", "failed", "lost")  # rows that are no results
# Two results of one N belong to one grid if their tokens differ by less than this, or by less than the later one's
# batch: runs stop at the first step at or past a milestone, and a large batch overshoots it by up to one batch.
SAME_TOKENS = 0.02
MOST_OVERSHOT = 0.25  # milestones lie further apart than this
# Counts, rates and losses lie far inside; products of what lies outside leave the range of floats.
LEAST, MOST = 1e-80, 1e80
DIVERGED = "a run that diverged has 'diverged' in a column 'status'"
SHARED = ("recipe", "source", "unit")  # what a ledger has once, not a row each
FLAGS = {"": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


@dataclass(frozen=True)
class Ledger:
    """One row per milestone. Every field is an array [rows]; B in tokens; the loss of a diverged run is inf.

    ``loss`` is what laws are fitted on (the EMA's, where recorded) and ``loss_se`` its standard error or nan;
    ``raw_loss`` and ``raw_loss_se`` are the raw weights'. ``nominal_T`` is the milestone asked for, common to a grid.
    ``samples`` names the file of per-sample validation losses, or is empty; ``samples_crc32`` is its checksum, or -1
    where it is not known. ``recipe`` holds what all the runs share.
    ``stream`` is the seed of a run's samples, which several runs may share, or -1 where it is not known. ``unit`` is
    what the source counts its batches in, in tokens.
    """

    run_id: NDArray[np.str_]
    N: NDArray[np.float64]
    T: NDArray[np.float64]
    nominal_T: NDArray[np.float64]
    B: NDArray[np.float64]
    lr: NDArray[np.float64]
    loss: NDArray[np.float64]
    loss_se: NDArray[np.float64]
    raw_loss: NDArray[np.float64]
    raw_loss_se: NDArray[np.float64]
    flops: NDArray[np.float64]
    seed: NDArray[np.int64]
    n_ctx: NDArray[np.int64]
    heldout: NDArray[np.bool_]
    samples: NDArray[np.str_]
    samples_crc32: NDArray[np.int64]
    stream: NDArray[np.int64]
    recipe: dict[str, Any]
    source: str
    unit: float = 1.0

    def __len__(self) -> int:
        return len(self.N)

    def rows(self, chosen: NDArray) -> "Ledger":
        """The ledger of the rows a mask or an index array chooses."""
        shared = {name: getattr(self, name) for name in SHARED}
        arrays = {name: getattr(self, name)[chosen] for name in self.__dataclass_fields__ if name not in shared}
        return Ledger(**arrays, **shared)

    def grids(self) -> Iterator[tuple[float, float, NDArray[np.int64]]]:
        """(N, T, row numbers) of each grid, by rising N, then T."""
        for N in np.unique(self.N):
            for T in np.unique(self.nominal_T[self.N == N]):
                yield float(N), float(T), np.flatnonzero((self.N == N) & (self.nominal_T == T))


def read(
    path: str | Path,
    columns: dict[str, str] | None = None,
    batch_unit: str | None = None,
    hyperparameters: bool = True,
    losses: bool = True,
) -> Ledger:
    """Results from a sweep's folder, one run's folder, or a CSV or JSONL file.

    Args:
        path: a folder holding ``result.json`` somewhere below it, or a file with one row per result.
        columns: our name -> the file's name, e.g. ``{"N": "params", "L": "loss"}``; L is short for ema_loss.
        batch_unit: "tokens" or "sequences:TOKENS_EACH"; must be said for a file whose B column is renamed.
            A file without T, but with flops, gives T = flops / 6N. Rows without run_id are milestones of one run where
            they share N, B, lr and seed.
        hyperparameters: whether B and lr are needed; where they are not and the file has none, they are nan.
        losses: whether losses are needed; where they are not and a row has none, its loss is nan.

    Raises:
        UserError: nothing there, missing columns, or a value that is no positive number (with its row).
    """
    path = Path(path)
    if path.is_dir():
        if columns or batch_unit:
            raise UserError(f"{path} is a folder of runs: --columns and --batch-unit are for CSV and JSONL files")
        return _from_runs(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    return _from_rows(_read_rows(path), str(path), columns or {}, batch_unit, hyperparameters, losses)


def concatenate(ledgers: list[Ledger]) -> Ledger:
    """Ledgers of one source as one."""
    shared = {name: getattr(ledgers[0], name) for name in SHARED}
    names = [name for name in Ledger.__dataclass_fields__ if name not in shared]
    return Ledger(**{name: np.concatenate([getattr(part, name) for part in ledgers]) for name in names}, **shared)


def batch_tokens(unit: str | None) -> float:
    """Tokens in one unit of batch, from "tokens" or "sequences:2048"."""
    if unit is None:
        raise UserError("say what a batch counts: --batch-unit tokens, or sequences:2048 for sequences of 2048 tokens")
    kind, _, tokens = unit.partition(":")
    if kind == "tokens" and not tokens:
        return 1.0
    if kind == "sequences" and tokens.isdigit() and int(tokens) > 0:
        return float(tokens)
    raise UserError(f"--batch-unit {unit!r} is neither 'tokens' nor 'sequences:TOKENS_EACH'")


def parse_columns(text: str | None) -> dict[str, str]:
    """``"N=params,T=tokens"`` as a mapping from our name to the file's."""
    names = [*COLUMNS, "L"]
    mapping = {}
    for pair in (text or "").split(",") if text else []:
        ours, equals, theirs = pair.partition("=")
        if not equals or not theirs:
            raise UserError(f"--columns: {pair!r} is not OURS=THEIRS, such as N=params")
        if ours not in names:
            raise UserError(f"--columns: unknown name {ours!r}{nearest(ours, names)}; ours are {', '.join(names)}")
        ours = "ema_loss" if ours == "L" else ours
        if ours in mapping:
            raise UserError(f"--columns: {ours} is named twice")
        mapping[ours] = theirs
    return mapping


def write_csv(ledger: Ledger, path: str | Path) -> None:
    """The ledger as CSV in the order of COLUMNS, whole or not at all."""
    with replacing(path) as aside, aside.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        for i in range(len(ledger)):
            status = "done" if math.isfinite(ledger.loss[i]) else "diverged"
            floats = (ledger.raw_loss, ledger.raw_loss_se, ledger.loss, ledger.loss_se, ledger.flops)
            writer.writerow(
                [ledger.run_id[i], status, int(ledger.N[i]), int(ledger.T[i]), int(ledger.B[i]), float(ledger.lr[i])]
                + [int(ledger.seed[i]), int(ledger.n_ctx[i]) or ""]
                + ["" if math.isnan(values[i]) else repr(float(values[i])) for values in floats]
                + [int(ledger.heldout[i])]
            )


def _from_runs(folder: Path) -> Ledger:
    paths = find_files(folder, FILE)
    if not paths:
        raise UserError(f"{folder}: no {FILE} below it; has the sweep run?")
    rows, recipes, damaged = [], [], []
    for path in paths:
        try:
            result = read_result(path)
            rows += list(_run_rows(result, path.parent))
            recipes.append({"B": float(result["B"]), **(result.get("recipe") or {})})
        except UserError as error:
            damaged.append(error)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            damaged.append(UserError(f"{path}: not a run's result ({error!r:.200})"))
    report_left_out(damaged, len(recipes))
    if not rows:
        raise UserError(f"{folder}: {len(paths)} results, but none has a milestone or diverged")
    _fill_beta2_range(recipes)
    recipe = {key: value for key, value in recipes[0].items() if all(other.get(key) == value for other in recipes)}
    differing = sorted({key for other in recipes for key in other} - set(recipe))
    if differing:
        recipe["differs_between_runs"] = differing
    return _ledger(rows, str(folder), recipe)


def _fill_beta2_range(recipes: list[dict[str, Any]]) -> None:
    """Say of runs from before beta2 was kept in a range whether they were trained as the others (``B`` is taken out).

    Their beta2 was 2^(-B / half-life) whatever the batch: where it lies in the others' range, that is the same.
    """
    known = next((recipe["beta2_range"] for recipe in recipes if "beta2_range" in recipe), None)
    for recipe in recipes:
        batch, half_life = recipe.pop("B"), recipe.get("beta2_half_life")
        if known is not None and half_life and "beta2_range" not in recipe:
            same = known[0] <= 2.0 ** (-batch / half_life) <= known[1]
            recipe["beta2_range"] = known if same else [0.0, 1.0]


def _run_rows(result: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / FILE
    shared: dict[str, Any] = {key: positive(result[key], f"{path}: {key}") for key in ("N", "B", "lr", "n_ctx")}
    shared |= {"run_id": folder.name, "seed": _whole(result.get("seed", 0), f"{path}: seed")}
    shared["heldout"] = result.get("heldout", False)
    shared["stream"] = ((result.get("config") or {}).get("data") or {}).get("seed")
    reached = set()
    for milestone in result["milestones"]:
        tokens = positive(milestone["tokens"], f"{path}: tokens")
        nominal = positive(milestone.get("nominal", tokens), f"{path}: nominal")
        reached.add(nominal)
        samples = folder / "validation" / f"{milestone['tokens']}.npy"
        # A run can diverge between its last step and a milestone: its losses there are null. One clip has no error.
        given = {**milestone, "val_loss": milestone["val_loss"]}
        measured = {
            ours: positive(given[theirs], f"{path}: {theirs}")
            for ours, theirs in MEASURED.items()
            if given.get(theirs) is not None and (given[theirs] != 0 or not theirs.endswith("_se"))
        }
        known = {"status": "done", "T": tokens, "nominal_T": nominal, "asked": "nominal" in milestone}
        known |= {"samples": str(samples) if samples.exists() else "", "crc32": milestone.get("losses_crc32")}
        yield shared | measured | known
    if result["status"] == "diverged":
        # Censored: each milestone it should have reached has a loss beyond any number.
        asked = {positive(T, f"{path}: milestones_asked") for T in result.get("milestones_asked") or []}
        for nominal in asked - reached:
            yield shared | {"status": "diverged", "T": nominal, "nominal_T": nominal, "asked": True, "loss": math.inf}


def _read_rows(path: Path) -> dict[int, dict[str, Any]]:
    """Rows by the number of their line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        if path.suffix == ".jsonl":
            rows, names = {}, []
            for number, line in enumerate(lines, start=1):
                if line.strip():  # NaN, of other trainers, is refused by its row later
                    where = f"{path}: neither CSV nor JSONL, row {number}"
                    rows[number] = parse_json(line, where, dict, allow_nan=True)
        else:
            table, rows = csv.DictReader(lines), {}
            for row in table:
                rows[table.line_num] = row
            names = list(table.fieldnames or [])
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: neither CSV nor JSONL ({error})") from None
    if not rows:
        raise UserError(f"{path}: no rows")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: column {twice[0]!r} is there twice")
    return rows


def _from_rows(
    rows: dict[int, dict[str, Any]],
    source: str,
    columns: dict[str, str],
    unit: str | None,
    hyperparameters: bool,
    losses: bool,
) -> Ledger:
    present = list(dict.fromkeys(name for row in rows.values() for name in row if name is not None))
    for ours, theirs in columns.items():
        if theirs not in present:
            hint = nearest(theirs, present)
            raise UserError(f"{source}: no column {theirs!r} for {ours}{hint}; there are {', '.join(present)}")
    name = {ours: columns.get(ours, ours) for ours in COLUMNS}
    # Tables of isoFLOP studies give compute, not tokens.
    from_flops = name["T"] not in present and name["flops"] in present
    needed = ("N", "flops") if from_flops else ("N", "T")
    needed += ("B", "lr") if hyperparameters else ()
    missing = [ours for ours in needed if name[ours] not in present]
    if losses and not {name["loss"], name["ema_loss"]} & set(present):
        missing.append("L")
    if missing:
        raise UserError(
            f"{source}: no columns {', '.join(missing)} (name them with --columns); there are {', '.join(present)}"
        )
    if from_flops and any(row.get(name["n_ctx"]) not in (None, "") for row in rows.values()):
        raise UserError(
            f"{source} has flops and n_ctx but no T: flops / 6N and the paper's cost by n_ctx are no one law; name "
            "the tokens (--columns T=...), or leave n_ctx out"
        )
    per_unit = batch_tokens(unit) if unit is not None or "B" in columns else 1.0
    parsed, unnamed = [], {}
    for number, row in rows.items():
        if None in row:
            raise UserError(f"{source}, row {number} has more cells than the header (a comma within a number?)")
        get = {ours: row.get(theirs) for ours, theirs in name.items()}
        where = {ours: f"{source}, row {number}: {theirs}" for ours, theirs in name.items()}
        entry = {"run_id": str(get["run_id"] or f"row-{number}"), "status": get["status"] or "done"}
        if entry["status"] in UNFINISHED:
            continue
        if entry["status"] not in ("done", "diverged"):
            raise UserError(f"{where['status']} {entry['status']!r} is neither done nor diverged")
        for key in ("N", "T", "B", "lr"):
            absent = key not in needed and name[key] not in present
            entry[key] = math.nan if absent else positive(get[key], where[key])
        if from_flops:
            entry["T"] = positive(get["flops"], where["flops"]) / (6 * entry["N"])
        entry["B"] *= per_unit
        if not get["run_id"] and entry["B"] > 0 and entry["lr"] > 0:
            run = entry["N"], entry["B"], entry["lr"], str(get["seed"] or "")
            entry["run_id"] = unnamed.setdefault(run, entry["run_id"])
        entry["nominal_T"] = entry["T"]
        for key in ("loss", "ema_loss"):
            if entry["status"] == "done" and str(get[key]).strip().lower().lstrip("+-") in ("nan", "inf", "infinity"):
                raise UserError(f"{where[key]} is {get[key]!r}: {DIVERGED}")
        for key in ("loss", "ema_loss", "loss_se", "ema_loss_se", "flops", "n_ctx"):
            # Whatever a diverged run recorded, its loss is beyond any number.
            ignored = entry["status"] == "diverged" and "loss" in key
            entry[key] = None if ignored or get[key] in (None, "") else positive(get[key], where[key])
        if entry["status"] == "done" and losses and entry["loss"] is None and entry["ema_loss"] is None:
            raise UserError(f"{source}, row {number}: no loss ({DIVERGED})")
        for key in ("loss", "ema_loss"):
            if entry[key] is not None and (entry[f"{key}_se"] or 0) > entry[key]:
                raise UserError(f"{where[f'{key}_se']} is {get[f'{key}_se']!r:.60}, more than the loss itself")
        for key in ("seed", "n_ctx"):
            entry[key] = 0 if get[key] in (None, "") else _whole(get[key], where[key])
        flag = str("" if get["heldout"] is None else get["heldout"]).strip().lower()
        if flag not in FLAGS:
            raise UserError(f"{where['heldout']} is {get['heldout']!r:.60}, neither 0 nor 1")
        entry["heldout"] = FLAGS[flag]
        parsed.append(entry)
    return _ledger(parsed, source, {}, losses, per_unit)


def positive(value: Any, where: str) -> float:
    """``value`` as a number above 0 and of sensible size; UserError says ``where`` there is another."""
    if value in (None, ""):
        raise UserError(f"{where} is missing")
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where} is {value!r:.60}, not a number") from None
    if not LEAST <= number <= MOST:
        raise UserError(f"{where} is {value!r:.60}, not a positive number from {LEAST:g} to {MOST:g}")
    return number


def _whole(value: Any, where: str) -> int:
    try:
        number = int(float(value))
        if number == float(value) and abs(number) < 2**53:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{where} is {value!r:.60}, not a whole number")


def _ledger(
    rows: list[dict[str, Any]], source: str, recipe: dict[str, Any], losses: bool = True, unit: float = 1.0
) -> Ledger:
    def column(key: str, default: float = math.nan) -> NDArray[np.float64]:
        return np.array([default if row.get(key) is None else row[key] for row in rows], dtype=float)

    run_id = np.array([row["run_id"] for row in rows])
    raw, raw_se = column("loss"), column("loss_se")
    ema, ema_se = column("ema_loss"), column("ema_loss_se")
    # A run can diverge between its last step and a milestone: its loss there is not a number.
    diverged = np.array([row["status"] == "diverged" for row in rows]) | (losses & np.isnan(raw) & np.isnan(ema))
    if 0 < (lacking := int(np.sum(np.isnan(ema) & ~diverged))) < np.sum(~diverged):
        raise UserError(
            f"{source}: {lacking} of {np.sum(~diverged)} results have no EMA loss: raw and EMA losses are no one law "
            "(give every row its ema_loss, or none; --columns L=loss fits a table's raw ones)"
        )
    loss = np.where(diverged, math.inf, np.where(np.isnan(ema), raw, ema))
    nominal = column("nominal_T")
    # Where runs tell what was asked for, that is what they share.
    if not all(row.get("asked") for row in rows):
        nominal = _common_tokens(column("N"), nominal, column("B"), run_id)
    return Ledger(
        run_id=run_id,
        N=column("N"),
        T=column("T"),
        nominal_T=nominal,
        B=column("B"),
        lr=column("lr"),
        loss=loss,
        loss_se=np.where(np.isnan(ema), raw_se, ema_se),
        raw_loss=np.where(np.isnan(raw), loss, raw),
        raw_loss_se=raw_se,
        flops=column("flops"),
        seed=column("seed", 0).astype(int),
        n_ctx=column("n_ctx", 0).astype(int),
        heldout=np.array([bool(row.get("heldout")) for row in rows]),
        samples=np.array([row.get("samples", "") for row in rows]),
        samples_crc32=column("crc32", -1).astype(int),
        stream=column("stream", -1).astype(int),
        recipe=recipe,
        source=source,
        unit=unit,
    )


def _common_tokens(N: NDArray, T: NDArray, B: NDArray, run_id: NDArray | None = None) -> NDArray:
    """T with near-equal values of one N made equal (to their lowest), so that overshoot does not split a grid.

    Those of one run stay apart: they are its milestones.
    """
    common = T.copy()
    for size in np.unique(N):
        rows = np.flatnonzero(size == N)
        rows = rows[np.argsort(T[rows], kind="stable")]
        start, there = T[rows[0]], {}
        for row in rows:
            overshot = T[row] - B[row] < start and T[row] < start * (1 + MOST_OVERSHOT)
            run = row if run_id is None else run_id[row]
            if (T[row] > start * (1 + SAME_TOKENS) and not overshot) or there.get(run, T[row]) != T[row]:
                start, there = T[row], {}
            common[row], there[run] = start, T[row]
    return common
