"""Training is exact: however a run is laid out, interrupted or grown, its numbers are the same."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import videoscaling.training.validation
from tests.conftest import make_cache
from videoscaling.training.checkpoints.checkpoint import checkpoint_paths
from videoscaling.training.config import load_config
from videoscaling.training.model import MAX_WHOLE_BLOCKS
from videoscaling.training.step import TrainStep
from videoscaling.training.train import train
from videoscaling.training.trainer import Trainer
from videoscaling.utils.errors import UserError
from videoscaling.utils.results import write_result

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    "model.size=1x32",
    "train.batch_tokens=128",
    "train.tokens=6400",
    "optim.lr=3e-3",
    "optim.beta2_half_life=2e4",
    "validation.timesteps=2",
    "log.every_steps=1",
]


def overrides(cache: Path, out: Path, name: str, *more: str) -> list[str]:
    return [*SETTINGS, f"data.cache={cache}", f"out={out}", f"name={name}", *more]


def run(cache: Path, out: Path, name: str, *more: str) -> dict:
    assert train(load_config(None, overrides(cache, out, name, *more))) == 0
    return result(out / name)


def result(directory: Path) -> dict:
    return json.loads((directory / "result.json").read_text())


def metrics(directory: Path) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("tokens_per_second", "data_seconds")} for line in lines]


def losses(directory: Path) -> np.ndarray:
    return np.array([line["loss"] for line in metrics(directory)])


def command(cache: Path, out: Path, name: str, *more: str, processes: int = 1) -> list[str]:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*launch, str(ROOT / "train.py"), *overrides(cache, out, name, *more)]


def newest_step(directory: Path) -> int:
    paths = checkpoint_paths(directory / "checkpoints")
    return int(paths[0].name.removeprefix("step_")) if paths else 0


def test_a_milestone_does_not_know_what_follows(cache: Path, tmp_path: Path) -> None:
    short = run(cache, tmp_path, "short", "train.tokens=3200")
    long = run(cache, tmp_path, "long", "train.milestones=[3200]")
    assert short["milestones"] == long["milestones"][:1]
    assert short["run_id"] == long["run_id"]
    # And a run may grow: the same command with a later end continues where it was.
    grown = run(cache, tmp_path, "short", "train.tokens=6400")
    assert grown["milestones"] == long["milestones"]


def test_milestones_are_the_first_step_at_or_past_them(cache: Path, tmp_path: Path) -> None:
    done = run(cache, tmp_path, "x", "train.milestones=[100,200,250,300]", "train.tokens=1000")
    found = [(m["nominal"], m["tokens"]) for m in done["milestones"]]
    assert found == [(100, 128), (200, 256), (250, 256), (300, 384), (1000, 1024)]
    stored = np.load(tmp_path / "x" / "validation" / "1024.npy")
    last = done["milestones"][-1]
    assert stored.shape == (2, 16, 2)
    # Raw weights are scored on the first quarter of the clips, the average's on all: laws are fitted on the latter.
    assert np.isfinite(stored).sum((1, 2)).tolist() == [4 * 2, 16 * 2]
    np.testing.assert_allclose(np.nanmean(stored, (1, 2)), [last["val_loss"], last["ema_val_loss"]], rtol=1e-6)


def test_validation_is_the_same_for_any_batch(cache: Path, tmp_path: Path) -> None:
    one, many = (run(cache, tmp_path, f"b{b}", f"validation.batch={b}")["milestones"][-1] for b in (1, 16))
    assert one["ema_val_loss"] == pytest.approx(many["ema_val_loss"], rel=1e-6)


def test_training_lowers_the_loss(cache: Path, tmp_path: Path) -> None:
    done = run(cache, tmp_path, "x", "train.tokens=25600", "train.milestones=[1280]")
    first, last = done["milestones"][0], done["milestones"][-1]
    assert last["ema_val_loss"] < 0.95 * first["ema_val_loss"]


def test_a_diverged_run_is_a_result(cache: Path, tmp_path: Path) -> None:
    done = run(cache, tmp_path, "x", "optim.lr=1e30", "optim.clip=1e30")
    assert (done["status"], done["milestones"], done["milestones_asked"]) == ("diverged", [], [6400])
    assert train(load_config(None, overrides(cache, tmp_path, "x", "optim.lr=1e30", "optim.clip=1e30"))) == 0


@pytest.mark.parametrize("process", ["vp_linear/eps", "vp_cosine/v", "vp_zero_snr/x0"])
def test_every_family_trains(cache: Path, tmp_path: Path, process: str) -> None:
    name, target = process.split("/")
    done = run(cache, tmp_path, "x", f"diffusion.process={name}", f"diffusion.target={target}", "train.tokens=640")
    assert done["status"] == "done"


def test_bfloat16_and_schedules_train(cache: Path, tmp_path: Path) -> None:
    for schedule in ("cosine", "wsd"):
        done = run(cache, tmp_path, schedule, f"optim.schedule={schedule}", "train.dtype=bfloat16")
        assert done["status"] == "done"


def test_another_configuration_is_refused_with_the_difference(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "x", "train.tokens=640")
    with pytest.raises(UserError, match=r"made by another configuration \(optim.lr: 0.003 -> 0.001\)"):
        train(load_config(None, overrides(cache, tmp_path, "x", "optim.lr=1e-3", "train.tokens=640")))


@pytest.mark.parametrize("text", [None, "", "null", "[]", "{}", "[" * 10**5, "seed: 0\n", "\0", "name: [", "link"])
def test_a_damaged_configuration_is_replaced_by_the_checkpoints(
    cache: Path, tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture
) -> None:
    """The run's own file is written at each start. Without any, another configuration would continue the weights."""
    keys = ("train.tokens=384", "log.every_steps=100")
    run(cache, tmp_path, "x", *keys)
    path = tmp_path / "x" / "config.yaml"
    written = path.read_text()
    path.unlink()
    if text == "link":
        path.symlink_to(path)
    elif text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"another configuration \(optim.lr: 0.003 -> 0.001\)"):
        run(cache, tmp_path, "x", *keys, "train.tokens=640", "optim.lr=1e-3")
    capsys.readouterr()
    run(cache, tmp_path, "x", *keys, "train.tokens=640")
    assert path.read_text() == written.replace("tokens: 384", "tokens: 640").replace("- 384", "- 384\n  - 640")
    assert ("it is written anew" in capsys.readouterr().err) == (text not in (None, "link"))


