"""Mutated tables and law files: a fit, a refusal or one line, and never a traceback."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.commands import call
from tests.scaling import planted, simulate
from videoscaling.scaling import law_file
from videoscaling.scaling.runs import write_csv
from videoscaling.tools.sweep import prediction
from videoscaling.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "configs" / "laws" / "paper.json"
QUICK, ALL = 50, 1000
ODD_CELLS = ("", " ", "x", "nan", "-1", "0", "inf", "1e400", "1e-70", "1e70", "1e6", "done", "crashed", "1,5", '"')
ODD_VALUES = (0, -1, 1, 1e300, -1e300, 1e-300, float("nan"), float("inf"), "x", None, [], {}, True, 10**400, 0.3, 40.0)
# Absurd numbers overflow on the way to a refusal.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
Table = list[list[str]]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Table]:
    """Grids over both, grids along one batch, points, and isoFLOP curves, all of the paper's law."""
    law, tokens, path = law_file.load(PAPER), [2e9, 5e9, 1.2e10], tmp_path_factory.mktemp("fuzz") / "runs.csv"
    cells = simulate.grid(law, [0.02e9, 0.07e9, 0.25e9], tokens, 4, 4, 3.0)
    found = []
    line = [(N, 2.0**18, lr) for N, _, lr in cells]
    for chosen in (cells, line):
        write_csv(simulate.run_table(law, chosen, tokens, 1e-3, n_ctx=1280), path)
        found.append([row.split(",") for row in path.read_text().splitlines()])
    points = [(N, T) for N in np.geomspace(1e7, 1e9, 5) for T in np.geomspace(1e9, 1e11, 5)]
    found.append([["N", "T", "loss"], *([f"{N:.6g}", f"{T:.6g}", f"{law.loss(N, T):.6g}"] for N, T in points)])
    curves = [(N, C) for C in (1e18, 1e19, 1e20) for N in np.geomspace(1e7, 1e9, 7)]
    rows = [[f"{N:.6g}", f"{C:.6g}", f"{law.loss(N, C / 6 / N):.6g}"] for N, C in curves]
    found.append([["N", "flops", "loss"], *rows])
    return found


def odd_cells(table: Table, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 5))):
        row = chance.choice(table[1:])
        row[chance.randrange(len(row))] = chance.choice(ODD_CELLS)


def scatter(table: Table, chance: random.Random) -> None:
    """Numbers that are near the right ones."""
    size = chance.choice((1e-3, 0.1, 1.0))
    for row in table[1:]:
        for at, cell in enumerate(row):
            if "." in cell or "e" in cell:
                row[at] = repr(float(cell) * 10 ** chance.gauss(0, size)) if cell[:1].isdigit() else cell


def scale_column(table: Table, chance: random.Random) -> None:
    at, factor = chance.randrange(len(table[0])), chance.choice((0.0, 1e-3, 2048.0, 1e12, 1e-40))
    part = chance.choice((1, 2, 7))
    for row in table[1::part]:
        try:
            row[at] = repr(float(row[at]) * factor)
        except ValueError:
            row[at] = chance.choice(ODD_CELLS)


def level_column(table: Table, chance: random.Random) -> None:
    """A column whose values are one, or nearly one."""
    at = chance.randrange(len(table[0]))
    for number, row in enumerate(table[1:]):
        row[at] = table[1][at] if chance.random() < 0.99 else f"{1 + 1e-4 * number}"


def rename_column(table: Table, chance: random.Random) -> None:
    names = (
        "params",
        "D",
        "bs",
        "State",
        "heldout",
        "loss_se",
        "smooth loss",
        " T",
        "lr ",
        "Loss",
        "",
        "loss",
        "run_id",
    )
    table[0][chance.randrange(len(table[0]))] = chance.choice(names)


