"""Faults in every JSON file that a user may hand over or a disk may damage: one line, or the same as without it."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.test_text import save_t5
from tests.utils.test_results import mutated
from videoscaling.data.clip_groups import list_hash, read_frozen
from videoscaling.models.autoencoders import statistics_of
from videoscaling.models.hub import VAES
from videoscaling.models.text import load_text_encoder
from videoscaling.models.vae import load_vae
from videoscaling.scaling import law_file
from videoscaling.scaling.reporting.report import _samples
from videoscaling.sweeps import added_cells as extended
from videoscaling.sweeps import slurm
from videoscaling.sweeps.state import last_metrics
from videoscaling.training.checkpoints.exported import EMBEDDED as EXPORTED
from videoscaling.training.config import load_config
from videoscaling.training.logs.log_files import MetricsFile
from videoscaling.training.pipeline import VideoPipeline
from videoscaling.training.run import cache_indexes, encoded_shape
from videoscaling.utils.errors import UserError
from videoscaling.utils.files import write_json
from videoscaling.utils.results import FILE, read_failure, read_result

ROOT = Path(__file__).resolve().parents[1]
INSTEAD = ([], {}, None, True, 0, -1, 2.5, 10**30, "", "x", [[]], [None], {"a": None}, [0] * 3)


def replaced(value: Any, draw: random.Random) -> Any:
    """``value`` with one of its parts replaced by another kind of value, or left out."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    children = list(pairs)
    if not children or draw.random() < 0.2:
        return draw.choice(INSTEAD)
    name, child = draw.choice(children)
    if draw.random() < 0.2:
        return type(value)([pair for pair in children if pair[0] != name]) if isinstance(value, dict) else value[:name]
    copy = value.copy()
    copy[name] = replaced(child, draw)
    return copy


def law(folder: Path) -> tuple[Path, Callable[[], Any]]:
    path = folder / "law.json"
    path.write_bytes((ROOT / "configs" / "laws" / "paper.json").read_bytes())
    return path, lambda: law_file.load(path)


def result(folder: Path) -> tuple[Path, Callable[[], Any]]:
    path = folder / FILE
    path.write_bytes(next(ROOT.glob("results/mini/cells/*/result.json")).read_bytes())
    return path, lambda: read_result(path)


def validation_list(folder: Path) -> tuple[Path, Callable[[], Any]]:
    keys = [f"clip {number}" for number in range(9)]
    write_json(folder / "validation.json", {"hash": list_hash(keys), "keys": keys})
    return folder / "validation.json", lambda: read_frozen(folder)


def cache_index(folder: Path) -> tuple[Path, Callable[[], Any]]:
    config = load_config(None, [f"data.cache={folder}"])
    write_json(folder / "index.json", {"latent_shape": [4, 2, 4, 4], "finished": True, "settings": {"a": [1, 2.5]}})
    return folder / "index.json", lambda: (encoded_shape(config), cache_indexes(config))


def added_cells(folder: Path) -> tuple[Path, Callable[[], Any]]:
    cell = extended.AddedCell("1x32", lr=1e-3, batch_tokens=64, repeat=0, milestones=[64, 128], why="edge")
    extended.add(folder, [cell, replace(cell, repeat=1)])
    return folder / extended.NAME, lambda: extended.read(folder)


def submission(folder: Path) -> tuple[Path, Callable[[], Any]]:
    path = folder / "x.json"
    write_json(path, {"name": "x", "job": "7", "tasks": [[{"run_id": "a", "config": {}}], [{"run_id": "b"}]]})
    return path, lambda: slurm.read_submission(path)


def failure(folder: Path) -> tuple[Path, Callable[[], Any]]:
    path = folder / "failure.json"
    write_json(path, {"attempts": 2, "exit_status": 1, "reason": "a fault"})
    return path, lambda: read_failure(path)


def vae_config(folder: Path) -> tuple[Path, Callable[[], Any]]:
    for path in VAES["embedded"].iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder / "config.json", lambda: load_vae(str(folder))


def text_config(folder: Path) -> tuple[Path, Callable[[], Any]]:
    save_t5(folder)
    return folder / "config.json", lambda: load_text_encoder(str(folder))


def vae_statistics(folder: Path) -> tuple[Path, Callable[[], Any]]:
    model = torch.nn.Module()
    model.config = {}
    write_json(folder / "statistics.json", {"mean": [0.5, 1.0], "std": [1.0, 2.0]})
    return folder / "statistics.json", lambda: statistics_of(model, folder)


def samples(folder: Path) -> tuple[Path, Callable[[], Any]]:
    write_json(folder / "samples.json", [{"file": f"{number}.gif", "prompt": "a ball"} for number in range(3)])
    for number in range(3):
        (folder / f"{number}.gif").write_bytes(b"GIF89a")
    return folder / "samples.json", lambda: _samples(folder)


def exported_model(folder: Path) -> tuple[Path, Callable[[], Any]]:
    for path in EXPORTED.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / "config.json", lambda: VideoPipeline.from_run(folder)


def metrics(folder: Path) -> tuple[Path, Callable[[], Any]]:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "tokens": 64 * step}) + "\n" for step in range(1, 20)))
    return path, lambda: (last_metrics(folder), MetricsFile(path, 10).close())


FILES = (law, result, validation_list, cache_index, added_cells, submission, failure, vae_statistics, samples, metrics)


@pytest.mark.parametrize(
    "make",
    [*FILES, *(pytest.param(make, marks=pytest.mark.slow) for make in (vae_config, text_config, exported_model))],
)
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_fault_is_one_line(make: Callable, count: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, read = make(tmp_path)
    content = path.read_bytes()
    read()
    path.write_bytes(content)
    draw, refused, lines = random.Random(0), 0, 1
    for number in range(count):
        if number % 2 or path.suffix == ".jsonl":
            path.write_bytes(mutated(content, draw))
        else:
            path.write_text(json.dumps(replaced(json.loads(content), draw)))
        try:
            read()
        except UserError as error:
            refused += 1
            lines = max(lines, len(str(error).splitlines()))
    assert lines == 1
    lenient = make in (failure, metrics)  # of these a fault is no error
    assert (refused == 0) if lenient else (refused > count / 5)
