import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.scaling import simulate
from videoscaling.scaling import law_file, runs, tables
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.fitting.run_info import skipped_warnings
from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.utils.errors import UserError


def write_run(folder, name, status="done", N=1000, B=80, milestones=(1e4, 2e4), overshoot=40, **more):
    result = {"status": status, "N": N, "layers": 1, "width": 32, "n_ctx": 80, "B": B, "lr": 1e-3, "seed": 1}
    result["milestones"] = [
        {
            "nominal": T,
            "tokens": T + overshoot,
            "flops": T * 1e4,
            "val_loss": 1.1,
            "val_se": 0.02,
            "ema_val_loss": 1.0 + 1 / T,
            "ema_val_se": 0.01,
        }
        for T in milestones
    ]
    path = folder / name / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result | {"recipe": {"warmup": 10, "optimizer": "adamw"}} | more))


def test_runs_without_a_result_are_counted(tmp_path):
    for name in "abc":
        write_run(tmp_path, name)
        checkpoint = tmp_path / name / "checkpoints" / "step_0000010"
        checkpoint.mkdir(parents=True)
        for place in (tmp_path / name, checkpoint):  # a checkpoint has its run's configuration too
            (place / "config.yaml").touch()
    assert runs.read(tmp_path).notes == ()
    (tmp_path / "c" / "result.json").unlink()
    (note,) = runs.read(tmp_path).notes
    assert note == "1 of 3 runs have no result yet: finish the sweep first (sweep.py run)"


def test_folder_of_runs(tmp_path):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", B=160, overshoot=120, recipe={"warmup": 20, "optimizer": "adamw"})
    write_run(tmp_path, "c", status="diverged", milestones=(1e4,), milestones_asked=[1e4, 2e4])
    table = runs.read(tmp_path)
    assert len(table) == 6
    # A batch's overshoot does not split a grid; the true tokens stay.
    assert [(N, T, len(rows)) for N, T, rows in table.grids()] == [(1000, 1e4, 3), (1000, 2e4, 3)]
    assert set(table.T) == {10040, 20040, 10120, 20120, 20000}
    assert table.loss[0] == 1.0 + 1e-4
    assert table.loss_se[0] == 0.01
    assert table.raw_loss[0] == 1.1
    censored = table.rows(np.isinf(table.loss))
    assert (censored.run_id.tolist(), censored.nominal_T.tolist()) == (["c"], [2e4])
    assert table.recipe == {"optimizer": "adamw", "differs_between_runs": ["warmup"]}


def test_whose_samples_a_run_saw(tmp_path):
    """The seed of its data, where the run records it; a table does not."""
    write_run(tmp_path, "a", config={"data": {"seed": 2**31 - 1}})
    write_run(tmp_path, "b", config={"data": {"seed": None}})
    write_run(tmp_path, "c")
    table = runs.read(tmp_path)
    assert table.stream.tolist() == [2**31 - 1] * 2 + [-1] * 4
    runs.write_csv(table, tmp_path / "table.csv")
    assert set(runs.read(tmp_path / "table.csv").stream) == {-1}


def test_a_fit_warns_of_runs_that_skipped_more_than_one_percent_of_their_steps(tmp_path):
    for name, more in {
        "a": {"tokens": 20_000, "skipped": 26},  # of 250 steps
        "b": {"tokens": 20_000, "skipped": 2},
        "c": {"tokens": 20_000, "skipped": 0},
        "d": {},  # an older version's
        "e": {"tokens": 20_000, "skipped": 200, "status": "diverged", "milestones": (), "milestones_asked": [1e4]},
        "f": {"tokens": 8_000, "skipped": 3},
    }.items():
        write_run(tmp_path, name, **more)
    table = runs.read(tmp_path)
    share = dict(zip(table.run_id.tolist(), table.skipped.tolist()))
    assert math.isnan(share.pop("d"))
    assert share == pytest.approx({"a": 0.104, "b": 0.008, "c": 0, "e": 0.8, "f": 0.03})
    assert skipped_warnings(table) == [
        "2 runs skipped more than 1 % of their steps, as their gradients were not finite (a: 10.4 %): their losses "
        "are those of fewer tokens than T"
    ]
    assert skipped_warnings(table.rows(np.isin(table.run_id, ["b", "c", "d", "e"]))) == []
    runs.write_csv(table, tmp_path / "table.csv")
    assert skipped_warnings(runs.read(tmp_path / "table.csv")) == []


