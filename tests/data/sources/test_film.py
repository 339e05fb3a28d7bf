import hashlib
import io
import tarfile
import zipfile

import pytest

from videoscaling.data.choices import FILM
from videoscaling.data.sources import film
from videoscaling.data.sources.captions import ListingOptions
from videoscaling.data.sources.listing import scan_sources
from videoscaling.utils.errors import UserError

CONTENT = b"not quite a film"


def write_package(path, member=film.MEMBER):
    """A source distribution with ``CONTENT`` where moviepy's has the film."""
    media = io.BytesIO()
    with zipfile.ZipFile(media, "w") as archive:
        archive.writestr(member, CONTENT)
    with tarfile.open(path, "w:gz") as package:
        entry = tarfile.TarInfo(f"moviepy-2.2.1/docs/deep/{film.ARCHIVE}")
        entry.size = len(media.getvalue())
        package.addfile(entry, io.BytesIO(media.getvalue()))
    return path


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """The downloads of an empty cache, each of the package above."""
    done = []

    def download(folder, path):
        done.append(path)
        return write_package(folder / "moviepy-2.2.1.tar.gz")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(film, "_download", download)
    monkeypatch.setattr(film, "FILM_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return done


def test_the_film_is_fetched_once_and_listed(downloads, tmp_path, capsys):
    listing = scan_sources(FILM)
    path = tmp_path / "cache/videoscaling/film" / film.NAME
    assert path.read_bytes() == CONTENT
    assert [(s.name, s.path, s.caption) for s in listing.sources] == [(film.NAME, path, "Big Buck Bunny")]
    assert "fetching" in capsys.readouterr().err
    assert scan_sources(FILM) == listing
    assert scan_sources(FILM, ListingOptions(captions=False)).sources[0].caption == ""
    assert downloads == [path]
    assert {file.name for file in path.parent.iterdir()} <= {film.NAME, ".lock"}


def test_another_film_is_refused(downloads, tmp_path):
    scan_sources(FILM).sources[0].path.write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match="not the film that was fetched .*remove it"):
        scan_sources(FILM)


def test_a_package_without_the_film_leaves_nothing(downloads, tmp_path, monkeypatch):
    monkeypatch.setattr(film, "_download", lambda folder, path: write_package(folder / "x.tar.gz", "other.mp4"))
    with pytest.raises(UserError, match="moviepy==2.2.1 without the film"):
        scan_sources(FILM)
    assert not list((tmp_path / "cache").rglob("*.mp4"))


def test_a_folder_called_film_is_named_by_its_path(downloads, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / FILM).mkdir()
    (tmp_path / FILM / "a.mp4").touch()
    with pytest.raises(UserError, match="write ./film"):
        scan_sources(FILM)
    assert [source.name for source in scan_sources("./film").sources] == ["a.mp4"]
    assert not downloads


def test_a_cache_folder_that_cannot_be_written(downloads, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="XDG_CACHE_HOME names another folder"):
        scan_sources(FILM)
