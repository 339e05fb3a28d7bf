"""What tools/fit.py says: of fits, of refusals, and of what it would take to fix them."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.commands import call
from tests.scaling import simulate
from videoscaling.scaling import law_file, laws, runs
from videoscaling.scaling.fitting.losses import forms
from videoscaling.scaling.fitting.losses.form_fit import fit_form
from videoscaling.scaling.planning.request import ESTIMATORS

ROOT = Path(__file__).resolve().parents[2]
PAPER = law_file.load(ROOT / "configs" / "laws" / "paper.json")
TOKENS = [2e9, 5e9, 12e9]


def said(*words):
    """(Status, stdout, stderr) of the command."""
    return tuple(call("tools/fit.py", *words))


def swept(path, sizes, n_ctx=1280, offset=0.0):
    cells = simulate.grid(law=PAPER, N=sizes, T=TOKENS, batches=4, rates=4, factor=2.0, offset=offset)
    table = simulate.run_table(PAPER, cells, TOKENS, 1e-4, n_ctx=1280)
    table.n_ctx[:] = n_ctx
    runs.write_csv(table, path)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return swept(tmp_path_factory.mktemp("sweep") / "runs.csv", np.geomspace(0.0168e9, 0.268e9, 3))


@pytest.fixture(scope="module")
def edges(tmp_path_factory):
    """Grids that all end before their optima."""
    return swept(tmp_path_factory.mktemp("edges") / "runs.csv", np.geomspace(1e7, 1e8, 5), offset=4.0)


def test_a_law_may_be_looked_at_before_it_is_written(study):
    """Sizes with intervals, the loss law's own minimum among them; why an estimator is unknown, once; no file."""
    status, out, err = said("all", study, "--method", "grids")
    assert (status, err) == (0, "")
    assert "not written: --out" in out
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith(("predicted ", "minimised "))}
    assert set(rows) == {"predicted", "minimised"}
    intervals = {name: len(re.findall(r"\d \[\d\S*, \d\S*\]", row)) for name, row in rows.items()}
    assert intervals == {"predicted": 3, "minimised": 2}, rows  # the exponent, and two budgets
    (unknown,) = (line for line in out.splitlines() if "unknown" in line)
    assert unknown.startswith("N_opt, direct and measured: unknown (")
    assert "three sizes at shared budgets" in unknown


def test_clips_that_the_user_counts_enter_the_law(tmp_path):
    """The results do not say n_ctx: what the cost assumed is what the plan will assume."""
    path, out = swept(tmp_path / "runs.csv", np.geomspace(0.0168e9, 0.268e9, 3), n_ctx=0), tmp_path / "law.json"
    assert said("all", path, "--n-ctx", "1280", "--method", "grids", "--out", out)[0] == 0
    assert law_file.load(out).n_ctx == 1280
    assert said("all", path, "--method", "grids", "--out", out)[0] == 0
    assert law_file.load(out).n_ctx is None
    rows = [f"{T / 6 / 40 * 1e9:.6g},{T}e9" for T in (1, 10, 100)]
    (tmp_path / "optima.csv").write_text("\n".join(["N,T", *rows]))
    assert said("allocation", tmp_path / "optima.csv", "--optima", "--n-ctx", "80", "--out", out)[0] == 0
    assert law_file.load(out).n_ctx == 80


def test_a_forced_law_says_so_and_why(study, edges, tmp_path):
    out = tmp_path / "law.json"
    status, printed, _ = said("loss", edges, "--method", "grids", "--force", "--out", out)
    fit = law_file.load(out).fit
    assert (status, fit["forced"]) == (0, True)
    assert fit["warnings"][0] == "forced: only 0 of 15 grids have an interior optimum"
    assert f"warning: {fit['warnings'][0]}" in printed
    # Where nothing stood in the way nothing was forced.
    assert said("loss", study, "--method", "grids", "--force", "--out", out)[0] == 0
    assert "forced" not in law_file.load(out).fit


def test_a_refusal_is_a_few_lines(edges):
    status, _, err = said("all", edges, "--method", "grids")
    lines = err.splitlines()
    assert (status, lines[0]) == (
        3,
        "not fitted: only 0 of 15 grids have an interior optimum (--force fits all the same)",
    )
    assert lines[1].startswith("  N 1e+07, T 2e+09: edge (")
    assert lines[13] == "  and 3 more; in all 15 edge"
    assert len(lines) == 14
    assert max(map(len, lines)) < 400


NOT_GRIDS = "N,T,loss\n" + "\n".join(
    f"{N}e6,{T}e9,{2 + 1 / N + 1 / T + k}" for N in (1, 2) for T in (1, 3) for k in range(7)
)
TWO_CELLS = "N,T,B,lr,loss\n1e6,1e9,1e4,1e-3,2\n1e6,1e9,2e4,1e-3,2.1"
DIVERGED = "N,T,loss\n1e6,1e9,2.5\n2e6,1e9,{}"