@pytest.mark.parametrize("skipped", [-1, 1.5, "many", None])
def test_a_count_of_skipped_steps_that_is_none_is_a_users_error(tmp_path, skipped):
    write_run(tmp_path, "a", tokens=20_000, skipped=skipped)
    with pytest.raises(UserError, match="a/result.json: skipped"):
        runs.read(tmp_path)


def test_csv_has_the_fixed_columns_and_reads_back(tmp_path):
    write_run(tmp_path / "sweep", "a")
    write_run(tmp_path / "sweep", "b", status="diverged", milestones=(), milestones_asked=[1e4])
    table = runs.read(tmp_path / "sweep")
    runs.write_csv(table, tmp_path / "out.csv")
    header = (tmp_path / "out.csv").read_text().splitlines()[0]
    assert header == "run_id,status,N,T,B,lr,seed,n_ctx,loss,loss_se,ema_loss,ema_loss_se,flops,heldout"
    again = runs.read(tmp_path / "out.csv")
    for name in ("run_id", "N", "T", "B", "lr", "loss", "loss_se", "raw_loss", "n_ctx"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    assert math.isinf(again.loss[-1])


def test_other_trainers_tables(tmp_path):
    path = tmp_path / "theirs.csv"
    path.write_text("params,tokens,batch,rate,l\n1e6,1e9,32,1e-3,2.5\n1e6,1e9,64,1e-3,2.4\n")
    columns = tables.parse_columns("N=params,T=tokens,B=batch,lr=rate,L=l")
    table = runs.read(path, columns, "sequences:2048")
    assert table.B.tolist() == [65536, 131072]
    assert table.loss.tolist() == [2.5, 2.4]
    assert (table.unit, table.rows(np.array([0])).unit) == (2048, 2048)
    lines = [{"N": 1e6, "T": 1e9, "B": 2048, "lr": 1e-3, "loss": 2.5}]
    (tmp_path / "theirs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert runs.read(tmp_path / "theirs.jsonl").B.tolist() == [2048]


def test_raw_and_ema_losses_are_not_mixed(tmp_path):
    path = tmp_path / "mixed.csv"
    path.write_text("status,N,T,loss,ema_loss\ndone,1,1,1.1,1.0\ndone,1,2,1.0,\ndone,1,3,.9,\ndiverged,1,4,,\n")
    with pytest.raises(UserError, match="2 of 3 results have no EMA loss"):
        runs.read(path, hyperparameters=False)
    raw = runs.read(path, tables.parse_columns("L=loss"), hyperparameters=False)
    assert raw.loss.tolist() == [1.1, 1.0, 0.9, math.inf]
    path.write_text("status,N,T,loss,ema_loss\ndone,1,1,1.1,1.0\ndiverged,1,4,,\n")
    assert runs.read(path, hyperparameters=False).loss.tolist() == [1.0, math.inf]
    write_run(tmp_path, "a")
    bare = [{"tokens": 1e4, "val_loss": 1.1}]
    write_run(tmp_path, "b")
    result = json.loads((tmp_path / "b" / "result.json").read_text()) | {"milestones": bare}
    (tmp_path / "b" / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match="1 of 3 results have no EMA loss"):
        runs.read(tmp_path)


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
        ("N,T,B,lr,loss\n1,1,1,1,\n", None, None, r"no row is a result \(1 of 1 rows are left out: they have no loss"),
        ("N,T,bs,lr,loss\n1,1,1,1,1\n", "B=bs", None, "--batch-unit"),
        ("N,T,bs,lr,loss\n1,1,1,1,1\n", "B=bs", "clips", "neither 'tokens' nor"),
        ("N,T,bs,lr,loss\n1,1,1,1,1\n", "B=bz", "tokens", "did you mean 'bs'"),
        ("N,T,B,lr,loss\n1,1,1,1,1\n", "X=N", "tokens", "unknown name 'X'"),
        ("", None, None, "no rows"),
        ("N,T,B,lr,loss\n1,1,1,1,1\n\n1,1,,1,1\n", None, None, "row 4: B is missing"),
        ("N,T,B,lr,loss\n1,1,1,1,1,5\n", None, None, "row 2: 6 fields where the header has 5"),
        ("N,T,B,lr,loss,loss\n1,1,1,1,1,2\n", None, None, "column 'loss' is there twice"),
        ("N,T,B,lr,loss\n1,1,1,1,1e400\n", None, None, "row 2: loss is '1e400'"),
        ("N,T,B,lr,loss\n1e300,1,1,1,1\n", None, None, "row 2: N is '1e300'"),
        ("N,T,B,lr,loss,loss_se\n1,1,1,1,1,1.5\n", None, None, "row 2: loss_se is '1.5', more than the loss"),
        ("N,T,B,lr,loss,seed\n1,1,1,1,1,a\n", None, None, "row 2: seed is 'a', not a whole number"),
        ("N,T,B,lr,loss,seed\n1,1,1,1,1,1.5\n", None, None, "row 2: seed is '1.5', not a whole number"),
        ("N,T,B,lr,loss,seed\n1,1,1,1,1,1e30\n", None, None, "row 2: seed is '1e30', not a whole number"),
        ("N,T,B,lr,loss,n_ctx\n1,1,1,1,1,80.5\n", None, None, "row 2: n_ctx is '80.5', not a whole number"),
        ("N,T,B,lr,loss,heldout\n1,1,1,1,1,yes\n", None, None, "row 2: heldout is 'yes', neither 0 nor 1"),
        ("N,T,B,lr,loss,x\n1,1,1,1,1,1\n", "N=x,N=T", None, "--columns: N is named twice"),
        ("N,T,B,lr,loss,x\n1,1,1,1,1,1\n", "L=x,ema_loss=T", None, "--columns: ema_loss is named twice"),
    ],
)
def test_bad_tables(tmp_path, text, columns, unit, message):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        runs.read(tmp_path / "bad.csv", tables.parse_columns(columns), unit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"N": true, "T": 1, "loss": 1}', "row 1: N is True, not a number"),
        ('\n{"N": 1, "T": [1], "loss": 1}', r"row 2: T is \[1\], not a number"),
        ('{"N": 1, "T": 1%s, "loss": 1}' % ("0" * 400), "row 1: T is 1000"),
        ('{"N": 1, "T": 1%s, "loss": 1}' % ("0" * 5000), "row 1: not JSON"),
        ('{"N": 1, "T": 1, "loss": 1, "seed": {}}', "row 1: seed is {}, not a whole number"),
        ("[1, 2]", "row 1: not a JSON object"),
        ("[" * 100000, r"row 1: not JSON \(nested too deep"),
    ],
)
def test_bad_lines(tmp_path, text, message):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        runs.read(tmp_path / "bad.jsonl", hyperparameters=False)
    assert len(str(refused.value)) < 400