def drop_rows(table: Table, chance: random.Random) -> None:
    kept = chance.sample(table[1:], min(chance.choice((0, 1, 2, 5, len(table) // 2)), len(table) - 1))
    table[1:] = kept


def repeat_rows(table: Table, chance: random.Random) -> None:
    for row in chance.sample(table[1:], min(10, len(table) - 1)):
        again = list(row)
        again[-1] = chance.choice((row[-1], "2.5", "1"))
        table.append(again)


def add_column(table: Table, chance: random.Random) -> None:
    name = chance.choice(("heldout", "loss_se", "State", "seed", "n_ctx", "flops", "run_id", "ema_loss"))
    values = chance.choice((("1",), ("0", "1"), ("1e-12", "1e-3", "0.5"), ("finished", "crashed"), ("80",), ("",)))
    table[0].append(name)
    for row in table[1:]:
        row.append(chance.choice(values))


MUTATIONS: tuple[Callable[[Table, random.Random], None], ...] = (
    odd_cells,
    scatter,
    scatter,
    scale_column,
    level_column,
    rename_column,
    drop_rows,
    repeat_rows,
    add_column,
)
COMMANDS = (
    "all",
    "loss",
    "hyperparameters",
    "allocation",
    "compare",
    "validate",
    "all --optima",
    "loss --optima",
    "all --force --method grids",
    "all --prior --method grids",
    "all --prior",
    "all --n-ctx 1280",
    "hyperparameters --method grids --fix B.N=0 --fix lr.N=0",
    "all --method grids",
    "validate --method grids",
    "all --duplicates last",
    "allocation --optima",
    "loss --method grids",
    "hyperparameters --batch-unit sequences:80",
    "hyperparameters --method surface",
)


def is_answer(done: tuple[int, str, str]) -> bool:
    """Whether a command ended as documented: done, one line of a mistake, or data that support no fit."""
    code, _, err = done
    mistake = err.startswith("error: ") and err.count("\n") == 1
    return code == 0 or (code == 2 and mistake) or (code == 3 and err != "")


def mutate_table(tables: list[Table], seed: int) -> tuple[str, list[str]]:
    chance = random.Random(seed)
    table = [list(row) for row in chance.choice(tables)]
    for _ in range(chance.choice((1, 1, 2, 3))):
        if len(table) > 1:
            chance.choice(MUTATIONS)(table, chance)
    delimiter = chance.choice((",", ",", ",", ";", "\t"))
    text = "\n".join(delimiter.join(row) for row in table)
    if chance.random() < 0.1:
        text = text[: chance.randrange(len(text) + 1)]
    return text, chance.choice(COMMANDS).split()


def check_tables(tables: list[Table], folder: Path, seeds: range) -> None:
    path, out = folder / "table.csv", folder / "law.json"
    answers = {0: 0, 2: 0, 3: 0}
    for seed in seeds:
        text, (part, *rest) = mutate_table(tables, seed)
        path.write_text(text)
        out.unlink(missing_ok=True)
        try:
            done = call("tools/fit.py", part, path, *rest, "--out", out)
        except Exception as error:
            raise AssertionError(f"table of seed {seed}: fit.py {part} {' '.join(rest)}") from error
        assert is_answer(done), (seed, part, rest, done)
        answers[done.returncode] += 1
        if done.returncode == 0 and part in ("all", "loss"):
            check_plan(out, random.Random(seed))
    assert min(answers.values()) > len(seeds) // 20  # the mutations are neither all harmless nor all fatal


def check_plan(law: Path, chance: random.Random) -> None:
    request = chance.choice(("--flops 1e20", "--flops 1e15", "--loss 2.5", "--tokens 1e10", "--params 1e8 --loss 2.6"))
    words = [
        *request.split(),
        "--n-ctx",
        "1280",
        *chance.choice(([], ["--batch", "128000"], ["--serve-clips", "1e6"])),
    ]
    done = call("tools/plan.py", "--law", law, *words, "--json")
    assert is_answer(done), (words, done)
    if done.returncode == 0:
        assert "NaN" not in done.stdout, words
        assert "Infinity" not in done.stdout, words


def mutate_law(raw: dict, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, keys = raw, []
        while isinstance(at, dict | list) and at and (not keys or chance.random() < 0.85):
            keys.append(chance.choice(list(at)) if isinstance(at, dict) else chance.randrange(len(at)))
            parent, at = at, at[keys[-1]]
        if isinstance(parent, dict) and chance.random() < 0.1:
            del parent[keys[-1]]
        elif isinstance(at, float) and chance.random() < 0.5:
            parent[keys[-1]] = at * chance.choice((-1.0, 10.0, 100.0, 1e-3, 1e30, 1e-200))
        else:
            parent[keys[-1]] = chance.choice(ODD_VALUES)


def check_prediction(law: Path, chance: random.Random) -> None:
    """The pair that a sweep centres its grids on: possible, or refused by name."""
    try:
        lr, B = prediction(law)(10.0 ** chance.uniform(4, 11), 10.0 ** chance.uniform(5, 13))
    except UserError:
        return
    assert 0 < lr < np.inf
    assert 0 < B < np.inf


def check_laws(law: str, folder: Path, seeds: range) -> None:
    path = folder / "mutated.json"
    for seed in seeds:
        chance = random.Random(seed)
        raw = json.loads(law)
        mutate_law(raw, chance)
        path.write_text(json.dumps(raw))
        try:
            check_plan(path, chance)
            check_prediction(path, chance)
        except Exception as error:
            raise AssertionError(f"law of seed {seed}") from error


@pytest.fixture(scope="module")
def law(tables: list[Table], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A law file with draws, of which a few are kept: they are most of a file's numbers."""
    folder = tmp_path_factory.mktemp("law")
    (folder / "runs.csv").write_text("\n".join(map(",".join, tables[0])))
    words = ["all", folder / "runs.csv", "--method", "grids", "--out", folder / "law.json"]
    assert call("tools/fit.py", *words).returncode == 0
    raw = json.loads((folder / "law.json").read_text())
    raw["draws"] = raw["draws"][:3]
    return json.dumps(raw)


def test_mutated_tables(tables: list[Table], tmp_path: Path) -> None:
    check_tables(tables, tmp_path, range(QUICK))


def test_mutated_laws(law: str, tmp_path: Path) -> None:
    check_laws(law, tmp_path, range(QUICK))


def check_surfaces(law: str, folder: Path, seeds: range) -> None:
    path, table, answers = folder / "mutated.json", folder / "runs.csv", {0: 0, 2: 0}
    table.write_text("N,T,B,lr\n1e7,1e9,1e4,1e-3\n1e6,3e8,,\n2e6,3e8,,1e-3\n")
    for seed in seeds:
        chance = random.Random(seed)
        raw = json.loads(law)
        mutate_law(raw["surface"], chance)
        path.write_text(json.dumps(raw))
        try:
            done = call("tools/predict.py", "--law", path, table)
            check_plan(path, chance)
            check_prediction(path, chance)
        except Exception as error:
            raise AssertionError(f"surface of seed {seed}") from error
        assert is_answer(done), (seed, done)
        assert not re.search(r"\b(nan|inf)\b", done.stdout), seed
        answers[done.returncode] += 1
    assert min(answers.values()) > len(seeds) // 20


@pytest.fixture(scope="module")
def surface(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A law file with a surface, with a few of its draws."""
    folder = tmp_path_factory.mktemp("surface")
    table = planted.write_table(planted.cells(sizes=3), folder / "runs.csv")
    words = ["all", table, "--form", "joint", "--out", folder / "law.json"]
    assert call("tools/fit.py", *words).returncode == 0
    raw = json.loads((folder / "law.json").read_text())
    for shape in raw["surface"]["shapes"]:
        shape["draws"] = shape["draws"][:3]
    return json.dumps(raw)


def test_mutated_surfaces(surface: str, tmp_path: Path) -> None:
    check_surfaces(surface, tmp_path, range(QUICK))


@pytest.mark.slow
def test_a_thousand_mutated_surfaces(surface: str, tmp_path: Path) -> None:
    check_surfaces(surface, tmp_path, range(QUICK, QUICK + ALL))


@pytest.mark.slow
def test_a_thousand_mutated_tables(tables: list[Table], tmp_path: Path) -> None:
    check_tables(tables, tmp_path, range(QUICK, QUICK + ALL))


@pytest.mark.slow
def test_a_thousand_mutated_laws(law: str, tmp_path: Path) -> None:
    check_laws(law, tmp_path, range(QUICK, QUICK + ALL))
