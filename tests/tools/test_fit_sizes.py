"""`fit.py allocation` on tables of best sizes, and of costs."""

import pytest

from tests.tools.test_fit import here, run
from videoscaling.models.sizes import smooth_width
from videoscaling.scaling import law_file, runs
from videoscaling.scaling.fitting.run_info import cost_of
from videoscaling.utils.errors import UserError


def test_costs_that_the_table_tells_or_contradicts(tmp_path):
    path = tmp_path / "x.csv"
    rows = [[N, T, 1280 * 2**k, 1e-3, 12 * N * T, 2.5] for N in (1e6, 4e6) for T in (1e9, 4e9) for k in range(3)]
    head = "N,T,B,lr,flops,loss\n"
    write = lambda rows, head=head: path.write_text(head + "\n".join(",".join(map(str, row)) for row in rows))  # noqa: E731
    # A row that did not record its FLOPs, as diverged ones do not, changes nobody's cost.
    for blank in (None, 7):
        write([[*row[:4], "" if k == blank else row[4], row[5]] for k, row in enumerate(rows)])
        _, cost, words = cost_of(runs.read(path), None, smooth_width)
        assert (float(cost(1e6)), words) == (pytest.approx(12e6), "12 N T, from the flops column")
    # A batch of fewer tokens than a clip counts clips.
    write([[*row[:2], row[2] // 1280, *row[3:]] for row in rows])
    with pytest.raises(UserError, match=r"--batch-unit sequences:1280"):
        cost_of(runs.read(path), 1280, smooth_width)
    # Tokens that come from 6 N T, and C_token: two costs.
    write([[row[0], *row[2:]] for row in rows], "N,B,lr,flops,loss\n")
    table = runs.read(path)
    cost_of(table, None, smooth_width)
    with pytest.raises(UserError, match=r"--n-ctx 80: .* flops / 6N"):
        cost_of(table, 80, smooth_width)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1e8, 1e19), (3e8, 1e20)], "2 rows: a power law through best sizes needs three"),
        (
            [(9e8, 1e19), (4e8, 1e20), (1e8, 1e21)],
            "N_opt falls with C (exponent -0.477): N 9e+08 at 1e+19 FLOPs, N 4e+08",
        ),
    ],
)
def test_best_sizes_that_tell_no_law(tmp_path, rows, message):
    path = tmp_path / "x.csv"
    path.write_text("N,flops\n" + "\n".join(f"{N},{C}" for N, C in rows))
    status, said = here("allocation", path, "--optima", "--json")
    assert (status, said.count("\n")) == (2, 1), said
    assert message in said


def test_best_sizes_have_the_regressions_interval(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("N,flops\n1e8,1e19\n1e9,1e20\n4e9,1e21\n1.2e10,1e22\n")
    done = run("fit.py", "allocation", path, "--optima", "--out", tmp_path / "law.json")
    low, high = law_file.load(tmp_path / "law.json").fit["intervals"]["allocation.measured.exponent"]
    assert 0 < low < 0.6854 < high
    assert f"N_opt, measured: exponent 0.6840 [{low:.4f}, {high:.4f}]" in done.stdout
