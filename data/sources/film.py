"""The film *Big Buck Bunny*, for tests and studies on real video without a data set of one's own.

596 s, 14,315 frames of 1280x720, 24 a second. (c) 2008 Blender Foundation, www.bigbuckbunny.org, under the licence
Creative Commons Attribution 3.0: pictures made from it name them. The source distribution of moviepy 2.2.1 (MIT) has
it among the files of its documentation. pip fetches it, so a user's mirror, proxy and folders of packages are used.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path

from videoscaling.data.sources.captions import ListingOptions
from videoscaling.data.sources.source import Listing, Source
from videoscaling.utils.errors import UserError
from videoscaling.utils.files import atomic_write, sha256_of, user_cache
from videoscaling.utils.locks import lock

NAME, TITLE = "big_buck_bunny.mp4", "Big Buck Bunny"
PACKAGE = "moviepy==2.2.1"
PACKAGE_SHA256 = "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1"
FILM_SHA256 = "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0"
ARCHIVE, MEMBER = "moviepy_10_minutes.zip", "moviepy_10_minutes/resources/bbb.mp4"


def list_film(options: ListingOptions) -> Listing:
    """The film as the only source, with its title as the caption.

    It is fetched when it is first used (58 MB), and kept in the user's cache.

    Raises:
        UserError: it is not there and pip cannot fetch it, or its bytes are others.
    """
    folder = user_cache() / "film"
    path = folder / NAME
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with lock(folder, wait=True):  # the first of a job's processes fetches it for all
                if not path.exists():
                    _fetch(path)
        found = sha256_of(path)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}; XDG_CACHE_HOME names another folder") from None
    if found != FILM_SHA256:
        raise UserError(f"{path}: not the film that was fetched (its SHA-256 differs); remove it")
    return Listing([Source(NAME, path, TITLE if options.captions else "")], {}, [])


def _fetch(path: Path) -> None:
    """Write the film from the package that pip downloads."""
    print(f"fetching the film {TITLE} (58 MB) to {path}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        archive = _download(Path(folder), path)
        try:
            with tarfile.open(archive) as package, ExitStack() as stack:
                member = next(name for name in package.getnames() if name.endswith(f"/{ARCHIVE}"))
                media = stack.enter_context(zipfile.ZipFile(package.extractfile(member)))
                film = stack.enter_context(media.open(MEMBER))
                with atomic_write(path) as tmp, tmp.open("wb") as file:
                    shutil.copyfileobj(film, file)
        except (StopIteration, KeyError, tarfile.TarError, zipfile.BadZipFile):
            raise UserError(f"{archive.name}: {PACKAGE} without the film {MEMBER}") from None


def _download(folder: Path, path: Path) -> Path:
    """The source distribution in ``folder``; pip checks its hash before it runs the package's setup."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n", encoding="utf-8")
    # Only this package from its source: those that its setup needs may come as wheels.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE.partition("=")[0]]
    done = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(wanted)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    archives = list(folder.glob("*.tar.gz"))
    if "No module named pip" in done.stderr:
        raise UserError(
            f"{TITLE} is fetched by pip, which this Python lacks: python -m ensurepip, or copy it to {path}"
        )
    if done.returncode or not archives:
        errors = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        why = errors[-1].removeprefix("ERROR: ") if errors else f"exit status {done.returncode}"
        raise UserError(
            f"pip cannot download {PACKAGE}, which has the film {TITLE} ({why}); it is needed once: try again with "
            f"a connection to a package index, or copy the film to {path} from a machine that has it"
        )
    return archives[0]
