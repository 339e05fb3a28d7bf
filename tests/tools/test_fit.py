import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.commands import call
from tests.scaling import simulate
from videoscaling.scaling import law_file, runs

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "configs" / "laws" / "paper.json"
TOKENS = [2e9, 5e9, 12e9]


def run(tool, *words):
    return call(f"tools/{tool}", *words)


def here(*words):
    """(status, what the command says on stderr)"""
    done = run("fit.py", *words)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A simulated sweep as the CSV that a collected sweep leaves."""
    law = law_file.load(PAPER)
    cells = simulate.grid(law, np.geomspace(0.0168e9, 0.268e9, 3), TOKENS, 5, 5, 2.0)
    path = tmp_path_factory.mktemp("sweep") / "runs.csv"
    runs.write_csv(simulate.run_table(law, cells, TOKENS, 1e-4, n_ctx=1280), path)
    return path


def test_from_a_table_to_a_report(sweep, tmp_path):
    out = tmp_path / "law.json"
    done = run("fit.py", "all", sweep, "--method", "grids", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "batch.T" in done.stdout
    law = law_file.load(out)
    assert law.n_ctx == 1280
    assert len(law.provenance["runs"]) == 75
    assert law.provenance["command"].startswith("tools/fit.py all")
    assert len(law.draws[0]) == len(law.fit["draw_columns"]) == 11
    planned = tmp_path / "planned"
    planned.mkdir()
    milestone = {"tokens": 2e10, "val_loss": 0.52, "val_se": 1e-3, "flops": 1e20}
    (planned / "result.json").write_text(json.dumps({"N": 5e8, "milestones": [milestone]}))
    report = tmp_path / "report.html"
    done = run("report.py", sweep, "--law", out, "--planned", planned, "--out", report)
    assert done.returncode == 0, done.stderr
    page = report.read_text()
    titles = (
        "The prediction and the run",
        "Loss over rate and batch",
        "Best batch and rate",
        "Model size for a budget",
    )
    for text in titles:
        assert text in page
    # Pictures are base64, in which any four letters turn up by chance.
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert page.count("data:image/png;base64") == 8  # of nine, one is left out


def test_columns_and_json(tmp_path):
    path = tmp_path / "optima.csv"
    lines = ["params,tokens,batch,rate"]
    lines += [
        f"{N},{T},{2e-2 * T**0.5 * N**0.1 / 2048},{3 * N**-0.4 * T**0.05}" for N in (1e7, 1e8) for T in (1e9, 4e9)
    ]
    path.write_text("\n".join(line + (",loss" if i == 0 else ",2.0") for i, line in enumerate(lines)))
    words = (
        "--columns",
        "N=params,T=tokens,B=batch,lr=rate,L=loss",
        "--batch-unit",
        "sequences:2048",
        "--optima",
        "--json",
    )
    done = run("fit.py", "hyperparameters", path, *words)
    law = law_file.from_dict(json.loads(done.stdout))
    assert (law.batch.coefficient, law.lr.coefficient) == pytest.approx(
        (
            float(2e-2 * law.batch.scale["T"] ** 0.5 * law.batch.scale["N"] ** 0.1),
            float(3 * law.lr.scale["T"] ** 0.05 * law.lr.scale["N"] ** -0.4),
        )
    )
    assert list(law.batch.__dict__.values())[1:3] == pytest.approx([0.5, 0.1])


def test_what_cannot_be_trusted_exits_3(tmp_path):
    law = law_file.load(PAPER)
    cells = simulate.grid(law, [1e8], TOKENS, 4, 4, 2.0, offset=4)
    runs.write_csv(simulate.run_table(law, cells, TOKENS, 1e-5, n_ctx=1280), tmp_path / "runs.csv")
    done = run("fit.py", "all", tmp_path / "runs.csv", "--method", "grids", "--out", tmp_path / "law.json")
    assert done.returncode == 3
    assert "edge" in done.stderr
    assert "--force" in done.stderr
    # The way out, too: where to go.
    assert re.search(r"^  N 1e\+08, T 2e\+09: edge \(\w+ (lr|batch)", done.stderr, re.M)
    assert not (tmp_path / "law.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("all", "missing.csv", "--out", "x.json"), "no such file"),
        (("all", __file__, "--out", "x.json"), "no columns|neither CSV"),
        (("all", "{sweep}", "--fix", "B.M=0", "--out", "x.json"), "did you mean"),
        (("all", "{sweep}", "--fix", "B.N=a", "--out", "x.json"), "not a number"),
        (("all", "{sweep}", "--columns", "N=param", "--out", "x.json"), "no column 'param'"),
        (("all", "{sweep}", "--prior", "nothing.json", "--out", "x.json"), "no such file"),
    ],
)
def test_bad_input_is_one_line_and_status_2(sweep, words, message):
    done = run("fit.py", *(word.format(sweep=sweep) for word in words))
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert done.stderr.count("\n") == 1


def test_compare_and_validate(sweep, tmp_path):
    done = run("fit.py", "compare", sweep, "--json")
    bent = json.loads(done.stdout)
    assert bent["biased"]
    assert bent["N_fixed"] > bent["N_opt"]
    done = run("fit.py", "compare", sweep, "--pair", "2e-4,0")
    assert (done.returncode, "--pair" in done.stderr) == (2, True)
    law = law_file.load(PAPER)
    tokens = [2e9, 4e9, 8e9, 1.6e10]
    cells = simulate.grid(law, np.geomspace(0.0168e9, 0.268e9, 4), tokens, 5, 5, 2.5)
    table = simulate.run_table(law, cells, tokens, 1e-5, n_ctx=1280)
    largest = table.N.max()
    table.heldout[largest == table.N] = True
    runs.write_csv(table, tmp_path / "runs.csv")
    done = run("fit.py", "validate", tmp_path / "runs.csv", "--json", "--out", tmp_path / "checks.json")
    checks = json.loads(done.stdout)
    assert checks == json.loads((tmp_path / "checks.json").read_text())
    assert {row["along"] for row in checks["windows"]} == {"T"}
    assert len(checks["held_out"]) == 4
    assert all(abs(row["error"]) < 1e-3 for row in checks["held_out"])


@pytest.fixture(scope="module")
def formll():
    folder = Path(os.environ.get("SCALING_DATA", ROOT.parent / "shared" / "data")) / "formll"
    if not folder.exists():
        pytest.skip("public data not here (set SCALING_DATA)")

    def rows(name):
        with (folder / name).open() as handle:
            chosen = [r for r in csv.DictReader(handle) if (r["experiment"], r["dataset"]) == ("cosine_decay", "rw")]
        return [r for r in chosen if all(r.values())]

    return rows


def write_rows(path, rows):
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def test_published_size_laws_from_tables(formll, tmp_path):
    (expected,) = formll("expected_fits.csv")
    write_rows(tmp_path / "optima.csv", formll("optimal_pairs.csv"))
    words = ("--columns", "N=n_opt,T=t_opt,L=loss_opt", "--optima", "--json")
    law = law_file.from_dict(json.loads(run("fit.py", "allocation", tmp_path / "optima.csv", *words).stdout))
    assert law.allocation["measured"].exponent == pytest.approx(float(expected["n_exponent_basic"]), abs=1e-9)
    assert law.allocation["measured"].coefficient == pytest.approx(float(expected["n_coef_basic"]), rel=1e-9)
    write_rows(tmp_path / "isoflop.csv", formll("isoflop_points.csv"))
    words = ("--columns", "N=n,T=t,L=loss", "--json")
    law = law_file.from_dict(json.loads(run("fit.py", "allocation", tmp_path / "isoflop.csv", *words).stdout))
    assert law.allocation["measured"].exponent == pytest.approx(float(expected["n_exponent_basic"]), abs=0.03)


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        ("1e6,1e9,2.5\n2e6,2e9,2.4\n4e6,4e9,2.3", ("loss",), "3 points cannot fix 5 constants"),
        ("\n".join(f"{N}e6,{T}e9,2.5" for N in (1, 2, 4) for T in (1, 2, 4)), ("loss",), "all losses are equal"),
    ],
)
def test_too_little_to_fit_is_bad_input(tmp_path, rows, words, message):
    (tmp_path / "few.csv").write_text("N,T,loss\n" + rows)
    done = run("fit.py", *words, tmp_path / "few.csv", "--out", tmp_path / "law.json")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert not (tmp_path / "law.json").exists()


def test_losses_that_leave_nothing_to_check_are_refused_with_the_options_that_fit_them(tmp_path):
    path = tmp_path / "five.csv"
    path.write_text("N,T,loss\n1e6,1e8,1.3\n2e6,3e8,1.11\n4e6,1e9,0.95\n1e6,1e9,1.1\n4e6,1e8,1.2\n")
    done = run("fit.py", "all", path, "--out", tmp_path / "law.json")
    assert (done.returncode, (tmp_path / "law.json").exists()) == (3, False)
    assert "5 points for 5 constants leave nothing to check the fit by" in done.stderr
    forced = done.stderr.split("; ")[1].removesuffix(" fits all the same)\n").split()
    assert forced == ["--force", "--method", "grids"]
    assert run("fit.py", "all", path, "--out", tmp_path / "law.json", *forced).returncode == 0
    # Grids read no --form, and refuse it.
    done = run("fit.py", "all", path, "--form", "additive")
    assert done.returncode == 3
    assert "; --force --method grids without --form fits all the same)" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hyperparameters", "--optima", "--json"], "every row is held out"),
        (["loss", "--fix", "B.N=nan", "--json"], "must be a finite number"),
        (["compare", "--pair", "inf,1e5"], "is not LR,B"),
    ],
)
def test_numbers_that_are_none_and_tables_that_are_empty(tmp_path, words, message):
    path = tmp_path / "held.csv"
    path.write_text("N,T,B,lr,loss,heldout\n1e6,1e8,1e4,1e-3,1.0,1\n1e6,2e8,1e4,1e-3,0.9,1\n")
    done = run("fit.py", words[0], path, *words[1:])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr


def test_a_status_that_is_no_state_is_named(tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text("status,N,T,B,lr,loss\ndone,1e6,1e8,1e4,1e-3,1.0\nsleeping,1e6,2e8,1e4,1e-3,0.9\n")
    done = run("fit.py", "loss", path, "--json")
    assert done.returncode == 2
    assert "row 3: status 'sleeping' is no known state (done, finished, " in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("all --fix B.N=0 --fix B.N=0.1", "--fix: B.N is held twice"),
        ("loss --fix B.N=0", "--fix B.N: fit.py loss fits no law with it"),
        ("hyperparameters --fix loss.aT=0.3", "--fix loss.aT: fit.py hyperparameters fits no law with it"),
        ("validate --fix lr.N=0", "--fix lr.N: fit.py validate fits no law with it"),
        ("loss " + " ".join(f"--fix loss.{c}=0.3" for c in ("Tc", "aT", "Nc", "aN", "Linf")), "nothing left to fit"),
        ("loss --fix loss.aT=100", "--fix 'loss.aT=100': must be a finite number from 0.01 to 4"),
        ("loss --method grids --fix loss.Linf=100", "Linf 100 is not below the lowest loss"),
        ("hyperparameters --fix B.T=1e300", "--fix 'B.T=1e300': must be a finite number from -10 to 10"),
        ("all --n-ctx 0", "--n-ctx: 0 must be a number from 1 to 1e"),
        ("all --n-ctx -80", "--n-ctx: -80 must be a number from 1 to 1e"),
        ("all --n-ctx 80", "--n-ctx 80: the results have 1280; leave it out"),
        ("all --pair 2e-4,65536", "--pair: not read by fit.py all"),
        ("loss --flops 1e20", "--flops: not read by fit.py loss"),
        ("validate --flops 1e20", "--flops: not read by fit.py validate"),
        ("validate --prior", "--prior: not read by fit.py validate"),
        ("compare --fix loss.aT=0.3", "--fix: not read by fit.py compare"),
        ("compare --prior", "--prior: not read by fit.py compare"),
        ("compare --optima", "--optima: not read by fit.py compare"),
        ("compare --force", "--force: not read by fit.py compare"),
        ("allocation --optima --fix loss.aT=0.3", "--fix: not read by fit.py allocation --optima"),
        ("compare --flops 1e300", "--flops: 1e.300 must be a number from 1 to 1e"),
        ("compare --flops 1", "from 0.1 to 1 FLOPs a best size is not within a factor of 1000 of the fitted ones: .*"),
        ("compare --flops nan", "--flops: nan must be a number"),
        ("compare --pair 1e-300,1e300", "is not LR,B|too far from the grids"),
        ("all --batch-unit tokens:2", "neither 'tokens' nor"),
        ("all --columns N=N,N=T", "--columns: N is named twice"),
    ],
)
def test_options_that_contradict_or_are_not_read(sweep, words, message):
    part, *rest = words.split()
    status, said = here(part, sweep, *rest, *([] if part in ("compare", "validate") else ["--json"]))
    assert (status, said.count("\n")) == (2, 1), said
    assert re.search(message, said), said


def test_a_seed_that_is_no_number_is_named(tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text("N,T,loss,seed\n1e6,1e8,1.0,1\n1e6,2e8,0.9,first\n")
    status, said = here("loss", path, "--json")
    assert (status, said.count("\n")) == (2, 1)
    assert "row 3: seed is 'first', not a whole number" in said


def test_diverged_rows_of_an_isoflop_table_are_left_out(tmp_path):
    """They are no points of a parabola, and the budgets stay next to the points that are."""
    law = law_file.load(PAPER).loss
    rows = [("status", "N", "T", "flops", "loss")]
    for C in (1e18, 1e19, 1e20):
        rows += [("done", N, C / 6 / N, C, law(N, C / 6 / N)) for N in 10.0 ** np.arange(7.0, 9.1, 0.25)]
    whole, pieces = tmp_path / "whole.csv", tmp_path / "diverged.csv"
    whole.write_text("\n".join(",".join(map(str, row)) for row in rows))
    rows.insert(3, ("diverged", 3e7, 1e11, 1e18, "inf"))
    rows.append(("diverged", 1e10, 1e10, 1e20, ""))
    pieces.write_text("\n".join(",".join(map(str, row)) for row in rows))
    found = []
    for path in (whole, pieces):
        done = run("fit.py", "allocation", path, "--json")
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout)["allocation"])
    assert found[0] == found[1]
    assert found[0]["measured"] is not None


@pytest.mark.parametrize(("part", "key"), [("hyperparameters", "batch"), ("allocation", "allocation")])
def test_optima_need_no_losses(tmp_path, part, key):
    """Where each row is an optimum already, its loss enters no fit: not even a diverged row of it."""
    lines = ["status,N,T,B,lr"]
    lines += [
        f"done,{N},{T},{2e-2 * T**0.5 * N**0.1},{3 * N**-0.4 * T**0.05}"
        for N, T in ((1e7, 1e9), (2e7, 4e9), (3e7, 1e9), (1e8, 4e9))
    ]
    path, out = tmp_path / "optima.csv", tmp_path / "law.json"
    path.write_text("\n".join([*lines, "diverged,1e9,1e9,1e3,1e-3"]))
    status, said = here(part, path, "--optima", "--out", out)
    assert (status, said) == (0, "")
    law = law_file.to_dict(law_file.load(out))
    path.write_text("\n".join(line + f",{'loss' if i == 0 else 2.5}" for i, line in enumerate(lines)))
    assert here(part, path, "--optima", "--out", out) == (0, "")
    assert law[key] == law_file.to_dict(law_file.load(out))[key]
    if key == "batch":
        assert (law["batch"]["T"], law["batch"]["N"]) == pytest.approx((0.5, 0.1))


def test_a_prior_that_would_hold_all_that_is_left_is_not_a_fit(tmp_path):
    """Three constants held by hand and the prior's two exponents leave nothing: refused, not divided by."""
    path = tmp_path / "flat.csv"
    rows = [f"{N}e6,{T}e9,{2 + 1e-3 * ((N * T) % 5)}" for N in (1, 2, 4) for T in (1, 2, 4)]
    path.write_text("\n".join(["N,T,loss", *rows]))
    fixed = [word for c in ("Tc=0.1", "Nc=0.1", "Linf=1.5") for word in ("--fix", f"loss.{c}")]
    status, said = here("loss", path, "--method", "grids", *fixed, "--prior", "--json")
    assert (status, said.count("\n")) == (3, 1), said
    assert "nothing is left to fit" in said