def test_lines_may_leave_out_what_is_optional(tmp_path):
    lines = [{"N": 1e6, "T": 1e9, "loss": 2.5}, {"N": 1e6, "T": 2e9, "loss": 2.4, "heldout": True, "seed": 3}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table = runs.read(tmp_path / "x.jsonl", hyperparameters=False)
    assert (table.heldout.tolist(), table.seed.tolist()) == ([False, True], [0, 3])


def test_a_table_of_optima_needs_no_losses(tmp_path):
    (tmp_path / "x.csv").write_text("status,N,T,B,lr\ndone,1e6,1e9,32,1e-3\ndiverged,1e6,2e9,32,1e-3\n")
    table = runs.read(tmp_path / "x.csv", losses=False)
    assert np.isnan(table.loss[0])
    assert np.isinf(table.loss[1])


def test_unknown_clips_are_written_as_unknown(paper, tmp_path):
    table = simulate.run_table(paper, [(1e8, 1e5, 1e-3)], [1e9], 1e-4)
    runs.write_csv(table, tmp_path / "x.csv")
    assert runs.read(tmp_path / "x.csv").n_ctx.tolist() == [0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numbers of absurd size overflow on the way to a refusal
def test_no_mutation_of_a_table_ends_in_a_traceback(paper, cost, tmp_path):
    """Whatever stands in a cell: it is refused with its row's number, or the table is fitted, or that is refused."""
    tokens = [2e9, 5e9, 1.2e10]
    cells = simulate.grid(paper, [0.02e9, 0.07e9, 0.25e9], tokens, 4, 4, 3.0)
    path = tmp_path / "runs.csv"
    runs.write_csv(simulate.run_table(paper, cells, tokens, 1e-5, n_ctx=1280), path)
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    fitted = refused = 0
    for column, name in enumerate(header):
        for value in ("", "x", "nan", "-1", "0", "inf", "1e400", "1e-70", "1e70"):
            if name == "run_id" and value != "x":
                continue
            changed = [list(row) for row in rows]
            changed[40][column] = value
            path.write_text("\n".join(map(",".join, [header, *changed])))
            try:
                table = runs.read(path)
            except UserError as error:
                reported = (f"row 42: {name}", "1 of 144 results have no EMA loss")
                assert any(words in str(error) for words in reported), (name, value, str(error))  # noqa: PT017
                refused += 1
                continue
            except Exception as error:
                raise AssertionError(f"{name} = {value!r}") from error
            try:
                law_file.from_dict(law_file.to_dict(fit.fit(table, "all", fit.Options(), cost, {}).law))
                fitted += 1
            except (UserError, UnsupportedFit):
                pass
            except Exception as error:
                raise AssertionError(f"{name} = {value!r}") from error
    assert refused > 50
    assert fitted > 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"N": "x"}, "N is 'x', not a number"),
        ({"B": None}, "B is missing"),
        ({"seed": "a"}, "seed is 'a', not a number"),
        ({"recipe": [1]}, r"recipe is \[1\], not an object"),
        ({"milestones": ["x"]}, "not a run's result"),
        ({"milestones": 3}, "not a run's result"),
        ({"milestones": [{"tokens": "x", "val_loss": 1.0}]}, "tokens is 'x', not a number"),
        ({"milestones": [{"tokens": 10, "val_loss": "x"}]}, "val_loss is 'x', not a number"),
        ({"status": "diverged", "milestones": [], "milestones_asked": ["x"]}, "milestones_asked is 'x', not a number"),
    ],
)
def test_bad_results_are_named(tmp_path, change, message):
    write_run(tmp_path, "a")
    path = tmp_path / "a" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"a/result.json: .*{message}"):
        runs.read(tmp_path)


