"""Tables as trackers and other trainers write them."""

import gzip
import math

import numpy as np
import pytest

from videoscaling.scaling import runs
from videoscaling.scaling.tables import parse_columns
from videoscaling.utils.errors import UserError

ROWS = "N,T,B,lr,loss\n1e6,1e9,2048,1e-3,2.5\n1e6,2e9,2048,1e-3,2.4\n"


def read(tmp_path, text, name="x.csv", **options):
    path = tmp_path / name
    path.write_text(text)
    return runs.read(path, **options)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", ", ", " , "])
def test_delimiters_and_blanks_in_headers(tmp_path, delimiter):
    table = read(tmp_path, ROWS.replace(",", delimiter))
    assert table.loss.tolist() == [2.5, 2.4]
    assert table.B.tolist() == [2048, 2048]


def test_blank_columns_that_a_spreadsheet_adds_are_no_duplicates(tmp_path):
    table = read(tmp_path, ROWS.replace("\n", ",,\n").replace("2.5,,", "2.5,,a remark"))
    assert table.loss.tolist() == [2.5, 2.4]
    # Where blanks follow commas, quotes after them open fields, as without such columns.
    table = read(tmp_path, 'N, T, B, lr, loss, , \n1e6, 1e9, 2048, 1e-3, "2.5", , \n')
    assert table.loss.tolist() == [2.5]


@pytest.mark.parametrize("text", ["0,001", "1.000.000", "1,000", "1 000", "1'000", "1e-3%", "NA", "#N/A", "-"])
def test_a_cell_as_a_spreadsheet_writes_it_is_refused_with_the_fix(tmp_path, text):
    fix = "leave the cell blank" if text in ("NA", "#N/A", "-") else "with a decimal point and with nothing between"
    for column in ("lr", "seed"):
        row = {"N": "1e6", "T": "1e9", "B": "2048", "lr": "1e-3", "seed": "1", "loss": "2.5"} | {column: text}
        with pytest.raises(UserError, match=rf"row 2: {column} is .{text}., not a (whole )?number; .*{fix}"):
            read(tmp_path, ";".join(row) + "\n" + ";".join(row.values()) + "\n")
    with pytest.raises(UserError, match="lr is 'fast', not a number$"):
        read(tmp_path, "N,T,B,lr,loss\n1e6,1e9,2048,fast,2.5\n")


def test_gzip_and_parquet(tmp_path):
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(ROWS.encode()))
    assert runs.read(tmp_path / "x.csv.gz").loss.tolist() == [2.5, 2.4]
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"N": [1e6, 1e6], "T": [1e9, 2e9], "B": [2048, 2048], "lr": [1e-3, 1e-3], "loss": [2.5, None]}
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    table = runs.read(tmp_path / "x.parquet")
    assert table.loss.tolist() == [2.5]
    assert "1 of 2 rows are left out: they have no loss" in table.notes[0]


def test_other_names_of_columns(tmp_path):
    scalebench = "group,lr,bsz,data_size,non_embedding_param_size,lm_loss\na,1e-3,32,1e9,1e6,2.5\n"
    table = read(tmp_path, scalebench, batch_unit="sequences:2048")
    assert (table.N[0], table.T[0], table.B[0], table.lr[0], table.loss[0]) == (1e6, 1e9, 65536, 1e-3, 2.5)
    assert table.columns == {"N": "non_embedding_param_size", "T": "data_size", "B": "bsz", "loss": "lm_loss"}
    steplaw = "h,lr,bs,loss,smooth loss,exp_name,D,N,D/N\n960,1e-3,32,2.6,2.5,a,1e9,1e6,1000\n"
    table = read(tmp_path, steplaw, batch_unit="sequences:2048")
    assert (table.T[0], table.B[0], table.loss[0], table.raw_loss[0]) == (1e9, 65536, 2.5, 2.6)
    chinchilla = "x,Model Size,Training FLOP,loss\n1,1e6,6e15,2.5\n"
    assert read(tmp_path, chinchilla, hyperparameters=False).T.tolist() == [1e9]
    with pytest.raises(UserError, match="say what a batch counts"):
        read(tmp_path, steplaw)
    with pytest.raises(UserError, match="'params' and 'model_size' may both be N; choose with --columns N=params"):
        read(tmp_path, "params,model_size,T,loss\n1,1,1,1\n", hyperparameters=False)


