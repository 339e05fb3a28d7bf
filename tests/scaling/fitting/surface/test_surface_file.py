"""A surface survives its law file, and the file can be evaluated by what docs/laws.md says of it."""

import json

import numpy as np
import pytest

from tests.scaling import planted
from videoscaling.scaling.fitting.surface import surface_file
from videoscaling.scaling.fitting.surface.fit import fit_surface
from videoscaling.scaling.fitting.uncertainty import draw
from videoscaling.utils.errors import UserError


@pytest.fixture(scope="module")
def surface():
    return fit_surface(planted.cells(), form="joint", batch="one_sided", bent=True)


@pytest.fixture(scope="module")
def raw(surface):
    return json.loads(json.dumps(surface_file.to_dict(surface), allow_nan=False))


@pytest.fixture(scope="module")
def loaded(raw):
    return surface_file.from_dict(raw["surface"], raw["lack_of_fit"])


def same(first, second, rel=1e-6):
    for name in first.__dataclass_fields__:
        assert getattr(second, name) == pytest.approx(getattr(first, name), rel=rel), name


def test_what_is_read_off_a_surface_survives_the_file(surface, loaded):
    at = {"N": [2e6, 4e7], "T": [5e8, 8e9]}
    same(surface.lr_opt([400, 3e3], at["T"], at["N"]), loaded.lr_opt([400, 3e3], at["T"], at["N"]))
    same(surface.edge(at["T"], at["N"]), loaded.edge(at["T"], at["N"]), rel=1e-5)
    np.testing.assert_allclose(surface.best(**at), loaded.best(**at), rtol=1e-6)
    for seeds in (1, 8):
        same(*(s.predict(at["N"], at["T"], 900, 7e-4, seeds) for s in (surface, loaded)))
    for name, value in surface.rate_exponents().items():
        same(value, loaded.rate_exponents()[name])
    assert loaded.no_best_batch == surface.no_best_batch is not None
    assert loaded.unidentified() == surface.unidentified()
    assert loaded.warnings() == surface.warnings()
    assert surface_file.to_dict(loaded) == surface_file.to_dict(surface)


def test_files_whose_floor_ran_to_zero_still_load(raw):
    """Before floors had a prior, one of 1e-15 was written with an error of 1e-3."""
    old = json.loads(json.dumps(raw))
    old["surface"]["forms"][0]["parameters"]["f.Linf"] = -34.0
    loaded = surface_file.from_dict(old["surface"], old["lack_of_fit"])
    found = loaded.predict(2e6, 5e8, 900, 7e-4)
    assert np.isfinite([found.mean, found.low, found.high]).all()
    assert np.isfinite(draw(loaded.members[0].solution, loaded.freedom)).all()


def test_diverged_runs_survive_as_null(surface):
    table = planted.cells()
    loss = np.where(table.lr > np.quantile(table.lr, 0.95), np.inf, table.loss)
    fitted = fit_surface(table.__class__(**{**table.__dict__, "loss": loss}), form="levels", batch="none", bent=False)
    raw = json.loads(json.dumps(surface_file.to_dict(fitted), allow_nan=False))
    again = surface_file.from_dict(raw["surface"], raw["lack_of_fit"])
    assert np.array_equal(np.isinf(again.cells.loss), np.isinf(fitted.cells.loss))
    assert np.isinf(again.cells.loss).any()
    assert again.no_form == fitted.no_form == "free levels were asked for"


