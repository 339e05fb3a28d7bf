from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.commands import call
from tests.scaling import simulate
from videoscaling.scaling import law_file, runs
from videoscaling.scaling.fitting.grids import fit
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.reporting.report import FIGURES

ROOT = Path(__file__).resolve().parents[2]
NAMES = {figure.__name__ for figure in FIGURES}
TOKENS = [2e9, 5e9, 12e9]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(results, law): a simulated sweep as CSV, and the law fitted to it."""
    folder, paper = tmp_path_factory.mktemp("study"), law_file.load(ROOT / "configs" / "laws" / "paper.json")
    cells = simulate.grid(paper, np.geomspace(0.0168e9, 0.268e9, 3), TOKENS, 4, 4, 2.0)
    table = simulate.run_table(paper, cells, TOKENS, 1e-4, n_ctx=1280)
    runs.write_csv(table, folder / "runs.csv")
    law_file.save(fit.fit(table, "all", fit.Options(), allocation.proportional(), {}).law, folder / "law.json")
    return folder / "runs.csv", folder / "law.json"


def run(*words):
    return call("tools/report.py", *words)


@pytest.mark.slow
def test_page_files_and_tensorboard_hold_the_same_figures(study, tmp_path):
    words = ("--out", tmp_path / "report.html", "--figures", tmp_path / "figures", "--tensorboard", tmp_path / "board")
    done = run(study[0], "--law", study[1], *words)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text()
    assert "isoflop: no budget is shared by three sizes" in page  # of this study
    drawn = NAMES - {"isoflop"}
    assert page.count("data:image/png;base64") == len(drawn)
    pictures = {path.stem: path.read_bytes() for path in (tmp_path / "figures").glob("*.png")}
    assert set(pictures) == drawn
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert set(board.Tags()["images"]) == {f"scaling/{name}" for name in drawn}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--law", "missing.json"), "no such file"),
        (("--law", "{law}", "--samples", "nowhere"), "no such folder"),
        (("--law", "{law}", "--planned", "nowhere"), "nowhere"),
        (("--law", "{results}"), "not a JSON file"),
        (("--law", "{law}", "--png", "folder"), "--figures"),
    ],
)
def test_bad_input_is_one_line_and_status_2(study, tmp_path, words, message):
    results, law = study
    out = tmp_path / "report.html"
    done = run(results, *(word.format(law=law, results=results) for word in words), "--out", out)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr
    assert not out.exists()
