"""The Python interface: the committed notebooks as they stand, and arrays that are none."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from videoscaling.scaling.api import fit, plan
from videoscaling.scaling.runs import from_arrays
from videoscaling.utils.errors import UserError

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "docs" / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]\d+)?")
COLUMNS = {"N": [1e6, 2e6], "T": 1e7, "loss": [0.5, 0.4]}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_is_committed(notebook, monkeypatch):
    monkeypatch.chdir(notebook.parent)
    space: dict = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec("".join(cell["source"]), space)
        assert Path("videoscaling").is_dir()  # a kernel imports from its working directory
        committed = "".join("".join(output["text"]) for output in cell["outputs"])
        found = printed.getvalue()
        assert NUMBER.sub("#", found) == NUMBER.sub("#", committed)
        numbers = [[float(text) for text in NUMBER.findall(said)] for said in (found, committed)]
        # The last printed digit of small numbers may differ on another machine.
        np.testing.assert_allclose(*numbers, rtol=0.01, atol=0.011)


def test_arrays_are_a_table_of_runs():
    table = from_arrays(COLUMNS | {"loss": [0.5, np.inf], "run_id": ["a", "b"], "n_ctx": 1280})
    assert table.run_id.tolist() == ["a", "b"]
    assert table.loss.tolist() == [0.5, np.inf]
    assert np.isnan(table.B).all()
    assert table.n_ctx.tolist() == [1280, 1280]
    assert from_arrays(COLUMNS).run_id.tolist() == ["row-1", "row-2"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"N": [1e6], "loss": [1]}, "columns T are missing"),
        (COLUMNS | {"rate": 1e-3}, "unknown column 'rate'"),
        (COLUMNS | {"B": [1, 2, 3]}, "different lengths: N 2, T 1, loss 2, B 3"),
        (COLUMNS | {"T": [1e7, -1]}, "row 2: T is -1"),
        (COLUMNS | {"loss": [0.5, np.nan]}, "row 2: loss is nan"),
    ],
)
def test_columns_that_are_no_runs_are_refused_by_name(columns, message):
    with pytest.raises(UserError, match=message):
        fit(columns)


def test_a_plan_is_that_of_the_planner(paper):
    assert plan(paper, flops=1e22)["N"] == pytest.approx(2.435e9, rel=1e-3)
    with pytest.raises(UserError, match="nothing is fixed"):
        plan(paper)
