"""What the options of commands read: one description of each kind of input, with an example of it."""

from collections.abc import Iterable
from pathlib import Path

from videoscaling.data.choices import FILM, NAMED_SOURCES
from videoscaling.models.hub import TEXT_ENCODERS, VAES, may_be_hub_id
from videoscaling.utils.inputs import Input, is_text
from videoscaling.utils.tables import DELIMITERS, LINES, table_kind

NO_ENCODER = "folder, and no hub id, which would be owner/name"


def _laws() -> Iterable[Path]:
    from videoscaling.scaling.law_file import shipped  # it imports numpy

    return shipped()


def _checkpoint_of(file: Path) -> str:
    from videoscaling.training.checkpoints.paths import instead_of_file  # it imports configurations

    return instead_of_file(file)


def _runs() -> Iterable[Path]:
    return Path("runs").glob("*")


CONFIG = Input("a YAML file, such as configs/train/base.yaml", "configuration file")
SWEEP = Input("a sweep's YAML, such as configs/sweep/quickstart.yaml", "configuration file")
LAW = Input("a law file, such as configs/laws/paper.json or one from tools/fit.py", others=_laws)
TABLE = Input("a table with a row for each run, such as tools/sweep.py collect writes")
RESULTS = Input("a sweep's folder, or a table with a row for each result", "file or folder", folder=True)
STUDY = Input("a folder of runs, whose result.json files say more than a table", "folder", file=False, folder=True)
STUDY_ANSWERS = Input("what tools/study.py --json printed")
RUN = Input("a run directory, such as runs/x", "folder", file=False, folder=True, others=_runs)
CHECKPOINT = Input(
    "a run directory, such as runs/x, a checkpoint, or a folder of tools/export.py",
    "checkpoint or run directory",
    file=False,
    folder=True,
    names=("embedded",),
    of_file=_checkpoint_of,
    others=_runs,
)
PROMPTS = Input("a text file with one prompt per line, or a table with a column prompt")
VAE = Input(
    f"one of {', '.join(VAES)}, a folder or a hub id",
    NO_ENCODER,
    file=False,
    folder=True,
    names=tuple(VAES),
    is_other=may_be_hub_id,
)
TEXT = VAE._replace(what=f"{', '.join(TEXT_ENCODERS)}, a folder or a hub id", names=TEXT_ENCODERS)
VIDEOS = Input(
    f"{', '.join(NAMED_SOURCES)}, a folder of videos, a manifest or tars",
    "folder, manifest or tar",
    folder=True,
    is_text=lambda path: table_kind(path) in (*DELIMITERS, *LINES) and is_text(path),
    names=NAMED_SOURCES,
    is_other=lambda text: "{" in text,  # a pattern of tars, which is expanded where it is read
)
FOLDER = Input("a folder", "folder", file=False, folder=True)
VALIDATION = Input(
    "a number of clips, or an earlier cache, whose validation clips are kept",
    "cache",
    folder=True,
    is_other=str.isdecimal,
)
SAMPLES = Input(
    "a run directory, a checkpoint, a folder of videos, embedded, or a .npy file of features",
    "file or folder",
    folder=True,
    is_text=VIDEOS.is_text,
    names=("embedded",),
    others=_runs,
)
REAL = VIDEOS._replace(
    what="the folder of a cache, which synthetic and doom clips need, film, videos as tools/cache_latents.py takes "
    "them, or a .npy file",
    names=(FILM,),
)
