"""The film's package as pip finds it, in a folder that a user's configuration names instead of an index."""

import hashlib
import io
import sys
import tarfile
import venv

import pytest

from tests.data.sources.test_film import CONTENT, write_package
from videoscaling.data.choices import FILM
from videoscaling.data.sources import film
from videoscaling.data.sources.listing import scan_sources
from videoscaling.utils.errors import UserError

SETUP = '[build-system]\nrequires = []\nbuild-backend = "setup_here"\nbackend-path = ["."]\n'
# What pip asks a source distribution before it keeps it.
BACKEND = """
import os
def prepare_metadata_for_build_wheel(folder, settings=None):
    os.makedirs(f"{folder}/moviepy-2.2.1.dist-info")
    with open(f"{folder}/moviepy-2.2.1.dist-info/METADATA", "w") as file:
        file.write("Metadata-Version: 2.1\\nName: moviepy\\nVersion: 2.2.1\\n")
    return "moviepy-2.2.1.dist-info"
"""

pytestmark = pytest.mark.slow  # two starts of pip


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "packages"
    folder.mkdir()
    path = folder / "moviepy-2.2.1.tar.gz"
    inner = write_package(tmp_path / "inner.tar.gz")
    with tarfile.open(inner) as given, tarfile.open(path, "w:gz") as archive:
        for entry in given:
            archive.addfile(entry, given.extractfile(entry))
        for name, text in (
            ("pyproject.toml", SETUP),
            ("setup_here.py", BACKEND),
            ("PKG-INFO", "Metadata-Version: 2.1\nName: moviepy\nVersion: 2.2.1\n"),
        ):
            entry = tarfile.TarInfo(f"moviepy-2.2.1/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(film, "FILM_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return path


def test_pip_finds_the_package_where_it_is_configured_to_look(package, monkeypatch):
    monkeypatch.setattr(film, "PACKAGE_SHA256", hashlib.sha256(package.read_bytes()).hexdigest())
    assert scan_sources(FILM).sources[0].path.read_bytes() == CONTENT


def test_a_package_of_other_bytes_is_refused(package):
    with pytest.raises(UserError, match=r"pip cannot download moviepy==2\.2\.1.*copy the film to"):
        scan_sources(FILM)


def test_without_a_package_the_error_is_one_line_and_names_the_fix(package):
    package.unlink()
    with pytest.raises(UserError, match="No matching distribution found.*a connection.*or copy the film to") as caught:
        scan_sources(FILM)
    assert "\n" not in str(caught.value)


def test_python_without_pip(tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare/bin/python"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="which this Python lacks: python -m ensurepip"):
        scan_sources(FILM)
