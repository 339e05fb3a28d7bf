"""fit.py on tables of (N, T, loss): averaged loss forms, their law file, plans and predictions."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tests.commands import Done, call
from videoscaling.scaling import law_file

N, T = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 6.4e8, 5), np.geomspace(1e9, 6.4e10, 5), indexing="ij"))


def truth(N, T):
    return ((N / 5e6) ** -0.6 + (T / 3e8) ** -0.65) ** 0.45 * 4 + 1.2


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    folder = tmp_path_factory.mktemp("losses")
    loss = truth(N, T) * np.exp(0.002 * np.random.default_rng(0).standard_normal(len(N)))
    rows = [f"{n:.6g},{t:.6g},{value:.6g}" for n, t, value in zip(N, T, loss)]
    (folder / "runs.csv").write_text("\n".join(["N,T,loss", *rows]))
    done = call("tools/fit.py", "all", folder / "runs.csv", "--out", folder / "law.json")
    assert done.returncode == 0, done.stderr
    return done, folder


def test_the_law_file_is_what_its_formulas_say(fitted: tuple[Done, Path]) -> None:
    raw = json.loads((fitted[1] / "law.json").read_text())
    scale, value = raw["loss"]["scale"], 0.0
    for form in raw["loss"]["forms"]:
        from_N = form["Nc"] * (2e9 / scale["N"]) ** -form["aN"]
        from_T = form["Tc"] * (1e11 / scale["T"]) ** -form["aT"]
        loss = {
            "additive": lambda f, n, t: n + t + f["Linf"],
            "joint": lambda f, n, t: (n + t) ** f["k"] + f["Linf"],
            "floorless": lambda f, n, t: (n + t) ** f["k"],
            "product": lambda f, n, t: (1 + n) * (1 + t) * f["Linf"],
        }[form["form"]](form, from_N, from_T)
        value += form["weight"] * np.log(loss)
    assert np.exp(value) == pytest.approx(truth(2e9, 1e11), rel=0.01)
    law = law_file.load(fitted[1] / "law.json")
    assert float(law.response.losses(2e9, 1e11)) == pytest.approx(np.exp(value), rel=1e-6)
    assert law_file.to_dict(law)["loss"] == raw["loss"]


def test_the_order_of_rows_changes_no_digit(fitted: tuple[Done, Path]) -> None:
    """The bootstrap's weights went by the rows' places."""
    done, folder = fitted
    head, *rows = (folder / "runs.csv").read_text().splitlines()
    (folder / "other.csv").write_text("\n".join([head, *random.Random(1).sample(rows, len(rows))]))
    again = call("tools/fit.py", "all", folder / "other.csv", "--out", folder / "other" / "law.json")
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    raw, other = (
        json.loads((folder / name).read_text()) | {"provenance": None} for name in ("law.json", "other/law.json")
    )
    assert raw == other


def test_the_summary_has_the_formula_and_the_errors(fitted: tuple[Done, Path]) -> None:
    for words in (
        "loss form joint, weight",
        "L = (Nc / N^aN + Tc / T^aT)^k + Linf",
        "25 points",
        "held-out error: rms",
    ):
        assert words in fitted[0].stdout, words


def test_plans_and_predictions(fitted: tuple[Done, Path]) -> None:
    done = call("tools/plan.py", "--law", fitted[1] / "law.json", "--flops", "1e20", "--n-ctx", "1280", "--json")
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert (planned["B"], planned["lr"]) == (None, None)
    assert planned["loss"]["low"] < truth(planned["N"], planned["T"]) < planned["loss"]["high"]
    found = planned["N_opt"]["minimised"]
    assert found["low"] < found["value"] < found["high"]
    table = fitted[1] / "larger.csv"
    table.write_text("N,T\n1e8,1e10\n2e9,1e11\n")
    done = call("tools/predict.py", "--law", fitted[1] / "law.json", table)
    assert done.returncode == 0, done.stderr
    for row, at in zip(done.stdout.splitlines()[1:], ((1e8, 1e10), (2e9, 1e11))):
        predicted, low, high = (float(v) for v in row.split(",")[2:5])
        assert low < truth(*at) < high
        assert low < predicted < high


def test_losses_that_do_not_tell_how_they_fall_exit_3(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    rows = [f"{n:.6g},{t:.6g},{2 + 0.1 * random.standard_normal():.6g}" for n, t in zip(N, T)]
    (tmp_path / "runs.csv").write_text("\n".join(["N,T,loss", *rows]))
    done = call("tools/fit.py", "loss", tmp_path / "runs.csv", "--out", tmp_path / "law.json")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    assert "the losses hardly identify it" in done.stderr
    assert not (tmp_path / "law.json").exists()


def test_options_of_grids_are_refused(fitted: tuple[Done, Path]) -> None:
    done = call("tools/fit.py", "loss", fitted[1] / "runs.csv", "--fix", "loss.aT=0.3")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--fix: not read where loss forms are fitted" in done.stderr
