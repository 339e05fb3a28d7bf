import numpy as np
import pytest
from scipy.special import expit

from videoscaling.scaling.fitting.surface import noise


@pytest.fixture(scope="module")
def sweep():
    """Four sizes of 8 runs with 3 milestones; runs of a size share two streams."""
    random = np.random.default_rng(3)
    size, run, time = (v.ravel() for v in np.meshgrid(range(4), range(8), range(3), indexing="ij"))
    run, stream = size * 8 + run, size * 2 + run % 2
    rows = noise.Rows(
        n=size - 1.5,
        t=time - 1.0,
        h=random.normal(size=96),
        grid=size * 3 + time,
        size=size,
        run=run,
        stream=stream,
        time=time,
    )
    at = noise.Sensitivity(random.exponential(0.02, 96), *(random.normal(size=(2, 96)) * 0.05), np.ones(96))
    return rows, at, random.normal(size=(96, 3)), random.normal(size=96) * 0.01


def dense(rows, at, phi):
    """V written out from its definition."""
    _, sd = noise.sd_of(phi, rows.n, rows.t, rows.h, at.excess)
    same = {
        name: getattr(rows, name)[:, None] == getattr(rows, name) for name in ("grid", "size", "run", "stream", "time")
    }
    rho, q = expit(phi[5]), expit(phi[6])
    shared = noise.LIKENESS * (rho + (1 - rho) * same["time"]) * ((1 - q) * same["run"] + q * same["stream"])
    np.fill_diagonal(shared, 1)
    V = np.outer(sd, sd) * shared
    for name, label, effect in (
        ("ln_level", "grid", np.ones(96)),
        ("ln_x", "grid", at.by_x),
        ("ln_z", "grid", at.by_z),
        ("ln_size", "size", np.ones(96)),
    ):
        V = V + np.exp(2 * phi[noise.NAMES.index(name)]) * same[label] * np.outer(effect, effect)
    return V


def test_likelihood_is_that_of_the_covariance_written_out(sweep):
    rows, at, X, residual = sweep
    structure = noise.structure_of(rows, np.ones(96, dtype=bool), noise.NAMES[noise.NAMES.index("ln_level") :])
    phi, prior = noise.START + 0.2 * np.random.default_rng(1).normal(size=11), np.array([0.0, 2.0, 0.5])
    value, _, _ = noise.likelihood(structure, phi, at, X, residual, prior)
    inverse = np.linalg.inv(V := dense(rows, at, phi))
    information = X.T @ inverse @ X + np.diag(prior)
    P = inverse - inverse @ X @ np.linalg.solve(information, X.T @ inverse)
    expected = -0.5 * (np.linalg.slogdet(V)[1] + np.linalg.slogdet(information)[1] + residual @ P @ residual)
    expected -= 0.5 * np.sum(noise.PRIOR_PRECISION * (phi - noise.START) ** 2)
    assert value == pytest.approx(expected, rel=1e-9)


def test_gradient_is_that_of_differences(sweep):
    rows, at, X, residual = sweep
    structure = noise.structure_of(rows, np.arange(96) != 5, noise.NAMES[noise.NAMES.index("ln_level") :])
    phi, prior = noise.START + 0.2 * np.random.default_rng(2).normal(size=11), np.zeros(3)
    given = at, X, residual, prior
    _, gradient, information = noise.likelihood(structure, phi, *given)
    differences = [
        (noise.likelihood(structure, phi + e, *given)[0] - noise.likelihood(structure, phi - e, *given)[0]) / 2e-5
        for e in np.eye(11) * 1e-5
    ]
    assert gradient == pytest.approx(differences, rel=1e-4, abs=1e-4)
    assert np.linalg.eigvalsh(information).min() > 0


def test_planted_noise_and_scatter_between_grids_are_found():
    random = np.random.default_rng(5)
    grid = np.repeat(np.arange(40), 20)
    rows = noise.Rows(
        n=np.zeros(800),
        t=(grid % 10 - 4.5) / 2,
        h=np.zeros(800),
        grid=grid,
        size=grid // 10,
        run=np.arange(800),
        stream=np.full(800, -1),
        time=grid % 10,
    )
    by_x = random.normal(size=800) * 0.03
    residual = 0.004 * np.exp(-0.3 * rows.t) * random.standard_normal(800)
    residual += by_x * 0.2 * random.standard_normal(40)[grid] + 0.006 * random.standard_normal(40)[grid]
    at = noise.Sensitivity(np.zeros(800), by_x, np.zeros(800), np.ones(800))
    structure = noise.structure_of(rows, np.ones(800, dtype=bool), ("ln_level", "ln_x"))
    phi = noise.estimate(structure, noise.START, at, np.ones((800, 1)), residual, np.zeros(1), steps=20)
    found = dict(zip(noise.NAMES, phi))
    assert np.exp(found["ln_sd"]) == pytest.approx(0.004, rel=0.1)
    assert found["sd_T"] == pytest.approx(-0.3, abs=0.05)
    assert np.exp(found["ln_x"]) == pytest.approx(0.2, rel=0.25)
    assert np.exp(found["ln_level"]) == pytest.approx(0.006, rel=0.25)
