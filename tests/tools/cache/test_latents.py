import json
import sys
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from videoscaling.data import plan, writer
from videoscaling.data.clip_groups import VALIDATION_SEED, list_hash
from videoscaling.data.index import read_index
from videoscaling.data.latents import LatentCache
from videoscaling.data.sources import synthetic
from videoscaling.data.sources.source import Source
from videoscaling.data.video.clips import ClipOptions, Shape, load_clips, to_float
from videoscaling.tools import cache_latents, cache_work
from videoscaling.utils.errors import run_cli


class PoolingVAE:
    """Averages over space and time; the tool asks no more of a VAE than this."""

    fingerprint = "pooling"
    statistics = {"convention": "none", "mean": [0.0], "std": [1.0]}  # noqa: RUF012

    def latent_shape(self, frames, height, width):
        return 3, (frames + 3) // 4, height // 8, width // 8

    def encode(self, clips):
        return torch.nn.functional.adaptive_avg_pool3d(clips, self.latent_shape(*clips.shape[2:])[1:])


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the tool in this process: (exit status, standard output, standard error)."""
    monkeypatch.setattr(cache_work, "load_vae", lambda spec, device, dtype: PoolingVAE())

    def call(*args) -> tuple[int, str, str]:
        # In this process; two of the five videos below are bad.
        videos = "--source" in args and not {"synthetic", "doom"} & {*map(str, args)}
        usual = ["--workers", 0, "--max-rejected", 0.4] if videos else []
        monkeypatch.setattr(sys, "argv", ["cache_latents.py", *map(str, [*usual, *args])])
        with pytest.raises(SystemExit) as caught:
            run_cli(cache_latents.main)
        return caught.value.code, *capsys.readouterr()

    return call


def make_video(path, frames=40, height=40, width=56):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            picture = np.full((height, width, 3), 2 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def videos(tmp_path):
    """A folder of four videos, one of them short, with captions, and one truncated."""
    folder = tmp_path / "videos"
    for name, frames in (("a.mp4", 40), ("b.mp4", 90), ("deep/c.mkv", 70), ("short.mp4", 9)):
        make_video(folder / name, frames).with_suffix(".txt").write_text(f"video {name}\n")
    whole = make_video(folder / "cut.mp4")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return folder


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_of_videos(run, videos, tmp_path):
    out = tmp_path / "cache"
    status, printed, _ = run("--source", videos, "--out", out, "--json")
    assert status == 0
    summary = json.loads(printed)
    assert summary["rejected"] == {"too short": 1, "truncated": 1}
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").open()]
    assert [(row["source"], row["reason"]) for row in rejected] == [
        ("cut.mp4", "truncated"),
        ("short.mp4", "too short"),
    ]
    cache = LatentCache(out)
    assert (cache.train_size, cache.validation_size) == (summary["train"], summary["validation"])
    assert cache.train_size + cache.validation_size == 40 // 17 + 90 // 17 + 70 // 17
    assert summary["tokens"] == (cache.train_size + cache.validation_size) * 5 * 4 * 4
    assert summary["bytes"] == sum(len(content) for name, content in files_of(out).items() if name != "index.json")
    assert cache.meta["fps"] == 24
    # Each clip is what direct decoding and encoding give, and its text is its caption's.
    rows = [json.loads(line) for line in (out / "captions.jsonl").open()]
    text = cache_work.load_text_encoder("embedded")
    for split, read in (("train", cache.train), ("validation", cache.validation)):
        listed = [row for row in rows if row["split"] == split]
        found, context, mask = read(torch.arange(len(listed)))
        for i, row in enumerate(listed):
            name, start = row["key"].split("#")
            assert row["caption"] == f"video {name}"
            clip = to_float(load_clips(Source(name, videos / name, ""), ClipOptions(Shape()), [int(start)]).pixels)[0]
            torch.testing.assert_close(found[i], PoolingVAE().encode(clip[None])[0], rtol=2**-11, atol=1e-6)
            expected, _ = text.encode([row["caption"]])
            torch.testing.assert_close(context[i][mask[i]], expected[0], rtol=2**-11, atol=1e-6)
    # Again: nothing to do, nothing touched.
    before = files_of(out)
    status, printed, stderr = run("--source", videos, "--out", out, "--json")
    assert (status, json.loads(printed)) == (0, summary)
    assert "already finished" in stderr
    assert files_of(out) == before
    assert run("--out", out, "--verify")[0] == 0


@pytest.mark.parametrize(("source", "module"), [("videos", "decode"), ("synthetic", "synthetic")])
def test_a_cache_of_other_frames_is_not_gone_on_with(run, videos, tmp_path, monkeypatch, source, module):
    """What changes which frames a source gives makes another cache, stderr by its settings."""
    words = ("--source", videos if source == "videos" else source, "--out", tmp_path / "cache")
    words += ("--size", 16) if source == "videos" else ("--clips", 10, "--validation", 2, "--size", 16)
    assert run(*words)[0] == 0
    assert run(*words)[0] == 0
    monkeypatch.setattr(getattr(plan, module), "VERSION", 99)
    status, _, said = run(*words)
    assert status == 2
    assert "holds a cache made otherwise: source " in said


def test_folder_and_manifest_give_the_same_latents(run, videos, tmp_path):
    for name in ("cut.mp4", "short.mp4", "short.txt"):
        (videos / name).unlink()
    rows = "path,caption\nb.mp4,video b.mp4\na.mp4,video a.mp4\ndeep/c.mkv,video deep/c.mkv\n"
    shape = ("--size", 16, "--stride", 2, "--frames", 5)
    assert run("--source", videos, "--out", tmp_path / "x", *shape)[0] == 0
    # The table lies elsewhere: in the folder it would be counted as skipped, which the index says.
    (tmp_path / "list.csv").write_text(rows)
    listed = ("--source", tmp_path / "list.csv", "--root", videos)
    assert run(*listed, "--out", tmp_path / "y", *shape)[0] == 0
    assert files_of(tmp_path / "x") == files_of(tmp_path / "y")
    # In the folder it is the same cache but for that count.
    (videos / "list.csv").write_text(rows)
    for source, skipped in ((videos, {".csv": 1}), (videos / "list.csv", {})):
        out = tmp_path / f"z{len(skipped)}"
        assert run("--source", source, "--out", out, *shape)[0] == 0
        found, expected = (read_index(folder) for folder in (out, tmp_path / "x"))
        assert found["about"].pop("skipped") == skipped
        assert expected["about"].pop("skipped") == {}
        assert found == expected


def test_synthetic_clips(run, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SHARD_CLIPS", 64)
    out = tmp_path / "cache"
    args = ("--source", "synthetic", "--clips", 100, "--validation", 20, "--seed", 3, "--size", 16, "--frames", 5)
    assert run(*args, "--out", out)[0] == 0
    cache = LatentCache(out)
    assert (cache.train_size, cache.validation_size) == (100, 20)
    assert cache.meta["source"].startswith("synthetic ")
    for read, seed in ((cache.train, 3), (cache.validation, VALIDATION_SEED)):
        index = torch.tensor([19, 3])
        expected = PoolingVAE().encode(synthetic.render(index, seed, 5, 16, 16))
        torch.testing.assert_close(read(index)[0], expected, rtol=2**-11, atol=1e-6)
        context, mask = cache_work.load_text_encoder("embedded").encode(synthetic.captions(index, seed))
        torch.testing.assert_close(read(index)[1][:, : context.shape[1]], context, rtol=2**-11, atol=1e-6)
        assert torch.equal(read(index)[2].sum(1), mask.sum(1))
    # Another seed: other clips to train on, the same ones to validate on.
    assert run(*args[:-6], "--seed", 4, *args[-4:], "--out", tmp_path / "other")[0] == 0
    other = LatentCache(tmp_path / "other")
    assert other.validation_hash == cache.validation_hash
    assert torch.equal(other.validation(torch.arange(20))[0], cache.validation(torch.arange(20))[0])
    assert not torch.equal(other.train(torch.arange(20))[0], cache.train(torch.arange(20))[0])


def test_a_validation_list_is_carried_to_a_larger_cache(run, videos, tmp_path):
    assert run("--source", videos, "--out", tmp_path / "first")[0] == 0
    for i in range(6):
        make_video(videos / f"new{i}.mp4")
    status, _, stderr = run("--source", videos, "--out", tmp_path / "first")
    assert status == 2
    assert "videos is 5 there and 11 now" in stderr
    assert run("--source", videos, "--out", tmp_path / "second", "--validation", tmp_path / "first")[0] == 0
    first, second = LatentCache(tmp_path / "first"), LatentCache(tmp_path / "second")
    assert second.validation_keys == first.validation_keys
    assert second.train_size > first.train_size
    for a, b in zip(first.validation(torch.arange(2)), second.validation(torch.arange(2))):
        assert torch.equal(a, b)
    other = ("--source", videos, "--out", tmp_path / "third", "--stride", 2, "--validation")
    for earlier in (tmp_path / "first", tmp_path / "first" / "validation.json"):
        status, _, stderr = run(*other, earlier)
        assert status == 2
        assert "with --stride 1, these with 2" in stderr
    assert not (tmp_path / "third" / "index.json").exists()


def test_a_killed_job_continues(run, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SHARD_CLIPS", 1)  # a shard for each video
    assert run("--source", videos, "--out", tmp_path / "whole")[0] == 0

    class Stopping(PoolingVAE):
        calls = 0

        def encode(self, clips):
            Stopping.calls += 1
            if Stopping.calls == 2:
                raise KeyboardInterrupt
            return super().encode(clips)

    monkeypatch.setattr(cache_work, "load_vae", lambda spec, device, dtype: Stopping())
    status, _, said = run("--source", videos, "--out", tmp_path / "cache")
    last = f"{tmp_path / 'cache'}: stopped; the same command continues after the last whole shard"
    assert (status, said.splitlines()[-1]) == (75, last)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    assert run("--source", videos, "--out", tmp_path / "cache")[0] == 0
    assert Stopping.calls == 4  # three videos and the interrupted call: the first is not encoded again
    assert files_of(tmp_path / "cache") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--source", "absent"], "absent: no such folder, manifest or tar"),
        (["--source", "videos", "--frames", 1000], "no video is left (4 too short, 1 truncated; each is named in"),
        (["--source", "videos", "--size", 500], "no video is left (3 too small, 1 t"),
        (["--source", "videos", "--size", 500], "pixels (height x width); clips are 500x500)"),
        (["--source", "videos", "--max-rejected", 0.05], "2 of 5 videos cannot be used (1"),
        (["--source", "videos", "--max-rejected", 0.05], "--max-rejected 0.4 accepts so many"),
        (["--source", "videos", "--validation", "many"], "--validation many: no such cache; give a number of clips"),
        (["--source", "videos", "--validation", 100], "no video is left for training"),
        (["--source", "videos", "--stride", 0], "--stride must be at least 1"),
        (["--source", "videos", "--max-rejected", 5], "--max-rejected must lie between 0 and 1"),
        (["--source", "synthetic", "--clips", -3], "--clips must be at least 1"),
        (["--source", "synthetic", "--stride", 2], "--stride: for videos"),
        (["--source", "synthetic", "--workers", 2], "--workers decode videos"),
        (["--source", "synthetic", "--validation", "list"], "every synthetic cache has the same validation clips"),
        (["--source", "synthetic", "--text", "absent/t5"], "text encoder 'absent/t5' is no local folder"),
        ([], "--source is missing"),
        (["--verify"], "no latent cache here"),
    ],
)
def test_bad_input_ends_with_one_clear_line(run, videos, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "validation.json").write_text(json.dumps({"hash": list_hash([]), "keys": []}))
    status, printed, stderr = run(*args, "--out", "cache")
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert (status, printed, len(errors)) == (2, "", 1)
    assert message in errors[0]
    assert stderr.endswith(errors[0] + "\n")
    assert "Traceback" not in stderr
    # The folder is free for a better command.
    assert run("--source", videos, "--out", "cache")[0] == 0


def test_a_damaged_tar_is_said_counted_and_refused_where_too_much_is_lost(run, videos, tmp_path):
    tar = tmp_path / "s.tar"
    with tarfile.open(tar, "w") as archive:
        for number in range(4):
            for name in ("b.mp4", "b.txt"):
                archive.add(videos / name, f"{number}{Path(name).suffix}")
    with tarfile.open(tar) as archive:
        headers = [member.offset for member in archive]
    content = bytearray(tar.read_bytes())
    content[headers[4] + 100] ^= 1  # of the third video
    tar.write_bytes(content)
    fault = f"at byte {headers[4]:,} is neither a member's header nor the end of the archive: what follows is lost"
    options = ("--source", tar, "--out", tmp_path / "x", "--frames", 5, "--size", 16, "--validation", 1)
    status, _, stderr = run(*options, "--max-rejected", 0.05)
    assert status == 2
    assert f"warning: {tar}: {fault} (rejected as one video)\n" in stderr
    assert "1 of 3 videos cannot be used (1 damaged archive); --max-rejected 0.34 accepts so many" in stderr
    status, printed, _ = run(*options, "--json")
    assert (status, json.loads(printed)["rejected"]) == (0, {"damaged archive": 1})
    assert read_index(tmp_path / "x")["rejected"] == {"damaged archive": 1}
    assert json.loads((tmp_path / "x" / "rejected.jsonl").read_text()) == {
        "source": "s.tar",
        "reason": "damaged archive",
        "detail": fault,
    }
    assert "1 damaged archive" in run(*options, "--out", tmp_path / "y", "--dry-run")[1]


def test_one_film_makes_a_cache_and_the_index_says_how_it_was_split(run, tmp_path):
    make_video(tmp_path / "videos" / "film.mp4", frames=125, height=32, width=32)
    words = ("--source", tmp_path / "videos", "--size", 32, "--frames", 5, "--clips-per-video", 1000, "--json")
    status, printed, _ = run(*words, "--out", tmp_path / "cache")
    split = json.loads(printed)["split"]
    cache = LatentCache(tmp_path / "cache")
    assert (status, cache.validation_size, cache.train_size) == (0, 2, 19)
    assert split == cache.meta["split"]
    gap = split["gap_seconds"]
    assert split == {"by": "time", "wanted": 2, "gap_seconds": gap, "parted": ["film.mp4"], "unused": 4}
    assert cache.meta["split_rule"] == "parted"
    rows = [json.loads(line) for line in (tmp_path / "cache" / "captions.jsonl").open()]
    starts: dict[str, list[int]] = {"train": [], "validation": []}
    for row in rows:
        starts[row["split"]].append(int(row["key"].split("#")[1]))
    between = min(abs(a - b) for a in starts["train"] for b in starts["validation"]) - 5
    assert between >= 24 * gap == pytest.approx(125 / 20)
    stderr = json.loads(run(*words, "--out", tmp_path / "dry", "--dry-run")[1])
    assert (stderr["split"], stderr["train"], stderr["validation"]) == (split, cache.train_size, 2)
    # Two shares make the same bytes, each deciding for itself; the command repeated has nothing to do.
    for share in ("1/2", "0/2"):
        assert run(*words, "--out", tmp_path / "shared", "--share", share)[0] == 0
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "cache")
    assert "already finished" in run(*words, "--out", tmp_path / "cache")[2]
    assert run(*words, "--out", tmp_path / "cache", "--verify")[0] == 0


def test_a_cache_that_records_no_rule_keeps_its_split(run, tmp_path, monkeypatch):
    """Caches from before there were rules validate on a whole long video: finished, verified, repaired so."""
    for name, frames in (("a.mp4", 10), ("b.mp4", 10), ("long.mp4", 100)):
        make_video(tmp_path / "videos" / name, frames, height=32, width=32)
    words = ("--source", tmp_path / "videos", "--size", 32, "--frames", 5, "--clips-per-video", 1000)
    words += ("--out", tmp_path / "cache")
    plain = plan.draw
    with monkeypatch.context() as patch:
        patch.setattr(plan, "draw", lambda *options: plain(*options[:-1], True))
        patch.setattr(
            "videoscaling.data.splits.hash_order",
            lambda sources: sorted(sources, key=lambda source: -len(source.name)),
        )
        assert run(*words)[0] == 0
        before = files_of(tmp_path / "cache")
        assert LatentCache(tmp_path / "cache").validation_size == 20
    monkeypatch.setattr(
        "videoscaling.data.splits.hash_order", lambda sources: sorted(sources, key=lambda source: -len(source.name))
    )
    assert "already finished" in run(*words)[2]
    assert run(*words, "--verify")[0] == 0
    next((tmp_path / "cache").glob("train-*")).unlink()
    assert run(*words)[0] == 0
    assert files_of(tmp_path / "cache") == before
    # A new one is of another fingerprint.
    assert run(*words[:-1], tmp_path / "new")[0] == 0
    new, old = LatentCache(tmp_path / "new"), LatentCache(tmp_path / "cache")
    assert (new.validation_size, new.meta["split_rule"]) == (2, "parted")
    assert new.meta["fingerprint"] != old.meta["fingerprint"]


def test_a_rectangle(run, videos, tmp_path):
    assert run("--source", videos, "--out", tmp_path / "cache", "--size", "16x40", "--frames", 5)[0] == 0
    index = read_index(tmp_path / "cache")
    assert (index["settings"]["height"], index["settings"]["width"]) == (16, 40)
    assert index["latent_shape"] == [3, 2, 2, 5]
    for text in ("0", "16x", "x16", "16x16x16", "-4", "a"):
        status, _, error = run("--source", videos, "--out", tmp_path / "x", f"--size={text}")
        assert (status, error.startswith(f"error: --size {text}: neither")) == (2, True)
