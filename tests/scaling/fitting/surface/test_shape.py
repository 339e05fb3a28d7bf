import numpy as np
import pytest

from videoscaling.scaling.fitting.losses import forms
from videoscaling.scaling.fitting.surface import shape
from videoscaling.scaling.fitting.surface.shape import Inputs, Model


@pytest.mark.parametrize("batch", shape.BATCH)
@pytest.mark.parametrize("form", [shape.LEVELS, *forms.CONSTANTS])
def test_jacobian_is_that_of_differences(form, batch):
    random = np.random.default_rng(0)
    rows = Inputs(*(random.normal(size=(4, 25)) * 1.2), random.integers(0, 3, 25))
    model = Model(form, batch, 3 if form == shape.LEVELS else 0)
    theta = random.normal(size=len(model.names)) * 0.4
    J = shape.evaluate(model, theta, rows).jacobian
    differences = [
        (shape.evaluate(model, theta + e, rows).value - shape.evaluate(model, theta - e, rows).value) / 2e-6
        for e in np.eye(len(theta)) * 1e-6
    ]
    assert np.abs(J - np.stack(differences, axis=1)).max() < 1e-7


@pytest.mark.parametrize("batch", ["two_sided", "ellipse", "one_sided"])
def test_ridge_and_best_batch_are_where_the_surface_is_lowest(batch):
    model = Model(shape.LEVELS, batch, 1)
    theta = model.prior[0].copy()
    theta[model.place("r")], theta[model.place("g")], theta[model.place("b")] = 0.3, 0.6, 0.4
    n, t = np.array(0.5), np.array(-0.7)
    batches, rates = np.linspace(-4, 4, 161), np.linspace(-4, 4, 801)
    b, lr = (v.ravel() for v in np.meshgrid(batches, rates, indexing="ij"))
    rows = Inputs(np.full(b.size, n), np.full(b.size, t), lr, b, np.zeros(b.size, dtype=int))
    excess = shape.evaluate(model, theta, rows).excess.reshape(161, 801)
    best_rate = rates[np.argmin(excess, axis=1)]
    assert best_rate == pytest.approx(shape.ridge(model, theta, n, t, batches), abs=0.011)
    # Along the ridge the surface costs what ``price`` says.
    assert excess.min(axis=1) == pytest.approx(shape.price(model, theta, n, t, batches), abs=1e-5)
    best = shape.best_batch(model, theta, n, t)
    if batch == "one_sided":
        assert best is None
        assert np.all(np.diff(excess.min(axis=1)) > 0)
    else:
        assert batches[np.argmin(excess.min(axis=1))] == pytest.approx(best, abs=0.06)
        assert shape.price(model, theta, n, t, best) == pytest.approx(0, abs=1e-12)