def test_the_file_is_evaluated_by_its_documented_formulas(raw, loaded):
    """docs/laws.md, "One surface": nothing of the package is used but the numbers in the file."""
    whole, N, T, B, lr = raw["surface"], 3e6, 6e8, 2e3, 4e-4
    reference, form = whole["reference"], whole["forms"][0]
    c, f = form["parameters"], {name[2:]: np.exp(v) for name, v in form["parameters"].items() if name[:2] == "f."}
    n, t, beta = np.log(N / reference["N"]), np.log(T / reference["T"]), np.log(B / reference["B"])
    z = beta - (c["b"] + c["bT"] * t + c["bN"] * n)
    best = c["a"] + c["aB"] * beta + c["aT"] * t + c["aN"] * n - 2 * c["r"] * np.log(np.cosh(z / 2))
    x = np.log(lr / reference["lr"]) - best
    k = np.exp(c["ln_k"] + c["kT"] * t + c["kN"] * n + 2 * c["kB"] * np.tanh(z / 2))
    s, w = np.exp(c["ln_s"]), np.exp(c["ln_w"])
    q = k * x**2 * np.exp(c["g"] * np.tanh(x / 2)) / 2
    cost = s * (np.sqrt(1 + 2 * q / s) - 1) + w * np.exp(c["ln_c"]) * np.log(1 + np.exp(z / w))
    inner = f["Nc"] * np.exp(-f["aN"] * n) + f["Tc"] * np.exp(-f["aT"] * t)
    loss = (inner ** f["k"] + f["Linf"]) * np.exp(cost)
    assert loaded.predict(N, T, B, lr).mean == pytest.approx([loss], rel=1e-9)
    own = whole["shapes"][0]
    theta = own["parameters"]
    assert own["draw_columns"] == list(theta)
    drawn = np.array(own["draws"])
    columns = dict(zip(own["draw_columns"], drawn.T))
    zs = beta - (columns["b"] + columns["bT"] * t + columns["bN"] * n)
    line = columns["a"] + columns["aB"] * beta + columns["aT"] * t + columns["aN"] * n
    rates = reference["lr"] * np.exp(line - 2 * columns["r"] * np.log(np.cosh(zs / 2)))
    ends = np.quantile(rates, [0.025, 0.975])
    estimate = loaded.lr_opt(B, T, N)
    assert [float(estimate.low), float(estimate.high)] == pytest.approx(ends.tolist(), rel=1e-3)


def change(path, value):
    """(keys to a value in the file, what is put there)"""
    return pytest.param(path, value, id=".".join(map(str, path)) + f"={str(value)[:12]}")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        change(["reference", "N"], 0),
        change(["reference"], []),
        change(["n_ctx"], -1),
        change(["freedom"], "x"),
        change(["no_form"], "none at all"),
        change(["domain", "lr"], [2.0, 1.0]),
        change(["shapes"], []),
        change(["shapes", 0, "batch"], "round"),
        change(["shapes", 0, "batch"], []),
        change(["shapes", 0, "bent"], 1),
        change(["shapes", 0, "parameters", "aB"], 1e9),
        change(["shapes", 0, "parameters", "aB"], None),
        change(["shapes", 0, "covariance"], [[1.0]]),
        change(["shapes", 0, "draws"], [[1.0], []]),
        change(["shapes", 0, "draw_columns"], ["a"]),
        change(["shapes", 0, "held"], ["zz"]),
        change(["forms", 0, "form"], "cubic"),
        change(["forms", 0, "weight"], 0),
        change(["forms", 0, "weight"], 0.7),
        change(["shapes", 0, "weight"], 2.5),
        change(["forms", 0, "noise", "rho"], True),
        change(["forms", 0, "steps", 0, "sd"], [0.0]),
        change(["forms", 0, "steps", 0, "by"], "B"),
        change(["cells", "N"], [1.0]),
        change(["cells", "lr"], "many"),
        change(["cells", "loss"], []),
        change(["colour"], "red"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_the_key(raw, path, value):
    damaged = json.loads(json.dumps(raw["surface"]))
    at = damaged
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(UserError) as caught:
        surface_file.from_dict(damaged, raw["lack_of_fit"])
    assert "\n" not in str(caught.value)
    assert str(path[-1] if isinstance(path[-1], str) else path[0]) in str(caught.value)