def test_states_of_trackers(tmp_path):
    states = ("finished", "crashed", "killed", "failed", "running", "Finished", "diverged")
    rows = [f"1e6,{k + 1}e9,2048,1e-3,2.5,{state}" for k, state in enumerate(states)]
    text = "\n".join(["N,T,B,lr,loss,State", *rows])
    for columns in (None, parse_columns("status=State")):
        table = read(tmp_path, text, columns=columns)
        assert table.loss.tolist() == [2.5, 2.5, math.inf]
        (note,) = table.notes
        states = "1 crashed, 1 failed, 1 killed, 1 running"
        assert note == f"4 of 7 rows are left out by their state: {states}; finish them first"
    with pytest.raises(UserError, match="row 2: State 'sleeping' is no known state"):
        read(tmp_path, text.replace("finished", "sleeping"))


def test_one_run_with_two_losses_at_one_T(tmp_path):
    text = "run_id,N,T,B,lr,loss\na,1e6,1e9,2048,1e-3,2.6\na,1e6,1e9,2048,1e-3,2.5\nb,1e6,1e9,4096,1e-3,2.4\n"
    with pytest.raises(
        UserError, match=r"run 'a' has 2 losses at N 1e\+06, T 1e\+09: 2.6 and 2.5; .*--duplicates last"
    ):
        read(tmp_path, text)
    table = read(tmp_path, text, duplicates="last")
    assert table.loss.tolist() == [2.5, 2.4]
    assert "1 row is left out: a later row has the same run and T" in table.notes[0]
    # Rows that name no run are repeats.
    rows = [line.partition(",")[2] for line in text.splitlines()]
    assert len(read(tmp_path, "\n".join(rows))) == 3


def test_copies_count_once(tmp_path):
    row = "a,1e6,1e9,2048,1e-3,2.5\n"
    text = f"run_id,N,T,B,lr,loss\n{row}{row}" + row.replace("a,", "copy,") + "b,1e6,1e9,2048,1e-3,2.51\n"
    table = read(tmp_path, text)
    assert table.run_id.tolist() == ["a", "b"]
    assert table.notes == (
        "1 row is a copy of another, and counts once",
        "1 run is a copy of another under another name, and counted once: copy",
    )
    twins = "N,T,loss\n1e6,1e9,2.5\n1e6,1e9,2.5\n"
    assert len(read(tmp_path, twins, hyperparameters=False)) == 1


def test_errors_of_losses_that_are_none_or_not_of_one_kind(tmp_path):
    text = "N,T,B,lr,loss,loss_se\n" + "".join(
        f"1e6,{k}e9,2048,1e-3,2.5,{se}\n"
        for k, se in enumerate(("0", "", "0.01", "0.012", "1e-9", "0.009", "2"), start=1)
    )
    error = read(tmp_path, text).loss_se
    assert np.isnan(error[:2]).all()
    assert error[2:].tolist() == pytest.approx([0.01, 0.012, 0.01 / 30, 0.009, 0.3])


def test_sizes_and_milestones_that_are_nearly_one(tmp_path):
    rows = [
        f"{N},{T},{B},1e-3,2.5" for N, T, B in ((1e6, 1e9, 1), (1.0005e6, 1.04e9, 2), (1e6, 2e9, 3), (1.01e6, 1e9, 4))
    ]
    table = read(tmp_path, "\n".join(["N,T,B,lr,loss", *rows]))
    assert [(N, T, len(own)) for N, T, own in table.grids()] == [(1e6, 1e9, 2), (1e6, 2e9, 1), (1.01e6, 1e9, 1)]
    # Points stay as they are.
    points = read(tmp_path, "N,T,loss\n1e6,1e9,2.5\n1e6,1.04e9,2.4\n", hyperparameters=False)
    assert points.nominal_T.tolist() == [1e9, 1.04e9]


def test_both_or_neither_of_batch_and_rate(tmp_path):
    assert np.isnan(read(tmp_path, "N,T,loss\n1e6,1e9,2.5\n", hyperparameters=None).B[0])
    with pytest.raises(UserError, match="no columns lr"):
        read(tmp_path, "N,T,B,loss\n1e6,1e9,2048,2.5\n", hyperparameters=None)


def test_a_file_that_is_no_table_does_not_fill_the_screen(tmp_path):
    with pytest.raises(UserError) as caught:
        read(tmp_path, "[" * 100_000 + "\n1\n")
    assert str(caught.value).endswith("(name them with --columns); there are " + "[" * 57 + "...")
