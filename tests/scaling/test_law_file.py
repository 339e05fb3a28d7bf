import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.scaling import simulate
from videoscaling.models import sizes
from videoscaling.scaling import law_file
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.planning.plan import plan
from videoscaling.scaling.planning.request import Request
from videoscaling.scaling.planning.table import table
from videoscaling.scaling.reporting import report
from videoscaling.utils.errors import UserError

PAPER = Path(__file__).resolve().parents[2] / "configs" / "laws" / "paper.json"


@pytest.fixture
def raw():
    return law_file.to_dict(law_file.load(PAPER))


def test_published_predictions():
    loss = law_file.load(PAPER).loss
    # Printed to five digits, from constants printed to four.
    assert loss(1.07e9, 10e9) == pytest.approx(0.51266, abs=3e-5)
    assert loss(0.72e9, 140e9) == pytest.approx(0.50352, abs=3e-5)


def test_published_sizes():
    allocation = law_file.load(PAPER).allocation
    assert allocation["predicted"](1e22) == pytest.approx(2.435e9, rel=1e-3)
    assert allocation["measured"](1e22) == pytest.approx(2.087e9, rel=1e-3)
    # 4.04B is what the law with fixed hyper-parameters asks for: 40.1 % more inference.
    assert 1 - allocation["predicted"](1e22) / 4.04e9 == pytest.approx(0.401, abs=0.005)


def test_file_is_read_back_as_it_was(tmp_path):
    law = law_file.load(PAPER)
    law_file.save(law, tmp_path / "law.json")
    assert law_file.load(tmp_path / "law.json") == law


def test_draws_call_as_laws_do(raw):
    raw["fit"]["draw_columns"] = ["loss.Tc", "loss.aT"]
    raw["draws"] = [[0.0373, 0.2917], [0.05, 0.3]]
    law = law_file.from_dict(raw)
    drawn = law.drawn("loss")(1e9, 1e10)
    assert drawn[0] == pytest.approx(float(law.loss(1e9, 1e10)))
    assert drawn[1] != drawn[0]
    assert law_file.load(PAPER).drawn("loss") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["loss"].pop("aN"), "loss.aN is missing"),
        (lambda r: r.pop("curvature"), "curvature missing"),
        (lambda r: r.update(curvatur=1), "did you mean 'curvature'"),
        (lambda r: r["loss"].update(aN=-0.1), "loss.aN must be above 0"),
        (lambda r: r["loss"].update(aN="x"), "must be a number"),
        (lambda r: r["loss"].update(aM=0.1), "unknown key loss.aM"),
        (lambda r: r["batch"].update(coefficient=0), "batch.coefficient"),
        (lambda r: r["batch"].update(scale={"T": 1e9}), "batch.scale"),
        (lambda r: r["units"].update(B="clips"), "units"),
        (lambda r: r["allocation"].update(default="best"), "allocation.default"),
        (lambda r: r["allocation"].update(predicted=None), "is the default"),
        (lambda r: r["domain"].update(N=[2, 1]), "domain.N"),
        (lambda r: r.update(n_ctx=0), "n_ctx"),
        (lambda r: r.update(draws=[[1.0]]), "draw_columns"),
        (lambda r: r.update(name=None), "name must be"),
        (lambda r: r.update(n_ctx=True), "n_ctx must be a positive integer, not True"),
        (lambda r: r.update(n_ctx=10**400), "n_ctx must be a positive integer, not 1000"),
        (lambda r: r["loss"].update(aN=10**400), "loss.aN must be a number, not 1000"),
        (lambda r: r["loss"].update(Linf=math.nan), "loss.Linf must be a number, not nan"),
        (lambda r: r["loss"].update(Linf=-0.1), "loss.Linf must not be negative"),
        (lambda r: r["loss"].update(assumed="aT"), "loss.assumed must be a list"),
        (lambda r: r["loss"].update(assumed=["aM"]), "loss.assumed must be a list"),
        (lambda r: r["batch"].update(T=math.inf), "batch.T must be a number, not inf"),
        (lambda r: r["batch"]["scale"].update(T=True), "batch.scale"),
        (lambda r: r["curvature"].update(lr_lr=-1), "curvature.lr_lr must be above 0"),
        (lambda r: r["curvature"].update(lr_batch=1), "curvature: no minimum"),
        (lambda r: r["allocation"]["predicted"].update(exponent=-0.4), "allocation.predicted.exponent must be above"),
        (lambda r: r["allocation"].pop("predicted"), "allocation.predicted is the default"),
        (lambda r: r.update(domain={}), "domain.N, domain.T, domain.B, domain.C missing"),
        (lambda r: r["domain"].update(C=[1e17, math.inf]), "domain.C must be"),
        (lambda r: r["fit"].update(window="wide"), "fit.window"),
        (lambda r: r["fit"].update(warnings="none"), "fit.warnings"),
        (lambda r: r["fit"].update(intervals={"loss.aT": [0.3]}), "fit.intervals"),
        (lambda r: r["provenance"].update(unknown=["draws"]), "provenance.unknown"),
        (lambda r: r["provenance"].update(unknown={"draws": 3}), "provenance.unknown"),
    ],
)
def test_faulty_files_are_refused(raw, change, message):
    change(raw)
    with pytest.raises(UserError, match=message):
        law_file.from_dict(raw)


