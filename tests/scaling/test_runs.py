import json
import math

import numpy as np
import pytest

from scaling import runs
from utils.errors import UserError


def write_run(folder, name, status="done", N=1000, B=80, milestones=(1e4, 2e4), overshoot=40, **more):
    result = {"status": status, "N": N, "layers": 1, "width": 32, "n_ctx": 80, "B": B, "lr": 1e-3, "seed": 1}
    result["milestones"] = [
        {"nominal": T, "tokens": T + overshoot, "flops": T * 1e4, "val_loss": 1.1, "val_se": 0.02,
         "ema_val_loss": 1.0 + 1 / T, "ema_val_se": 0.01} for T in milestones
    ]  # fmt: skip
    path = folder / name / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result | {"recipe": {"warmup": 10, "optimizer": "adamw"}} | more))


def test_folder_of_runs(tmp_path):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", B=160, overshoot=120, recipe={"warmup": 20, "optimizer": "adamw"})
    write_run(tmp_path, "c", status="diverged", milestones=(1e4,), milestones_asked=[1e4, 2e4])
    ledger = runs.read(tmp_path)
    assert len(ledger) == 6
    # A batch's overshoot does not split a grid; the true tokens stay.
    assert [(N, T, len(rows)) for N, T, rows in ledger.grids()] == [(1000, 1e4, 3), (1000, 2e4, 3)]
    assert set(ledger.T) == {10040, 20040, 10120, 20120, 20000}
    assert ledger.loss[0] == 1.0 + 1e-4
    assert ledger.loss_se[0] == 0.01
    assert ledger.raw_loss[0] == 1.1
    censored = ledger.rows(np.isinf(ledger.loss))
    assert (censored.run_id.tolist(), censored.nominal_T.tolist()) == (["c"], [2e4])
    assert ledger.recipe == {"optimizer": "adamw", "differs_between_runs": ["warmup"]}


def test_csv_has_the_fixed_columns_and_reads_back(tmp_path):
    write_run(tmp_path / "sweep", "a")
    write_run(tmp_path / "sweep", "b", status="diverged", milestones=(), milestones_asked=[1e4])
    ledger = runs.read(tmp_path / "sweep")
    runs.write_csv(ledger, tmp_path / "out.csv")
    header = (tmp_path / "out.csv").read_text().splitlines()[0]
    assert header == "run_id,status,N,T,B,lr,seed,n_ctx,loss,loss_se,ema_loss,ema_loss_se,flops,heldout"
    again = runs.read(tmp_path / "out.csv")
    for name in ("run_id", "N", "T", "B", "lr", "loss", "loss_se", "raw_loss", "n_ctx"):
        np.testing.assert_array_equal(getattr(again, name), getattr(ledger, name))
    assert math.isinf(again.loss[-1])


def test_other_trainers_tables(tmp_path):
    path = tmp_path / "theirs.csv"
    path.write_text("params,tokens,batch,rate,l\n1e6,1e9,32,1e-3,2.5\n1e6,1e9,64,1e-3,2.4\n")
    columns = runs.parse_columns("N=params,T=tokens,B=batch,lr=rate,L=l")
    ledger = runs.read(path, columns, "sequences:2048")
    assert ledger.B.tolist() == [65536, 131072]
    assert ledger.loss.tolist() == [2.5, 2.4]
    lines = [{"N": 1e6, "T": 1e9, "B": 2048, "lr": 1e-3, "loss": 2.5}]
    (tmp_path / "theirs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert runs.read(tmp_path / "theirs.jsonl").B.tolist() == [2048]


def test_loss_law_needs_no_batch(tmp_path):
    (tmp_path / "x.csv").write_text("N,T,loss\n1e6,1e9,2.5\n")
    assert np.isnan(runs.read(tmp_path / "x.csv", hyperparameters=False).B[0])
    with pytest.raises(UserError, match="no columns B, lr"):
        runs.read(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("text", "columns", "unit", "message"),
    [
        ("N,T,B,lr\n1,1,1,1\n", None, None, r"no columns L .*there are N, T, B, lr"),
        ("N,T,B,lr,loss\n1,1,x,1,1\n", None, None, "row 2: B is 'x', not a number"),
        ("N,T,B,lr,loss\n1,1,1,1,1\n1,1,1,-1,1\n", None, None, "row 3: lr is '-1', not a positive number"),
        ("N,T,B,lr,loss\n1,1,1,1,nan\n", None, None, "row 2: loss is 'nan'"),
        ("N,T,B,lr,loss\n1,1,1,1,\n", None, None, "row 2: no loss"),
        ("N,T,bs,lr,loss\n1,1,1,1,1\n", "B=bs", None, "--batch-unit"),
        ("N,T,bs,lr,loss\n1,1,1,1,1\n", "B=bs", "clips", "neither 'tokens' nor"),
        ("N,T,bs,lr,loss\n1,1,1,1,1\n", "B=bz", "tokens", "did you mean 'bs'"),
        ("N,T,B,lr,loss\n1,1,1,1,1\n", "X=N", "tokens", "unknown name 'X'"),
        ("", None, None, "no rows"),
    ],
)
def test_bad_tables(tmp_path, text, columns, unit, message):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        runs.read(tmp_path / "bad.csv", runs.parse_columns(columns), unit)


def test_bad_folders(tmp_path):
    with pytest.raises(UserError, match="no result.json"):
        runs.read(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        runs.read(tmp_path / "missing")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text("{}")
    with pytest.raises(UserError, match="not a run's result"):
        runs.read(tmp_path)