def test_a_milestone_in_the_past_is_refused(cache: Path, tmp_path: Path) -> None:
    """It could only be scored at the wrong T, or not at all."""
    warmup = "optim.warmup_tokens=128"
    run(cache, tmp_path, "x", "train.milestones=[1280]", warmup)
    for late in ("train.milestones=[1280,2560]", "train.milestones=[640]"):
        with pytest.raises(UserError, match="the run is already at 6,400 tokens"):
            train(load_config(None, overrides(cache, tmp_path, "x", late, warmup, "train.tokens=12800")))
    with pytest.raises(UserError, match="past the run's end"):
        train(load_config(None, overrides(cache, tmp_path, "x", "train.milestones=[7000]", warmup)))


def test_fewer_tokens_than_a_run_has_are_refused_in_those_words(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "x", "checkpoint.final=ema")
    for tokens in (6400, 9600):  # as it was begun, and after it was asked for more
        run(cache, tmp_path, "x", "checkpoint.final=ema", f"train.tokens={tokens}")
        with pytest.raises(UserError, match=rf"^train.tokens=3200: .*x already has {tokens:,} tokens; ask for more"):
            train(load_config(None, overrides(cache, tmp_path, "x", "checkpoint.final=ema", "train.tokens=3200")))
    # One that was stopped before: its warm-up is a tenth of its first end, and another end would give another one.
    write_result(tmp_path / "x", result(tmp_path / "x") | {"tokens": 640})
    stopped = r"x was begun with a warm-up of 640 tokens, and this one would have 320; give optim.warmup_tokens=640 to"
    with pytest.raises(UserError, match=stopped):
        train(load_config(None, overrides(cache, tmp_path, "x", "checkpoint.final=ema", "train.tokens=3200")))
    for final in ("full", "ema"):  # without its optimiser such a run began again, and replaced the longer one's result
        more = (f"name={final}", f"checkpoint.final={final}", "optim.warmup_tokens=128", "train.milestones=[1280]")
        run(cache, tmp_path, final, *more)
        with pytest.raises(UserError, match=r"^train.tokens=3200: the run already has 6,400 tokens"):
            train(load_config(None, overrides(cache, tmp_path, final, *more, "train.tokens=3200")))
        assert result(tmp_path / final)["tokens"] == 6400
        assert "tokens: 6400" in (tmp_path / final / "config.yaml").read_text()  # a refusal leaves no mark


