"""A dry run says what the run would be, and does nothing."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.training.test_trainer import overrides, run
from videoscaling.models.dit import DiTConfig, VideoDiT
from videoscaling.models.sizes import exact_flops
from videoscaling.training.config import Config, load_config
from videoscaling.training.planning import dry_run as dryrun
from videoscaling.training.planning import memory_formula
from videoscaling.training.planning.dry_run import dry_run
from videoscaling.utils.errors import UserError


def config(cache: Path, out: Path, *more: str) -> Config:
    return load_config(None, overrides(cache, out, "x", *more))


def report(config: Config, capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    assert dry_run(config, as_json=True) == 0
    return json.loads(capsys.readouterr().out)


def content(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_report_adds_up(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(config(cache, tmp_path, "train.milestones=[3200]", "train.tokens=6300"), capsys)
    assert not list(tmp_path.iterdir())
    model = VideoDiT(DiTConfig(1, 32, 1, 4, (1, 1, 1), 64))
    groups = found["parameters"]
    assert groups.pop("total") == sum(groups.values()) == sum(p.numel() for p in model.parameters())
    assert groups["blocks' matrices"] == found["N"] == 16 * 32**2
    assert (found["steps"], found["tokens"], found["clips_per_step"], found["n_ctx"]) == (50, 6400, 4, 32)
    assert found["epochs"] == pytest.approx(50 * 4 / 96)
    text = found["data"]["text_lengths"]
    per_clip = exact_flops(1, 32, 32, 4, text["padded_to"], 64)
    assert found["flops"]["exact"] == 200 * per_clip
    assert found["flops"]["C"] == 6400 * 0.75 * 16 * 32**2 * (7 + 1)
    # Two milestones; 16 clips for the average and 4 for the raw weights, twice each, forward only.
    assert found["validation"]["samples"] == 40
    assert found["validation"]["flops_share"] == pytest.approx(80 / 3 / (80 / 3 + 200))
    memory, data, spent = found["memory"], found["data"], found["time"]
    parts = [name for name in memory if name not in ("total", "measured")]
    assert {"weights", "gradients", "optimizer", "average", "activations", "samples"} < set(parts)
    assert memory["total"] == sum(memory[name] for name in parts)
    assert memory["weights"] == 4 * sum(groups.values())
    assert memory["measured"] is None or memory["measured"] > 0  # earlier tests may have held more
    assert (data["training_clips"], data["training_tokens"], data["validation_clips"]) == (96, 96 * 32, 16)
    assert data["fingerprint"] == found["config"]["data"]["fingerprint"] != ""
    assert (text["min"], text["median"], text["max"]) == (6, 6, 6)  # "a clip of kind 3", and its end
    assert len(data["latent_mean"]) == len(data["latent_std"]) == 4
    seconds = spent["seconds_per_step"] + spent["data_seconds_per_step"]
    assert spent["training_seconds"] == pytest.approx(50 * seconds)
    assert spent["tokens_per_second"] == pytest.approx(128 / seconds)
    assert spent["seconds"] == pytest.approx(50 * seconds + 2 * spent["validation_seconds_per_milestone"])
    assert spent["mfu"] is None or torch.cuda.is_available()


def test_clips_that_are_seen_too_often_are_named(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """96 clips of 32 tokens: 16 epochs are 49,152 tokens."""
    found = [report(config(cache, tmp_path, f"train.tokens={T}"), capsys)["warnings"] for T in (49_152, 61_440)]
    assert [[text for text in warnings if "epochs" in text] for warnings in found] == [
        [],
        [
            "20 epochs of 96 training clips: laws are for clips that repeat little, and a model learns such ones by "
            "heart; cache more videos, or lower train.tokens"
        ],
    ]


def test_a_model_larger_than_memory_is_refused_before_it_is_made(cache: Path, tmp_path: Path) -> None:
    """16x524288 has 7e13 parameters, below what any run may have: 281 TB, which no machine has."""
    with pytest.raises(UserError, match="model.size=16x524288: its weights take 281,475 GB, and this machine has"):
        dry_run(config(cache, tmp_path, "model.size=16x524288"), as_json=True)


def test_data_statistics_are_the_datas(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = report(config(cache, tmp_path), capsys)["data"]
    meta = json.loads((cache / "index.json").read_text())["latent_statistics"]  # of all clips, validation's too
    assert data["sampled_clips"] == 96
    torch.testing.assert_close(torch.tensor(data["latent_std"]), torch.tensor(meta["std"]), rtol=0.1, atol=0)
    torch.testing.assert_close(torch.tensor(data["latent_mean"]), torch.tensor(meta["mean"]), rtol=0, atol=0.1)


def test_expected_time_is_about_the_runs(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for clock in ("perf_counter", "monotonic"):  # other work on the machine moves neither
        monkeypatch.setattr(time, clock, time.process_time)
    more = ("train.tokens=6400", "log.every_steps=1000", "model.size=2x64")
    expected = report(config(cache, tmp_path, *more), capsys)["time"]["seconds"]
    taken = run(cache, tmp_path, "x", *more)["seconds"]
    assert 1 / 3 < expected / taken < 3


def test_an_existing_run_is_left_as_it_is(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warmup = ("optim.warmup_tokens=128", "train.milestones=[1280]")
    run(cache, tmp_path, "x", *warmup)
    before = content(tmp_path)
    done = report(config(cache, tmp_path, *warmup), capsys)
    assert (done["status"], done["from_step"], done["validation"]["milestones_left"]) == ("done", 50, 0)
    assert done["time"]["seconds"] == 0
    longer = report(config(cache, tmp_path, *warmup, "train.tokens=12800"), capsys)
    assert (longer["status"], longer["from_step"], longer["steps"]) == ("resumes", 50, 100)
    assert longer["validation"]["milestones_left"] == 1
    assert dry_run(config(cache, tmp_path, *warmup, "train.tokens=12800")) == 0
    text = capsys.readouterr().out
    assert "continues from step 50" in text
    assert "lr: 0.003" in text
    with pytest.raises(UserError, match=r"another configuration \(optim.lr: 0.003 -> 0.001"):
        dry_run(config(cache, tmp_path, *warmup, "optim.lr=1e-3"))
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["train.batch_tokens=0"], "train.batch_tokens: not given"),
        (["train.tokens=64"], "less than one batch"),
        (["train.batch_tokens=3104"], "a batch of 97 clips"),
    ],
)
def test_what_would_not_run_is_refused(cache: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dry_run(config(cache, tmp_path, *more))
    assert not list(tmp_path.iterdir())


def test_no_training_clips_are_an_error(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tools make no such cache; a folder pieced together by hand may be one."""
    prepared = dryrun.prepare

    def without_clips(config: Config):
        made, data = prepared(config)
        data.train_size = 0
        return made, data

    monkeypatch.setattr(dryrun, "prepare", without_clips)
    with pytest.raises(UserError, match="holds no training clips"):
        dry_run(config(cache, tmp_path))


