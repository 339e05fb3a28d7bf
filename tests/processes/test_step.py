import json
from pathlib import Path

import numpy as np
import pytest

from tests.processes.trainings import finish, poisoned, short_of_memory, start, together
from tests.processes.watched_steps import count_graphs
from tests.training.test_trainer import losses, metrics, overrides
from videoscaling.training.checkpoints.checkpoint import find_checkpoint


def test_one_processs_bad_sample_is_skipped_by_all(cache: Path, tmp_path: Path) -> None:
    for parallel in ("ddp", "zero1", "fsdp"):
        keys = overrides(cache, tmp_path, parallel, f"train.parallel={parallel}", "train.tokens=1280")
        together(tmp_path / "log" / parallel, poisoned, keys, [4], (1,), world=2)
    keys = overrides(cache, tmp_path, "one", "train.tokens=1280")
    together(tmp_path / "log" / "one", poisoned, keys, [4])
    wanted = metrics(tmp_path / "one")
    for parallel in ("ddp", "zero1", "fsdp"):
        lines = metrics(tmp_path / parallel)
        assert [line["skipped"] for line in lines] == [0] * 4 + [1] * 6
        assert lines[4]["loss"] is None
        ours, theirs = ([line["loss"] for line in run if line["loss"]] for run in (lines, wanted))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        tensors = find_checkpoint(tmp_path / parallel)
        assert json.loads((tensors / "state.json").read_text())["counts"]["skipped"] == 1


@pytest.mark.slow
def test_processes_agree_on_the_micro_batch(cache: Path, tmp_path: Path) -> None:
    """The first one's clock counts for both. One of two finds its memory full: both halve, the losses stay, and
    nothing of the attempts enters a step."""
    plain, short = (overrides(cache, tmp_path, name, "train.tokens=1280") for name in ("plain", "x"))
    text = together(tmp_path / "plain", short_of_memory, plain, 99, (), world=2)
    assert "train.micro_batch=1, the fastest that fits" in text
    assert all("\n1 at a time" in f"\n{(tmp_path / 'plain' / rank).read_text()}" for rank in "01")
    text = together(tmp_path / "log", short_of_memory, short, 1, (1,), world=2)
    assert text.count("continuing with train.micro_batch=1,") == 1
    np.testing.assert_allclose(losses(tmp_path / "x"), losses(tmp_path / "plain"), rtol=1e-5)
    sharded = overrides(cache, tmp_path, "sharded", "train.tokens=1280", "train.parallel=fsdp")
    assert "2 at a time" in together(tmp_path / "log", short_of_memory, sharded, 99, (), world=2)
    np.testing.assert_allclose(losses(tmp_path / "sharded"), losses(tmp_path / "plain"), rtol=1e-5)


def test_a_clip_that_does_not_fit_is_a_users_error(cache: Path, tmp_path: Path) -> None:
    for parallel in ("ddp", "fsdp"):
        keys = overrides(cache, tmp_path, parallel, f"train.parallel={parallel}", "train.micro_batch=1")
        codes = finish(start(tmp_path / parallel, short_of_memory, keys, 0, (0, 1), world=2))
        assert codes == [2, 2], (tmp_path / parallel / "0").read_text()
        said = (tmp_path / parallel / "0").read_text().splitlines()[-1]
        assert said.startswith("error: out of GPU memory with one clip at a time; try train.activation_checkpointing")


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["false", "true"])
def test_compiled_blocks_are_one_graph_under_ddp(cache: Path, tmp_path: Path, recompute: str) -> None:
    """Of 3 MB of matrices; DDP's first bucket is of 1 MB, at which torch.compile would split the graph."""
    keys = overrides(cache, tmp_path, "x", "model.size=7x224", "train.compile=true")
    keys += [f"train.activation_checkpointing={recompute}"]
    together(tmp_path / "log", count_graphs, keys, str(tmp_path / "graphs"), world=2)
    assert (tmp_path / "graphs").read_text() == "1"
