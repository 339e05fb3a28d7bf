"""Checkpoints in pieces: together they are the tensors, whatever the layout that wrote them."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.training.test_step import trainer_of
from tests.training.test_trainer import run
from videoscaling.training.checkpoints import checkpoint
from videoscaling.training.checkpoints.checkpoint import check, find_checkpoint, keep_only, read_state, read_tensors
from videoscaling.training.checkpoints.exported import read_trained
from videoscaling.training.checkpoints.pieces import (
    Part,
    optimizer_pieces,
    optimizer_tensors,
    piece_of,
    pieces_of,
    shapes_of,
)
from videoscaling.training.checkpoints.stored_tensors import StoredTensors
from videoscaling.training.checkpoints.writer import CheckpointWriter
from videoscaling.training.distributed.flat_buffer import merge
from videoscaling.training.result import resumable_step
from videoscaling.utils.errors import UserError
from videoscaling.utils.seal import sealed

KEYS = ("train.tokens=640", "train.milestones=[640]")


def in_pieces(cache: Path, out: Path, whole: Path, count: int) -> Path:
    """The run ``whole`` under ``out``, its checkpoint written by ``count`` processes that hold all of it."""
    folder = out / "x"
    shutil.copytree(whole, folder)
    trainer = trainer_of(cache, out, *KEYS)
    trainer.restore()
    path = find_checkpoint(folder)
    state, optimizer = read_state(path), trainer.train_step.optimizer
    files = {"config.yaml": state["files"]["config.yaml"]}
    for index in range(count):
        part = Part(index, count)
        named = {part.file(kind): pieces_of(each.state_dict(), part) for kind, each in models(trainer).items()}
        moments = optimizer_pieces(trainer.model, optimizer, part)
        named[part.file("optimizer")] = {name: piece.numbers for name, piece in moments.items()}
        files |= checkpoint._write_tensors(path, CheckpointWriter().copy(named, True))
    for kind in ("model", "ema", "optimizer"):
        (path / f"{kind}.safetensors").unlink()
    state |= {"files": files, "shapes": shapes_of(trainer.model)}
    checkpoint.write_json(path / "state.json", sealed(state))
    return path


def models(trainer: object) -> dict[str, nn.Module]:
    return {"model": trainer.model, "ema": trainer.ema}


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(cache, out, "x", *KEYS)
    return out / "x"


@pytest.mark.parametrize("count", [1, 4])
def test_a_checkpoint_in_pieces_is_the_whole_one(cache: Path, tmp_path: Path, whole: Path, count: int) -> None:
    path, plain = in_pieces(cache, tmp_path, whole, count), find_checkpoint(whole)
    assert len(list(path.glob("*.safetensors"))) == 3 * count
    check(path)
    for kind in ("model", "ema", "optimizer"):
        found, wanted = read_tensors(path, kind), read_tensors(plain, kind)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    trainer = trainer_of(cache, tmp_path, *KEYS)
    trainer.restore()
    assert trainer.step == 5
    restored = optimizer_tensors(trainer.model, trainer.train_step.optimizer)
    assert all(torch.equal(restored[name], tensor) for name, tensor in read_tensors(plain, "optimizer").items())
    assert resumable_step(tmp_path / "x") == 5
    shutil.copytree(path, path.with_name("step_0000009_mine"))  # a user's copy is none of the run's
    assert resumable_step(tmp_path / "x") == 5
    assert torch.equal(*(read_trained(each).tensors["final.weight"] for each in (tmp_path / "x", whole)))


def test_a_piece_that_is_damaged_or_missing_is_refused(cache: Path, tmp_path: Path, whole: Path) -> None:
    path = in_pieces(cache, tmp_path, whole, 2)
    piece = path / "model.piece-1-of-2.safetensors"
    content = piece.read_bytes()
    for damage in (content[:-1], content[:-1] + bytes([content[-1] ^ 4])):
        piece.write_bytes(damage)
        with pytest.raises(UserError, match="model.piece-1-of-2.safetensors: has "):
            check(path)
    piece.unlink()
    with pytest.raises(UserError, match="is missing"):
        check(path)


def test_what_a_finished_run_keeps_are_its_averages_in_pieces_too(cache: Path, tmp_path: Path, whole: Path) -> None:
    path = in_pieces(cache, tmp_path, whole, 2)
    assert not checkpoint.is_final(path.parent)
    keep_only(path, ("ema",))
    assert sorted(file.name for file in path.glob("*.safetensors")) == [
        f"ema.piece-{index}-of-2.safetensors" for index in range(2)
    ]
    assert checkpoint.is_final(path.parent)
    with pytest.raises(UserError, match="holds no model weights; there are ema$"):
        find_checkpoint(path, ("model",))
    assert find_checkpoint(tmp_path / "x") == path


def test_slices_of_a_flat_buffer_are_pieces_of_its_parameters() -> None:
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((40, 3), (7,), (90,))]
    wanted = [parameter.detach().clone() for parameter in parameters]
    flat = merge(parameters, 4).detach()
    for parameter, tensor in zip(parameters, wanted):
        pieces = [piece_of(flat, Part(index, 4)).within(parameter, flat) for index in range(4)]
        assert torch.equal(torch.cat([piece.numbers for piece in pieces]).view(tensor.shape), tensor)
        for piece in pieces:  # each says where its numbers are in the parameter
            assert torch.equal(tensor.flatten()[piece.begin :][: len(piece.numbers)], piece.numbers)
            whole = piece_of(parameter).over(piece).numbers
            assert (whole.data_ptr(), len(whole)) == (piece.numbers.data_ptr(), len(piece.numbers))


def test_any_range_of_a_tensor_is_read_from_pieces_of_uneven_lengths(tmp_path: Path) -> None:
    numbers = torch.arange(12.0)
    for index, piece in enumerate(numbers.split([5, 0, 1, 6])):
        save_file({"other": torch.full((3,), -1.0), "w": piece.clone()}, tmp_path / f"{index}.safetensors")
    stored = StoredTensors([tmp_path / f"{index}.safetensors" for index in range(4)], {"w": [3, 4], "other": [12]})
    assert torch.equal(stored["w"], numbers.view(3, 4))
    for begin in range(13):
        for count in range(13 - begin):
            assert torch.equal(stored.read("w", begin, count), numbers[begin : begin + count])


def test_a_file_of_pieces_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "ema.piece-0-of-1.safetensors"
    save_file({"w": torch.ones(2), "half": torch.ones(2, dtype=torch.float16)}, file)
    with pytest.raises(UserError, match="ema.piece-0-of-1.safetensors: not readable .holds F16, and checkpoints F32"):
        StoredTensors([file])
    save_file({"w": torch.ones(2)}, file)
    stored = StoredTensors([file], {"w": [2], "v": [1], "two": [2]})
    assert stored["w"].tolist() == [1, 1]
    with pytest.raises(UserError, match="ema.piece-0-of-1.safetensors: not readable .v is not whole"):
        stored["v"]
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match="ema.piece-0-of-1.safetensors: not readable .ends within w"):
        stored["w"]
    for damaged in (b"", content[:20], b"\xff" * 8 + content[8:], content[:8] + b"[" + content[9:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="ema.piece-0-of-1.safetensors: not readable .no safetensors header"):
            StoredTensors([file])
