"""`train.py --dry-run --account` is the plan's and the dry run's arithmetic, without data and steps."""

import json
import math
import re
from pathlib import Path

import pytest

from tests.commands import call
from tests.training.test_trainer import overrides
from videoscaling import ROOT
from videoscaling.models.dit import VideoDiT
from videoscaling.training.config import load_config
from videoscaling.training.planning import account as module
from videoscaling.training.planning.account import Machine, account, print_account
from videoscaling.training.planning.dry_run import dry_run
from videoscaling.utils.devices import GPUS
from videoscaling.utils.errors import UserError

GPU = ROOT / "configs" / "train" / "gpu.yaml"
LARGE = ["model.size=16x3072", "train.batch_tokens=5365760", "train.tokens=7e11", "optim.beta2_half_life=1e8"]
FITS = ["train.parallel=fsdp", "train.micro_batch=4"]


def test_a_large_run_without_data_or_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(GPU, [*LARGE, *FITS])
    assert print_account(config, 1280, Machine(gpus=8), as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["N"], found["steps"], found["clips_per_step"]) == (2_415_919_104, 130_457, 4192)
    assert found["parameters"]["total"] == 2_524_097_552
    assert found["config"]["train"]["dtype"] == "bfloat16"
    assert found["memory_gb"] == pytest.approx(33.9, abs=0.05)
    C = 130_457 * 5_365_760 * 0.75 * 2_415_919_104 * (7 + 1280 / 3072)
    assert found["flops"]["C"] == pytest.approx(C)
    assert found["time"]["gpu_hours"] == pytest.approx(C / (0.4 * 989e12) / 3600)
    assert found["time"]["hours"] == pytest.approx(found["time"]["gpu_hours"] / 8)
    assert found["assumptions"]["data"] == ["text of 512 tokens x 4096 (T5)", "latents of 16 channels"]
    assert found["warnings"] == []
    assert print_account(config, 1280, Machine(gpus=8), as_json=False) == 0
    text = capsys.readouterr().out
    for part in (
        "2,524,097,552",
        "8 x h100, fsdp, micro-batch of 4",
        "33.9 of 80 GB",
        "MFU 0.4 of 9.89e+14 FLOP/s",
        "assumed     text of 512 tokens",
    ):
        assert part in text


def test_what_does_not_fit_is_said_with_a_layout_that_does() -> None:
    (warning,) = account(load_config(GPU, LARGE), 1280, Machine(gpus=8))["warnings"]
    assert "does not fit" in warning
    assert "train.parallel=fsdp train.micro_batch=11 train.activation_checkpointing=false would" in warning
    (warning,) = account(load_config(GPU, LARGE), 1280, Machine(gpus=1))["warnings"]
    keys = "train.parallel=fsdp train.micro_batch=5 train.activation_checkpointing=false"
    assert warning.endswith(f"; --gpus 2 would, with {keys}")
    (warning,) = account(load_config(GPU, LARGE), 1280, Machine(gpus=1, memory_gb=1))["warnings"]
    assert warning.endswith("; no number of such GPUs would")


@pytest.mark.parametrize(("memory_gb", "more"), [(40, ["train.micro_batch=4"]), (80, ["model.attention=plain"])])
def test_the_number_of_gpus_and_the_layout_that_are_named_can_run(memory_gb: float, more: list[str]) -> None:
    """Four GPUs share 4,192 clips, three do not. What is named is accounted for without a warning."""
    machine = Machine(memory_gb=memory_gb)
    (warning,) = account(load_config(GPU, [*LARGE, *more]), 1280, machine)["warnings"]
    found = re.search(r"--gpus (\d+) would, with (.*)$", warning)
    assert found is not None
    assert 4192 % int(found[1]) == 0
    named = load_config(GPU, [*LARGE, *more, *found[2].split()])
    assert account(named, 1280, machine._replace(gpus=int(found[1])))["warnings"] == []


def test_long_clips_over_several_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    """One clip of 32,768 tokens fits no GPU; four divide it, also where there are fewer clips than GPUs."""
    keys = ["model.size=16x2048", f"train.batch_tokens={4 * 32_768}", "train.tokens=1e9", "optim.beta2_half_life=1e8"]
    (warning,) = account(load_config(GPU, [*keys, "train.parallel=fsdp"]), 32_768, Machine(gpus=4))["warnings"]
    assert "does not fit" in warning
    divided = load_config(GPU, [*keys, "train.parallel=fsdp", "train.context_parallel=4"])
    found = account(divided, 32_768, Machine(gpus=16))
    assert found["warnings"] == []
    print_account(divided, 32_768, Machine(gpus=16), as_json=False)
    assert "16 x h100, fsdp, clips over 4, micro-batch of 1" in capsys.readouterr().out
    (warning,) = account(divided, 32_768, Machine(gpus=8, memory_gb=40))["warnings"]
    assert "train.context_parallel=4" in warning