class Allocations(TorchDispatchMode):
    """The storages that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if type(tensor) is torch.Tensor:  # not a collective's wrapper, which has no storage
                storage = tensor.untyped_storage()
                self.made[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        return result

    def living(self, without: Iterable[torch.Tensor]) -> int:
        there = {tensor.untyped_storage().data_ptr() for tensor in without}
        return sum(size for place, (ref, size) in self.made.items() if not ref.expired() and place not in there)


def kept_bytes(model: VideoDiT, batch: int, n_ctx: int, text: int) -> int:
    """What is there after a forward pass for its backward pass, the parameters and the inputs left out."""
    context, mask = torch.randn(batch, text, 64), torch.ones(batch, text, dtype=torch.bool)
    inputs = (torch.randn(batch, 4, 1, 1, n_ctx), torch.rand(batch), context, mask)
    with torch.no_grad():  # fills the cache of rotary tables
        model(*inputs)
    with Allocations() as allocations:
        prediction = model(*inputs)
    return allocations.living([*model.parameters(), *inputs, prediction])


@pytest.mark.parametrize("recompute", [False, True, "selective"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_activations_formula_is_what_a_forward_pass_keeps(dtype: str, recompute: bool | str) -> None:
    """Counted on the CPU with SDPA. Where the model changes, count anew: ``KEPT`` and its neighbours."""
    layers, width, clips, n_ctx, text = 4, 128, 3, 96, 16
    model = VideoDiT(DiTConfig(layers, width, 2, 4, (1, 1, 1), 64), dtype=getattr(torch, dtype))
    model.recompute = recompute
    counted = kept_bytes(model, clips, n_ctx, text)
    shape = {"width": width, "n_ctx": n_ctx, "text_tokens": text, "clips": clips, "dtype": dtype}
    formula = memory_formula.activation_bytes(layers=layers, recompute=recompute, **shape)
    if recompute:  # one block's rest is there only while the backward pass is at it
        formula -= memory_formula.activation_bytes(layers=1, recompute=False, **shape)
        formula += clips * n_ctx * width * memory_formula.KEPT_OUTSIDE
    assert formula == pytest.approx(counted, rel=0.15)


def test_what_keeps_a_run_from_going_on_keeps_the_dry_run_from_it(cache: Path, tmp_path: Path) -> None:
    warmup = "optim.warmup_tokens=128"
    run(cache, tmp_path, "x", "train.tokens=1280", warmup)
    for keys, message in (
        (("train.milestones=[640,896]", "train.tokens=2560"), "the run is already at 1,280 tokens"),
        (("train.tokens=1152",), "the run already has 1,280 tokens"),
    ):
        with pytest.raises(UserError, match=message):
            dry_run(config(cache, tmp_path, "name=x", warmup, *keys))
