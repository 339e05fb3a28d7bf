"""The autoencoders that several tests here look at."""

import pytest

from tests.models.cases import CASES, Made, make


@pytest.fixture(scope="session", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Each autoencoder once."""
    return make(request.param, tmp_path_factory.mktemp("vae") / request.param)
