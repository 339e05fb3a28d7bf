"""A process that resumes reads and holds its own share of the state, and every layout resumes from every other."""

import itertools
import json
import os
from pathlib import Path

import pytest

from tests.processes import restores
from tests.processes.trainings import together
from tests.training.test_trainer import overrides, run
from videoscaling.training.checkpoints.checkpoint import find_checkpoint

LAYOUTS = ("ddp", "zero1", "fsdp", "hsdp")
# 11.2 million parameters: a state of 179 MB, next to which headers and buffers of a megabyte are small.
LARGE = ("model.size=2x512", "model.heads=8", "train.tokens=640")


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the kernel does not count peaks anew")
@pytest.mark.parametrize("saved", ["zero1", pytest.param("ddp", marks=pytest.mark.slow)])
def test_a_process_reads_and_holds_its_share(cache: Path, tmp_path: Path, saved: str) -> None:
    """Of weights, EMA and two moments, 16 bytes a parameter, each of four processes has 4: from pieces that two
    processes wrote, and from whole files. The first one reads all files before, to compare their checksums."""

    def keys(layout: str) -> list[str]:
        return overrides(cache, tmp_path, "x", *LARGE, f"train.parallel={layout}")

    together(tmp_path / "log", restores.save, keys(saved), world=2)
    names = {path.name for path in find_checkpoint(tmp_path / "x").glob("*.safetensors")}
    assert ("optimizer.safetensors" in names) == (saved == "ddp")
    for layout in ("zero1", "fsdp"):
        together(tmp_path / "log", restores.measure, keys(layout), str(tmp_path / "found"), world=4)
        for rank in range(4):
            found = json.loads((tmp_path / f"found.{rank}").read_text())
            count = found["parameters"]
            assert found["read"] == pytest.approx((4 if rank else 4 + 16) * count, rel=0.02)
            assert found["memory"] < 4 * count


@pytest.mark.parametrize("world", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_every_layout_resumes_from_every_other_bit_for_bit(cache: Path, tmp_path: Path, world: int) -> None:
    """Begun by one process; continued by three, which have uneven shards, or by four, of two nodes under hsdp."""
    keys = ("model.size=2x32", "model.heads=2", "train.batch_tokens=384", "train.tokens=1920")
    run(cache, tmp_path, "x", *keys)
    layouts = LAYOUTS if world == 4 else LAYOUTS[:3]
    order = in_all_pairs(layouts)
    assert set(itertools.pairwise(order)) == set(itertools.product(layouts, repeat=2))
    together(tmp_path / "log", restores.relay, overrides(cache, tmp_path, "x", *keys), order, world=world)


def in_all_pairs(names: tuple[str, ...]) -> list[str]:
    """``names`` in an order in which each follows each, itself too, once (a de Bruijn sequence, closed)."""
    order = []
    for number, name in enumerate(names):
        order += [name, *(each for other in names[number + 1 :] for each in (name, other))]
    return [*order, names[0]]