def test_memory_is_that_of_micro_batches_of_one_size() -> None:
    """524 clips of a process, at most 300 at a time, are two micro-batches of 262."""
    memory = [
        account(load_config(GPU, [*LARGE, f"train.micro_batch={size}"]), 1280, Machine(gpus=8))["memory"]
        for size in (262, 300, 523)
    ]
    assert memory[0] == memory[1] == memory[2]


def test_the_help_lists_the_gpus() -> None:
    done = call("train.py", "--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in GPUS)


def test_a_beta2_that_its_range_keeps_is_warned_about() -> None:
    (warning,) = account(load_config(GPU, [*LARGE, *FITS, "optim.beta2_half_life=5e6"]), 1280, Machine(gpus=8))[
        "warnings"
    ]
    assert "beta2 is clamped to the minimum of optim.beta2_range, 0.9: at B 5,365,760 tokens" in warning


def test_auto_is_what_the_gpu_has_and_float32_counts_at_its_own_peak() -> None:
    for gpu, keys, dtype in (("v100", [], "float32"), ("h100", ["train.dtype=float32"], "float32")):
        found = account(load_config(GPU, [*LARGE, *FITS, *keys]), 1280, Machine(gpu, 8))
        assert found["config"]["train"]["dtype"] == dtype
        peak = found["flops"]["C"] / (found["time"]["gpu_hours"] * 3600 * 0.4)
        assert peak == pytest.approx(GPUS[gpu].float32)


def test_with_a_cache_it_agrees_with_the_dry_run(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(None, overrides(cache, tmp_path, "x", "model.attention=sdpa", "train.micro_batch=2"))
    capsys.readouterr()
    assert dry_run(config, as_json=True) == 0
    run, found = json.loads(capsys.readouterr().out), account(config, None, Machine())
    run["memory"].pop("measured")
    for name in ("parameters", "N", "n_ctx", "tokens", "steps", "clips_per_step", "flops", "memory"):
        assert found[name] == run[name], name
    assert found["assumptions"]["data"] == []
    assert account(config, 32, Machine())["n_ctx"] == 32
    with pytest.raises(UserError, match="--n-ctx 80: the clips of .* have 32 tokens; leave it out"):
        account(config, 80, Machine())


@pytest.mark.parametrize(
    ("n_ctx", "machine", "message"),
    [
        (None, Machine(), "--account: no latent cache in data.cache, .* give --n-ctx"),
        (0, Machine(), "--n-ctx 0: must be a whole number from 1"),
        (1000, Machine(), "5365760: not a whole number of clips of 1000 tokens; nearest: 5365000 or 5366000"),
        (1280, Machine(gpus=7), "4,192 clips cannot be shared by 7 processes; nearest: 5358080 or 5367040"),
        (1280, Machine(gpus=0), "--gpus 0: must be"),
        (1280, Machine(gpu="h1000"), "unknown GPU 'h1000'; did you mean 'h100'"),
        (1280, Machine(mfu=math.nan), "--mfu nan: must be"),
        (1280, Machine(mfu=1.1), "--mfu 1.1: must be"),
        (1280, Machine(memory_gb=math.inf), "--gpu-memory inf: "),
    ],
)
def test_bad_input_is_named(n_ctx: int | None, machine: Machine, message: str) -> None:
    with pytest.raises(UserError, match=message):
        account(load_config(GPU, LARGE), n_ctx, machine)


@pytest.mark.parametrize(
    ("context", "gpus", "message"),
    [
        (
            3,
            8,
            r"context_parallel=3: must divide the processes \(8\), model.heads \(48\) and a .* \(1,280\); nearest: 2",
        ),
        (32, 32, "context_parallel=32: .*; nearest: 16"),
        (2, 1, "context_parallel=2: .*; nearest: 1"),
        (2, 6, "4,192 clips cannot be shared by 3 groups of 2 processes; nearest: 5364480 or 5368320"),
    ],
)
def test_clips_that_cannot_be_divided_are_refused(context: int, gpus: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        account(load_config(GPU, [*LARGE, f"train.context_parallel={context}"]), 1280, Machine(gpus=gpus))


@pytest.mark.parametrize(
    "wrong",
    [
        "model.attention=nope",
        "diffusion.process=nope",
        "diffusion.timesteps=nope",
        "validation.clips=1",
        "optim.beta2_range=[0,1] optim.beta2_half_life=1e30",
    ],
)
def test_what_no_run_can_have_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match="nope|beta2 is 1|validation.clips=1: must be 2 or more"):
        account(load_config(GPU, [*LARGE, *wrong.split()]), 1280, Machine(gpus=8))


def test_a_thousand_layers_are_counted_and_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr(module, "VideoDiT", lambda form: built.append(form.layers) or VideoDiT(form))
    keys = ["model.layers=1024", "model.width=64", "train.tokens=1e9", "train.batch_tokens=1280"]
    report = account(load_config(GPU, keys), 1280, Machine())
    assert report["N"] == 16 * 1024 * 64**2
    assert built == [1]
