"""predict.py: a table in, the same table with predictions out."""

import csv
from pathlib import Path

import pytest

from tests.commands import Done, call
from videoscaling.scaling import law_file

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "configs" / "laws" / "paper.json"
ADDED = ["predicted", "low", "high", "mean_low", "mean_high", "extrapolated"]


def predict(folder: Path, text: str, *words: object, law: Path = PAPER, name: str = "runs.csv") -> Done:
    (folder / name).write_text(text)
    return call("tools/predict.py", "--law", law, folder / name, *words)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A law of 30 points that scatter by 0.05 %."""
    folder, paper = tmp_path_factory.mktemp("law"), law_file.load(PAPER)
    points = [(10.0**a, 10.0**b) for a in (7, 7.5, 8, 8.5, 9) for b in (9, 9.4, 9.8, 10.2, 10.6, 11)]
    noise = [0.0005 * ((7 * i) % 11 - 5) / 3.2 for i in range(len(points))]
    rows = [f"{N:.6g},{T:.6g},{float(paper.loss(N, T)) * (1 + e):.6g}" for (N, T), e in zip(points, noise)]
    (folder / "points.csv").write_text("\n".join(["N,T,loss", *rows]))
    done = call("tools/fit.py", "loss", folder / "points.csv", "--out", folder / "law.json")
    assert done.returncode == 0, done.stderr
    return folder / "law.json"


def test_rows_and_columns_keep_their_order(tmp_path: Path) -> None:
    text = 'name,T,N,why\nlarge,1e10,1e9,"a, b"\nsmall,4e9,1e8,\n'
    done = predict(tmp_path, text, "--out", tmp_path / "out.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("out.csv: 2 rows, 1 outside the fitted range")
    header, *rows = csv.reader((tmp_path / "out.csv").open())
    assert header == ["name", "T", "N", "why", *ADDED]
    assert [row[:4] for row in rows] == [["large", "1e10", "1e9", "a, b"], ["small", "4e9", "1e8", ""]]
    law = law_file.load(PAPER).loss
    assert [float(row[4]) for row in rows] == pytest.approx([float(law(1e9, 1e10)), float(law(1e8, 4e9))], rel=1e-7)
    # The paper's law file has no draws.
    assert [row[5:] for row in rows] == [["", "", "", "", "1"], ["", "", "", "", "0"]]
    assert "no draws" in done.stderr


def test_intervals_of_a_fitted_law_hold_the_points_that_scatter(fitted: Path, tmp_path: Path) -> None:
    done = predict(tmp_path, (fitted.parent / "points.csv").read_text(), law=fitted)
    assert done.returncode == 0, done.stderr
    rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(done.stdout.splitlines())]
    for row in rows:
        assert row["low"] < row["mean_low"] < row["predicted"] < row["mean_high"] < row["high"]
        # sd 0.05 % of a run, and t of 25 degrees: 0.103 %.
        assert 0.0007 < row["high"] / row["predicted"] - 1 < 0.002
    assert sum(row["low"] < row["loss"] < row["high"] for row in rows) >= 29


def test_columns_of_other_trainers_and_other_kinds_of_table(tmp_path: Path) -> None:
    plain = predict(tmp_path, "N,T\n1e9,1e10\n").stdout.splitlines()[1].split(",")[2]
    for name, text, words in (
        ("a.csv", "params;tokens\n1e9;1e10\n", []),
        ("a.tsv", "size\tD\n1e9\t1e10\n", ["--columns", "N=size"]),
        ("a.jsonl", '{"N": 1e9, "T": 1e10}\n', []),
    ):
        done = predict(tmp_path, text, *words, name=name)
        assert done.returncode == 0, done.stderr
        assert next(csv.DictReader(done.stdout.splitlines()))["predicted"] == plain


@pytest.mark.parametrize(
    ("text", "words", "reason"),
    [
        ("N,T,predicted\n1e9,1e10,1\n", [], "there is a column 'predicted' already"),
        ("N,T,high\n1e9,1e10,1\n", [], "there is a column 'high' already"),
        ("N,T\n1e9,1e10\n1e9,\n", [], "row 3: T is missing"),
        ("N,T\nx,1e10\n", [], "row 2: N is 'x', not a number"),
        ("N,T\n-1,1e10\n", [], "row 2: N is '-1', not a positive number"),
        ("N,lr\n1e9,1e-3\n", [], "no columns T (name them with --columns); there are N, lr"),
        ("N,T\n", [], "no rows"),
        ("", [], "an empty file; give a table"),
        ("N,T,params\n1e9,1e10,1\n", ["--columns", "N=size"], "no column 'size' for N"),
        ("N,T\n1e9,1e10\n", ["--columns", "L=loss"], "--columns: ema_loss is not read here"),
        ("N,T\n1e9,1e10\n", ["--batch-unit", "tokens"], "--batch-unit: law 'paper' has no surface"),
        ("N,T,b\n1e9,1e10,1\n", ["--columns", "B=b"], "--columns: law 'paper' has no surface"),
        ("N,T\n1e9,1e10\n", ["--seeds", "0"], "argument --seeds: 0 must be a number from 1 to 1000"),
        ("N,T\n1e9,1e10\n", ["--seeds", "x"], "--seeds 'x': must be a whole number, such as"),
    ],
)
def test_a_mistake_is_one_line(text: str, words: list[str], reason: str, tmp_path: Path) -> None:
    done = predict(tmp_path, text, *words, "--out", tmp_path / "out.csv")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    assert reason in done.stderr
    assert not (tmp_path / "out.csv").exists()


def test_batches_and_rates_that_a_loss_law_does_not_read_are_said(tmp_path: Path) -> None:
    done = predict(tmp_path, "N,T,bs,learning rate,,\n1e9,1e10,32,1e-3,a,b\n")
    assert done.returncode == 0, done.stderr
    assert "note: not read: bs, learning rate; law 'paper' has no surface" in done.stderr
    assert done.stdout.splitlines()[1].startswith("1e9,1e10,32,1e-3,a,b,")
    assert "not read" not in predict(tmp_path, "N,T\n1e9,1e10\n").stderr


def test_a_folder_is_no_table() -> None:
    done = call("tools/predict.py", "--law", PAPER, ROOT / "results")
    assert done.returncode == 2
    assert "a folder; give a table" in done.stderr


def test_a_law_of_rates_alone_predicts_no_loss(fitted: Path, tmp_path: Path) -> None:
    law = law_file.load(PAPER)
    law_file.save(law.__class__(**{**law.__dict__, "loss": None, "allocation": None}), tmp_path / "law.json")
    done = predict(tmp_path, "N,T\n1e9,1e10\n", law=tmp_path / "law.json")
    assert done.returncode == 2
    assert "law 'paper' has no loss" in done.stderr