@pytest.mark.parametrize(
    ("columns", "draws", "message"),
    [
        (None, [[0.3]], "fit.draw_columns must list"),
        ("loss.aT", [[0.3]], "fit.draw_columns must list"),
        (["loss.aM"], [[0.3]], "fit.draw_columns must list"),
        ([["loss.aT"]], [[0.3]], "fit.draw_columns must list"),
        (["loss.aT", "loss.aT"], [[0.3, 0.3]], "fit.draw_columns must list"),
        (["loss.aT"], [], "draws must be a list of rows"),
        (["loss.aT"], {"0": [0.3]}, "draws must be a list of rows"),
        (["loss.aT"], [[0.3], 0.3], "draws: row 2 needs one number"),
        (["loss.aT"], [[0.3], [0.3, 0.2]], "draws: row 2 needs one number"),
        (["loss.aT"], [["0.3"]], "draws: row 1, loss.aT must be a number"),
        (["loss.aT"], [[0.3], [math.nan]], "draws: row 2, loss.aT must be a number"),
        (["loss.aT"], [[0.3], [-0.3]], "draws: row 2, loss.aT must be above 0"),
    ],
)
def test_faulty_draws_are_refused(raw, columns, draws, message):
    raw["fit"]["draw_columns"], raw["draws"] = columns, draws
    with pytest.raises(UserError, match=message):
        law_file.from_dict(raw)


def test_draws_of_some_constants_leave_the_others_as_they_are(raw):
    raw["fit"]["draw_columns"], raw["draws"] = ["loss.Tc", "loss.aT"], [[0.0373, 0.2917], [0.05, 0.3]]
    law = law_file.from_dict(raw)
    planned = plan(law, Request(flops=1e20), sizes).to_dict()
    assert planned["loss"]["low"] < planned["loss"]["high"]
    assert law.drawn("batch") is None


def test_refusals_name_the_file(raw, tmp_path):
    raw["domain"] = {}
    (tmp_path / "law.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="law.json: domain.N"):
        law_file.load(tmp_path / "law.json")


MUTATIONS = [None, [], {}, "x", True, -1, 0, 1e300, 1e-300, 10**400, math.nan, math.inf]


def places(value, path=()):
    """The path of every leaf and container of a JSON value; of a list's items the first two stand for all."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, child in items:
        yield from places(child, (*path, key))


def numbers(value):
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from numbers(child)
    elif isinstance(value, float):
        yield value


@pytest.fixture(scope="module")
def fitted(paper, cost):
    """A fitted law file, with a tenth of its draws."""
    cells = simulate.grid(paper, np.geomspace(0.0168e9, 0.268e9, 3), [2e9, 5e9, 1.2e10], 4, 4, 2.0)
    table = simulate.run_table(paper, cells, [2e9, 5e9, 1.2e10], 1e-4, n_ctx=1280)
    law = law_file.to_dict(fit.fit(table, "all", fit.Options(), cost, {"name": "simulated"}).law)
    return law | {"draws": law["draws"][:50]}


@pytest.mark.slow
@pytest.mark.parametrize("which", ["published", "fitted"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # where a number is out of range the plan says so itself
def test_no_mutation_of_a_law_file_ends_in_a_traceback(raw, fitted, which):
    """Whatever stands in a law file: it is refused by name, or the plan has finite numbers."""
    law = raw if which == "published" else fitted
    loaded = planned = 0
    for path in places(law):
        for value in MUTATIONS:
            mutated = copy.copy(law)
            # Copied along the path alone: the draws are long.
            parent = mutated
            for key in path[:-1]:
                parent[key] = copy.copy(parent[key])
                parent = parent[key]
            parent[path[-1]] = value
            said = ""
            try:
                read = law_file.from_dict(mutated)
                loaded += 1
                report._constants(read)
                done = plan(read, Request(flops=1e20), sizes)
                assert all(map(math.isfinite, numbers(done.to_dict()))), (path, value)
                table(done)
                planned += 1
            except UserError as error:
                said = str(error)
            except Exception as error:
                raise AssertionError(f"{path} = {value!r}") from error
            assert "\n" not in said, (path, value)
    assert loaded > planned > 100


def test_unknown_parts_say_why(raw):
    raw["loss"] = None
    raw["provenance"]["unknown"]["loss"] = "not published"
    with pytest.raises(UserError, match="no loss \\(not published\\)"):
        law_file.from_dict(raw).require("loss")
