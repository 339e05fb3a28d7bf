"""Processes that share a cache without talking: whatever becomes of them, it ends in the same bytes."""

import json
from functools import partialmethod
from pathlib import Path

import pytest

from tests.data.units import SETTINGS, SHAPE, TEXT, PoolingVAE, files_of, make, unit, units_of
from videoscaling.data import rejections, writer
from videoscaling.data.latents import LatentCache
from videoscaling.data.rejections import RejectionCount
from videoscaling.data.writer import Load, WorkShare, close_cache, open_cache, plan_shards, working, write_share
from videoscaling.utils.errors import UserError
from videoscaling.utils.files import json_text


def work_on(folder: Path, share: WorkShare, vae=None, units=None, most: float = 1.0) -> dict | None:
    """What one of several processes does; the index, if it was the one to close the cache."""
    with working(folder, share) as work:
        if (index := open_cache(folder, SETTINGS, work)) is not None:
            return index
        shards = plan_shards(folder, SETTINGS, units or units_of(broken=True), 2)
        mine = [shard for split in shards.values() for shard in split][share.rank :: share.world]
        write_share(
            shards=mine,
            vae=vae or PoolingVAE(),
            text=TEXT,
            latent_shape=SHAPE,
            work=work,
            load=Load(4),
            tally=RejectionCount(folder, shards, most, 10),
        )
        return close_cache(folder, SETTINGS, shards, SHAPE, TEXT, work)


@pytest.mark.parametrize(
    "lives",
    [
        [(0, 2, None), (1, 2, None)],
        [(1, 2, None), (0, 2, None)],
        [(2, 3, None), (0, 3, None), (1, 3, None)],
        [(2, 3, 1), (0, 2, 3), (1, 3, None), (0, 1, 2), (1, 2, None), (0, 2, None)],  # killed, and another number then
        [(4, 7, None), (0, 1, None)],
        [(rank, 9, None) for rank in range(5)],  # more processes than shards
    ],
)
def test_any_number_of_processes_end_in_the_same_bytes(tmp_path, lives):
    make(tmp_path / "whole", units_of(broken=True), load=Load(4))
    for number, (rank, world, until) in enumerate(lives):
        with pytest.raises(UserError):
            LatentCache(tmp_path / "shared")
        if until is None:
            closed = work_on(tmp_path / "shared", WorkShare(rank, world))
            assert (closed is None) == (number < len(lives) - 1)
        else:
            with pytest.raises(KeyboardInterrupt):
                work_on(tmp_path / "shared", WorkShare(rank, world), PoolingVAE(until))
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "whole")


def test_a_share_belongs_to_one_process(tmp_path):
    with working(tmp_path, WorkShare(1, 2)):
        with pytest.raises(UserError, match="share-1-of-2: another process is working in it"):
            work_on(tmp_path, WorkShare(1, 2))
        assert work_on(tmp_path, WorkShare(0, 2)) is None  # the other is free
    assert work_on(tmp_path, WorkShare(1, 2))["finished"]


def test_shards_of_other_sources_are_not_taken_for_ours(tmp_path):
    work_on(tmp_path, WorkShare(0, 2))
    units = units_of(broken=True)
    units["train"][0] = unit("another", 0, 3)
    assert work_on(tmp_path, WorkShare(1, 2), units=units) is None
    assert work_on(tmp_path, WorkShare(0, 1), units=units)["finished"]
    assert json.loads((tmp_path / "captions.jsonl").read_text().splitlines()[0])["key"] == "another#0"