@pytest.mark.parametrize("part", ["allocation", "loss", "all"])
def test_losses_of_one_size_that_are_no_repeats_are_named(tmp_path, part):
    """A sweep over rates whose column is not known would pass for points, and its bad cells enter the law."""
    path = tmp_path / "table.csv"
    path.write_text(NOT_GRIDS)
    status, _, err = said(part, path)
    assert status == 3
    assert err.startswith(
        "not fitted: 4 (N, T) have several losses that differ by more than repeats of one run do: name"
    )
    assert err.splitlines()[1] == "  N 1e+06, T 1e+09: 7 losses, 4, 5, 6, ..."
    assert len(err.splitlines()) == 5


@pytest.mark.parametrize(
    ("table", "words", "message"),
    [
        (TWO_CELLS, "loss --method grids", "no grid has the 6 cells"),
        *(
            (DIVERGED.format(text), "loss", "a run that diverged has 'diverged' in a column 'status'")
            for text in ("nan", "inf", "NaN", "-inf", "")
        ),
        (DIVERGED.format("-1"), "loss", "not a positive number"),
        (TWO_CELLS, "hyperparameters --fix lr.n=0", "unknown constant 'lr.n'; did you mean 'lr.N'"),
    ],
)
def test_tables_that_lack_something_are_reported_what(tmp_path, table, words, message):
    path = tmp_path / "table.csv"
    path.write_text(table)
    part, *rest = words.split()
    status, _, err = said(part, path, *rest)
    assert (status, err.count("\n")) == (2, 1), err
    assert message in err
    assert len(err) < 300


def test_isoflop_points_are_not_taken_for_optima(tmp_path):
    """Several sizes at one budget: a line through all of them would be no N_opt."""
    path = tmp_path / "isoflop.csv"
    rows = [(N, C / 6 / N, C) for C in (1e18, 1.02e19, 1e20) for N in (1e7, 4e7, 1.6e8)]
    for chosen, status in ((rows, 2), (rows[::4], 0)):
        path.write_text("\n".join(["N,T,flops", *(",".join(map(str, row)) for row in chosen)]))
        left, _, err = said("allocation", path, "--optima")
        assert left == status, err
        assert status == 0 or "at 1e+18 FLOPs has sizes from 1e+07 to 1.6e+08: leave --optima out" in err


def test_rows_without_names_are_not_listed_one_by_one(tmp_path):
    path = tmp_path / "rows.csv"
    rows = [f"{N}e6,{T}e9,{2 + N**-0.3 + T**-0.3}" for N in (1, 2, 4, 8) for T in (1, 2, 4)]
    path.write_text("\n".join(["N,T,loss", *rows]))
    law = json.loads(said("loss", path, "--json")[1])
    assert law["provenance"]["runs"] == ["row-2 to row-13"]
    assert law["provenance"]["unknown"]["batch"] == "the results name no batch and no rate"
    # A law with a part only says how to get the others.
    path.write_text("\n".join(["N,T,loss,B,lr", *(f"{row},1e5,1e-3" for row in rows)]))
    assert "fit.py all" in json.loads(said("loss", path, "--json")[1])["provenance"]["unknown"]["batch"]


def test_validate_says_which_form_wins_and_what_it_cannot_tell(tmp_path):
    tokens = [2e9, 4e9, 8e9]
    cells = simulate.grid(PAPER, np.geomspace(0.0168e9, 0.268e9, 5), tokens, 4, 4, 2.5)
    runs.write_csv(simulate.run_table(PAPER, cells, tokens, 1e-5, n_ctx=1280), tmp_path / "runs.csv")
    status, out, _ = said("validate", tmp_path / "runs.csv", "--method", "grids")
    rows = [line for line in out.splitlines() if line.startswith("  along N")]
    assert (status, len(rows)) == (0, 5)
    best = min(rows, key=lambda line: float(re.search(r"([\d.]+)%", line)[1]))
    assert [line for line in rows if line.endswith("best")] == [best]
    assert "  along T: 3 distinct values; four are needed, to fit three and predict the next" in out


@pytest.mark.parametrize("words", ["--help"])
def test_help_names_what_a_newcomer_needs(words):
    out = said(words)[1]
    for text in ("docs/laws.md", "joint", "three_term", "status", "diverged", "heldout", "loss_se"):
        assert text in out


def test_forms_that_run_off_while_they_are_fitted_are_silent():
    N, T = (v.ravel() for v in np.meshgrid(np.geomspace(1e8, 1e9, 3), np.geomspace(1e9, 1e11, 4)))
    loss = 2 + (1e8 / N) ** 3 + (1e9 / T) ** 5 + 1e-2 * np.sin(np.arange(12) * 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert np.isfinite(fit_form("joint", N, T, loss)(N, T)).all()


def test_the_docs_have_every_name_of_a_law_file():
    """Constants, estimators, verdicts and forms: what a reader of a law meets is written down."""
    text = (ROOT / "docs" / "laws.md").read_text()
    kinds = (laws.PowerLaw, laws.LossLaw, laws.SizeLaw, laws.Curvature, laws.GivenBatch)
    names = {name for kind in kinds for name in kind.__dataclass_fields__} - {"assumed"}
    names |= {*ESTIMATORS, *forms.CONSTANTS, "n_ctx", "fit.forced", "fit.warnings"}
    names |= {"interior", "edge", "floor", "saddle", "misfit", "too few points", "flat"}
    assert not [name for name in names if not re.search(rf"\b{re.escape(name)}\b", text)]