def test_a_result_that_is_a_list_is_named(tmp_path):
    write_run(tmp_path, "a")
    (tmp_path / "a" / "result.json").write_text("[]")
    with pytest.raises(UserError, match="a/result.json: not a run's result"):
        runs.read(tmp_path)


def test_bad_folders(tmp_path):
    with pytest.raises(UserError, match="no result.json"):
        runs.read(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        runs.read(tmp_path / "missing")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text("{}")
    with pytest.raises(UserError, match="not a run's result"):
        runs.read(tmp_path)


def test_rows_without_run_ids_are_runs_by_what_they_share(tmp_path):
    """Milestones of one run err together: as runs of their own they would make intervals too narrow."""
    path = tmp_path / "x.csv"
    lines = [f"1e6,{T},{B},1e-3,{seed},2.5" for B in (80, 160) for seed in (1, 2) for T in (1e6, 2e6)]
    path.write_text("N,T,B,lr,seed,loss\n" + "\n".join(lines))
    table = runs.read(path)
    assert len(set(table.run_id.tolist())) == 4
    assert table.run_id.tolist() == [f"row-{k}" for k in (2, 2, 4, 4, 6, 6, 8, 8)]
    # Without a batch and a rate nothing distinguishes runs.
    path.write_text("N,T,loss\n" + "\n".join(f"1e6,{T},2.5" for T in (1e6, 2e6)))
    assert len(set(runs.read(path, hyperparameters=False).run_id.tolist())) == 2


def test_milestones_of_one_run_stay_apart_however_near(tmp_path):
    nominal = (1e6, 1.015e6)
    for name, B in (("a", 80), ("b", 160)):
        write_run(tmp_path / "sweep", name, B=B, milestones=nominal, overshoot=B // 2)
    table = runs.read(tmp_path / "sweep")
    assert [(T, len(rows)) for _, T, rows in table.grids()] == [(1e6, 2), (1.015e6, 2)]
    # A table shows no milestones, but its runs.
    runs.write_csv(table, tmp_path / "x.csv")
    assert [(T, len(rows)) for _, T, rows in runs.read(tmp_path / "x.csv").grids()] == [(1000040, 2), (1015040, 2)]


def test_tokens_from_flops_go_with_no_other_cost(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("N,flops,n_ctx,loss\n1e6,6e15,80,2.5\n")
    with pytest.raises(UserError, match="flops and n_ctx but no T"):
        runs.read(path, hyperparameters=False)


def test_runs_from_before_beta2_had_a_range_are_of_the_recipe_that_they_were_trained_by(tmp_path: Path) -> None:
    new = {"beta2_half_life": 1000.0, "beta2_range": [0.9, 0.9999]}
    old = {"beta2_half_life": 1000.0}
    write_run(tmp_path, "new", B=320, recipe=new)
    write_run(tmp_path, "old", B=80, recipe=old)  # its beta2 was 0.946, in the range
    assert runs.read(tmp_path).recipe == new
    write_run(tmp_path, "older", B=160, recipe=old)  # 0.895: the range would have kept it at 0.9
    assert runs.read(tmp_path).recipe == {"beta2_half_life": 1000.0, "differs_between_runs": ["beta2_range"]}