def test_more_clips_per_batch_than_there_are_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a batch of 97 clips, of which .* has 96; at most 3072 tokens$"):
        train(load_config(None, overrides(cache, tmp_path, "x", "train.batch_tokens=3104")))


def test_death_before_the_last_result_does_not_cost_the_run(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(cache, tmp_path, "whole", "checkpoint.final=ema")

    def die(self: Trainer, status: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_write_result", die)
        with pytest.raises(KeyboardInterrupt):
            train(load_config(None, overrides(cache, tmp_path, "x", "checkpoint.final=ema")))
    trained = metrics(tmp_path / "x")
    monkeypatch.setattr(TrainStep, "run", lambda *_: pytest.fail("trained again"))
    assert run(cache, tmp_path, "x", "checkpoint.final=ema")["milestones"] == whole["milestones"]
    assert metrics(tmp_path / "x") == trained


def test_divergence_between_log_lines_is_found_before_it_is_saved(cache: Path, tmp_path: Path) -> None:
    done = run(
        cache, tmp_path, "x", "optim.lr=1e30", "optim.clip=1e30", "log.every_steps=1000", "checkpoint.every_steps=3"
    )
    assert done["status"] == "diverged"
    assert checkpoint_paths(tmp_path / "x" / "checkpoints") == []


def test_logged_losses_are_means_whatever_the_interval_and_the_checkpoints(cache: Path, tmp_path: Path) -> None:
    run(cache, tmp_path, "each", "train.tokens=3840")
    each = losses(tmp_path / "each")
    run(cache, tmp_path, "x", "log.every_steps=10", "train.tokens=2304", "optim.warmup_tokens=384")  # 18 steps
    run(cache, tmp_path, "x", "log.every_steps=5", "train.tokens=3840", "optim.warmup_tokens=384")
    steps = [line["step"] for line in metrics(tmp_path / "x")]
    assert steps == [10, 20, 25, 30]
    # The second line covers steps 11 to 20, eight of them before the interval changed.
    wanted = [each[first:last].mean() for first, last in zip([0, 10, 20, 25], steps)]
    np.testing.assert_allclose(losses(tmp_path / "x"), wanted, rtol=1e-6)


def test_a_validation_that_fills_the_memory_continues_in_smaller_passes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plain = run(cache, tmp_path, "plain", "train.tokens=512")
    whole = videoscaling.training.validation.validate_rows

    def small_memory(*arguments: Any, **more: Any) -> Any:
        if more["batch"] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*arguments, **more)

    monkeypatch.setattr(videoscaling.training.validation, "validate_rows", small_memory)
    done = run(cache, tmp_path, "x", "train.tokens=512", "train.milestones=[256]", "validation.batch=8")
    assert done["milestones"][-1]["ema_val_loss"] == pytest.approx(plain["milestones"][-1]["ema_val_loss"], rel=1e-6)
    said = [line for line in capsys.readouterr().out.splitlines() if "out of GPU memory" in line]
    assert len(said) == 2  # found once, not at each milestone
    assert "validation.batch=2" in said[-1]


def test_one_validation_clip_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a standard error needs two"):
        train(load_config(None, overrides(cache, tmp_path, "x", "validation.clips=1")))
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("layers", [2, MAX_WHOLE_BLOCKS + 1], ids=["whole", "by block"])
def test_compiling_changes_no_loss(cache: Path, tmp_path: Path, layers: int) -> None:
    """Over 50 steps; and a compiled run that is interrupted continues bit for bit."""
    settings = (f"model.size={layers}x32", "optim.warmup_tokens=384")
    plain = run(cache, tmp_path, "plain", *settings)
    compiled = run(cache, tmp_path, "compiled", *settings, "train.compile=true")
    for tokens in (3200, 6400):
        run(cache, tmp_path, "resumed", *settings, "train.compile=true", f"train.tokens={tokens}")
    np.testing.assert_array_equal(losses(tmp_path / "resumed"), losses(tmp_path / "compiled"))
    assert len(losses(tmp_path / "plain")) == 50
    np.testing.assert_allclose(losses(tmp_path / "compiled"), losses(tmp_path / "plain"), rtol=1e-5)
    assert compiled["milestones"][0]["val_loss"] == pytest.approx(plain["milestones"][0]["val_loss"], rel=1e-5)


def test_data_without_enough_clips_repeats_in_a_new_order(tmp_path: Path) -> None:
    small = make_cache(tmp_path / "small", train=5, validation=4)
    done = run(small, tmp_path, "x", "train.tokens=1280")
    assert done["status"] == "done"