def test_too_many_rejections_stop_the_job_whoever_saw_them(tmp_path):
    units = {"train": [unit(f"v{k}", 10 * k, 3, broken=k in (0, 2, 5)) for k in range(10)], "validation": []}
    assert work_on(tmp_path, WorkShare(0, 2), units=units, most=0.2) is None  # v0 and v5
    with pytest.raises(
        UserError, match=r"3 of 10 videos cannot be used \(3 undecodable\); --max-rejected 0.3"
    ) as reported:
        work_on(tmp_path, WorkShare(1, 2), units=units, most=0.2)
    assert str(tmp_path / "rejected.jsonl") in str(reported.value)
    rows = [json.loads(line) for line in (tmp_path / "rejected.jsonl").open()]
    assert [row["source"] for row in rows] == ["v0", "v2", "v5"]
    assert work_on(tmp_path, WorkShare(1, 2), units=units, most=0.3)["rejected"] == {"undecodable": 3}
    assert [json.loads(line)["source"] for line in (tmp_path / "rejected.jsonl").open()] == ["v0", "v2", "v5"]


def test_a_shard_whose_sources_were_all_rejected_goes_when_nobody_needs_it(tmp_path):
    """An empty file stayed in the finished cache. Until then the other processes read from it what is done."""
    units = {"train": [unit(f"v{k}", 10 * k, 3, broken=k in (0, 1)) for k in range(6)], "validation": []}
    empty, others = tmp_path / "train-00000.safetensors", {f"train-0000{k}.safetensors" for k in (1, 2)}
    assert work_on(tmp_path, WorkShare(0, 3), units=units) is None
    assert empty.exists()
    assert work_on(tmp_path, WorkShare(1, 3), units=units) is None
    with working(tmp_path, WorkShare(1, 2)):  # a process that may be about to read it
        index = work_on(tmp_path, WorkShare(2, 3), units=units)
        assert empty.exists()
    assert others == {name for name in index["files"] if name.startswith("train")}
    assert others == {shard["file"] for shard in index["splits"]["train"]["shards"]}
    assert index["rejected"] == {"undecodable": 2}
    assert work_on(tmp_path, WorkShare(0, 1), units=units) == index
    assert others == {path.name for path in tmp_path.glob("train-*")}
    assert LatentCache(tmp_path).train_size == 12
    # A damaged shard is made again, and the empty one does not come back.
    (tmp_path / "train-00001.safetensors").write_bytes(b"")
    again = work_on(tmp_path, WorkShare(0, 1), units=units)
    assert (again, others) == (index, {path.name for path in tmp_path.glob("train-*")})


@pytest.mark.parametrize(("rejected", "videos"), [(7, 100), (28, 49), (29, 100), (57, 100), (1, 3)])
def test_the_bound_that_a_refusal_names_is_accepted(rejected, videos):
    rows = [{"source": "x", "reason": "truncated", "detail": ""}] * rejected
    named = float(rejections.too_many(rows, videos).rpartition("--max-rejected ")[2].split()[0])
    assert not rejections.exceeds(rows, videos, named)
    assert rejections.exceeds(rows, videos, named - 0.011)


def test_a_refusal_of_all_videos_names_no_bound_which_would_not_help():
    rows = [{"source": "x", "reason": "too small", "detail": "160x90 pixels; clips are 96x64"}] * 2
    assert rejections.too_many(rows, 2) == "no video is left (2 too small; x: 160x90 pixels; clips are 96x64)"


def test_processes_that_begin_at_the_same_time_do_not_refuse_each_other(tmp_path, monkeypatch):
    """Whether another process's index comes just before the folder's names are read, or just after."""
    look = Path.iterdir

    def begin(folder, before):
        entries = () if before else list(look(folder))
        if folder == tmp_path:
            (folder / "index.json").write_text(json_text({"finished": False, "settings": SETTINGS}))
        return look(folder) if before else iter(entries)

    for before in (False, True):
        (tmp_path / "index.json").unlink(missing_ok=True)
        with writer.working(tmp_path, WorkShare(0, 2)) as work, monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", partialmethod(begin, before=before))
            assert writer.open_cache(tmp_path, SETTINGS, work) is None


def test_a_cache_whose_index_was_lost_is_not_taken_over(tmp_path):
    make(tmp_path)
    (tmp_path / "index.json").unlink()
    with pytest.raises(UserError, match="no latent cache"):
        make(tmp_path)