def test_step_laws_known_answers_by_the_command(tmp_path):
    """Weights by the optima's covariances and the variance between grids, as users get them."""
    folder = Path(os.environ.get("SCALING_DATA", ROOT.parent / "shared" / "data")) / "steplaw"
    if not folder.exists():
        pytest.skip("public data not here (set SCALING_DATA)")
    words = ("--columns", "T=D,B=bs,L=smooth loss", "--batch-unit", "sequences:2048", "--method", "grids")
    words = (*words, "--fix", "B.N=0", "--json")
    done = run("fit.py", "hyperparameters", folder / "dense_lr_bs_loss.csv", *words)
    assert done.returncode == 0, done.stderr
    law = law_file.from_dict(json.loads(done.stdout))
    assert law.batch.assumed == ("N",)
    in_tokens, in_size = law.batch.T, law.lr.N
    assert in_tokens == pytest.approx(0.569, abs=0.01)
    assert law.batch(1e9, 1.0) == pytest.approx(0.546, rel=0.1)
    assert in_size == pytest.approx(-0.695, abs=0.02)
    assert sum("interior" in verdict for verdict in law.fit["verdicts"]) == 17


def test_a_collected_table_gives_the_folders_law(tmp_path):
    """Milestones overshot by up to a batch, a diverged run, runs' own standard errors: all survive the CSV."""
    law, tokens = law_file.load(PAPER), [1e8, 2e8, 4e8]
    cells = simulate.grid(law, np.geomspace(1e6, 1.6e7, 3), tokens, 5, 5, 2.0)
    for number, (N, B, lr) in enumerate(cells):
        diverges = number % 25 == 24  # a size's largest batch and rate
        B = max(round(B / 80), 1) * 80
        seen = [-(-int(T) // B) * B for T in tokens]
        table = simulate.run_table(law, [(N, B, lr)], seen, 1e-5, seed=number, n_ctx=80)
        result = {"status": "done", "N": round(N), "n_ctx": 80, "B": B, "lr": lr, "seed": number}
        result["milestones"] = [
            {
                "nominal": T,
                "tokens": at,
                "flops": at * N,
                "val_loss": loss * 1.02,
                "val_se": 1e-3,
                "ema_val_loss": loss,
                "ema_val_se": 1e-4 * loss,
            }
            for T, at, loss in zip(tokens, seen, table.loss)
        ]
        if diverges:
            result |= {"status": "diverged", "milestones": result["milestones"][:1], "milestones_asked": tokens}
        path = tmp_path / "sweep" / f"run-{number:03d}" / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result))
    runs.write_csv(runs.read(tmp_path / "sweep"), tmp_path / "runs.csv")
    fitted = [run("fit.py", "all", tmp_path / name, "--method", "grids", "--json") for name in ("sweep", "runs.csv")]
    assert [done.returncode for done in fitted] == [0, 0], fitted[0].stderr
    folder, tabled = (law_file.from_dict(json.loads(done.stdout)) for done in fitted)
    for part in ("batch", "lr", "loss"):
        for name in getattr(folder, part).__dataclass_fields__:
            if name not in ("scale", "assumed"):
                expected = getattr(getattr(folder, part), name)
                assert getattr(getattr(tabled, part), name) == pytest.approx(expected, rel=1e-9), (part, name)
    assert tabled.fit["intervals"] == {
        name: pytest.approx(span, rel=1e-6) for name, span in folder.fit["intervals"].items()
    }
