"""The layout in a plan, its optimiser and its hours: the config that is written trains the plan that is printed."""

import json
import math

import pytest
import yaml

from tests.tools.test_plan import PAPER, ROOT, lawlike, refused, said, trainable


def planned_file(tmp_path, *words, law=PAPER):
    """(The plan as JSON, the keys of the YAML that it wrote)."""
    out = tmp_path / "planned.yaml"
    planned = json.loads(said("--law", law, "--out", out, "--json", *words))
    return planned, yaml.safe_load(out.read_text())


def test_the_config_is_the_plan_that_was_printed(tmp_path):
    """Hours are counted at bfloat16's peak on so many GPUs, and the config trains so."""
    planned, written = planned_file(tmp_path, "--flops", "1e22", "--gpus", "8")
    assert (tmp_path / written["extends"]).resolve() == ROOT / "configs" / "train" / "gpu.yaml"
    keys = ("parallel", "micro_batch", "activation_checkpointing")
    assert (planned["gpus"], *(planned[key] for key in keys)) == (8, "fsdp", 11, False)
    assert 70 < planned["memory_gb"] < 0.9 * 80
    assert planned["fits_memory"] is True
    assert planned["hours"] == pytest.approx(planned["gpu_hours"] / 8)
    assert planned["gpu_hours"] == pytest.approx(1e22 / (0.4 * 989e12) / 3600)
    assert planned["assumptions"]["memory"] == ["text of 512 tokens x 4096 (T5)", "latents of 16 channels"]
    train = trainable(tmp_path / "planned.yaml").config.train
    assert (train.dtype, train.compile) == ("bfloat16", True)
    assert [getattr(train, key) for key in keys] == [planned[key] for key in keys]
    assert train.batch_tokens == planned["B"]
    printed = said("--law", PAPER, "--flops", "1e22", "--gpus", "8", "--out", tmp_path / "again.yaml")
    for text in (
        "877.7 on 8 x h100",
        "fsdp, micro-batch of 11 clips, no activation checkpointing",
        "71.5 of 80 GB",
        "assumed text of 512 tokens",
        "h100 at MFU 0.4 in bfloat16",
        "train it with: torchrun --standalone --nproc_per_node 8 train.py --config",
    ):
        assert text in printed, text


@pytest.mark.parametrize("gpu", ["h100", "a100"])
@pytest.mark.parametrize("more", [(), ("--gpus", "2"), ("--gpus", "8"), ("--gpus", "256")])
def test_16x3072_fits_80_gb(gpu, more):
    words = ("--law", PAPER, "--params", "2.416e9", "--flops", "1e22", "--gpu", gpu, "--json", *more)
    planned = json.loads(said(*words))
    assert (planned["size"], planned["n_ctx"]) == ("16x3072", 1280)
    assert planned["memory_gb"] <= 0.9 * 80
    assert planned["B"] % (planned["gpus"] * 1280) == 0
    assert not any("does not fit" in text for text in planned["warnings"])


def test_one_gpu_is_too_small_for_it_and_the_number_that_is_not_is_named():
    words = ("--law", PAPER, "--params", "2.416e9", "--flops", "1e22", "--json")
    planned = json.loads(said(*words, "--gpus", "1"))
    assert (planned["fits_memory"], planned["memory_gb"] > 80) == (False, True)
    (warning,) = (text for text in planned["warnings"] if "does not fit" in text)
    assert warning.endswith("of whose 80 GB a plan fills 90%; --gpus 2 would")
    assert any("activation checkpointing computes" in text and "53%" in text for text in planned["warnings"])
    larger = json.loads(said(*words, "--gpus", "1", "--gpu-memory", "141"))
    assert (larger["fits_memory"], larger["assumptions"]["gpu_memory_gb"]) == (True, 141)
    assert larger == json.loads(said(*words, "--gpus", "1", "--gpu", "h200")) | {"assumptions": larger["assumptions"]}


def test_the_batch_moves_where_a_number_of_gpus_is_asked_for():
    """The law's 111 clips stay where nobody asks; the rate follows a batch that moves."""
    words = ("--law", PAPER, "--params", "1.07e9", "--tokens", "1e10", "--json")
    free, eight = json.loads(said(*words)), json.loads(said(*words, "--gpus", "8"))
    assert (free["B"], free["gpus"], free["micro_batch"]) == (111 * 1280, 3, 10)
    assert (eight["B"], eight["gpus"]) == (112 * 1280, 8)
    assert eight["lr"] / free["lr"] == pytest.approx((112 / 111) ** 0.738)
    assert eight["steps"] == math.ceil(1e10 / eight["B"])
    assert eight["loss"] == pytest.approx(free["loss"], rel=1e-5)
    few = json.loads(said(*words, "--batch", str(3 * 1280), "--gpus", "8"))
    assert (few["gpus"], few["B"]) == (3, 3 * 1280)
    assert any("can be shared by at most 3 GPUs, not by 8" in text for text in few["warnings"])
    assert "12 clips cannot be shared by 8 GPUs; nearest 10240 and 20480" in refused(
        *words[2:-1], "--batch", str(12 * 1280), "--gpus", "8"
    )


def test_a_batch_is_not_moved_past_the_run(tmp_path):
    """12 clips lie between 8 and 16, and are nearer to none; the run has 13."""
    law = lawlike(tmp_path / "law.json", batch={"coefficient": 12 * 1280.0, "T": 0.0, "N": 0.0})
    words = ("--law", law, "--params", "1.5e7", "--tokens", str(13 * 1280), "--json")
    assert json.loads(said(*words))["B"] == 12 * 1280
    assert json.loads(said(*words, "--gpus", "8"))["B"] == 8 * 1280
    assert json.loads(said(*words[:-2], str(20 * 1280), "--json", "--gpus", "8"))["B"] == 16 * 1280


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--gpus 0", "--gpus 0: must be a whole number from 1 to 65536"),
        ("--gpus -8", "--gpus -8: must be"),
        ("--gpus 1000000", "--gpus 1000000: must be"),
        ("--gpu-memory 0", "--gpu-memory 0: GB of one GPU"),
        ("--gpu-memory nan", "--gpu-memory nan: GB of one GPU"),
    ],
)
def test_gpus_that_there_are_not_are_refused(words, message):
    assert message in refused("--flops", "1e20", *words.split())


def test_a_plan_trains_with_the_optimiser_of_the_laws_runs(tmp_path):
    recipe = {
        "optimizer": "adamw",
        "beta1": 0.85,
        "beta2_half_life": 1e5,
        "beta2_range": [0.8, 0.99],
        "eps": 1e-9,
        "weight_decay": 0.0,
        "clip": 0.5,
        "schedule": "constant",
        "warmup": 0.2,
        "ema_width": 0.05,
        "process": "rectified_flow",
        "dtype": "float32",
    }
    law = lawlike(tmp_path / "law.json", recipe=recipe)
    planned, _ = planned_file(tmp_path, "--flops", "1e20", law=law)
    run = trainable(tmp_path / "planned.yaml")
    keys = ("beta1", "beta2_half_life", "beta2_range", "eps", "weight_decay", "clip", "schedule")
    assert {key: getattr(run.config.optim, key) for key in keys} == {key: recipe[key] for key in keys}
    assert run.config.optim.warmup_tokens == round(0.2 * math.ceil(planned["T"]))
    (warning,) = (text for text in planned["warnings"] if "fitted with" in text)
    assert "train.dtype 'bfloat16', but the law was fitted with 'float32'" in warning
    # The share that train.py's own rule has is left to it: a run whose end is moved warms up by its own length.
    law = lawlike(tmp_path / "law.json", recipe=recipe | {"warmup": 0.1})
    _, written = planned_file(tmp_path, "--flops", "1e20", law=law)
    assert "warmup_tokens" not in written["optim"]
    law = lawlike(tmp_path / "law.json", recipe=recipe | {"schedule": "wsd", "decay_fraction": 0.4, "heads": "of 64"})
    planned, written = planned_file(tmp_path, "--flops", "1e20", law=law)
    assert written["optim"]["decay_fraction"] == 0.4
    assert any("model.heads None, but the law was fitted with 'of 64'" in text for text in planned["warnings"])


def test_a_base_keeps_the_keys_that_it_sets(tmp_path):
    """Of the law's optimiser and of the layout, the rest is written; the layout where GPUs are asked for."""
    recipe = {"beta1": 0.85, "clip": 0.5, "warmup": 0.2}
    law, base = lawlike(tmp_path / "law.json", recipe=recipe), tmp_path / "base.yaml"
    keys = {"optim": {"clip": 2.0, "warmup_tokens": 1000}, "train": {"dtype": "bfloat16", "parallel": "fsdp"}}
    base.write_text(yaml.safe_dump(keys))
    planned, written = planned_file(tmp_path, "--flops", "1e20", "--base", base, law=law)
    free = {"beta2_half_life", "beta2_range", "eps", "weight_decay"}
    assert written["optim"].keys() == {"lr", "beta1", "schedule"} | free
    assert written["train"].keys() == {"tokens", "batch_tokens"}
    assert planned["parallel"] == "fsdp"
    warnings = [text for text in planned["warnings"] if "fitted with" in text]
    assert [("optim.clip 2.0" in text, "optim.warmup_tokens 1000" in text) for text in warnings] == [
        (True, False),
        (False, True),
    ]
    _, written = planned_file(tmp_path, "--flops", "1e20", "--base", base, "--gpus", "4", law=law)
    assert written["train"].keys() == {"tokens", "batch_tokens", "micro_batch", "activation_checkpointing"}
    run = trainable(tmp_path / "planned.yaml")
    assert (run.config.train.parallel, run.config.train.dtype) == ("fsdp", "bfloat16")
    assert (run.config.optim.clip, run.config.optim.beta1, run.config.optim.warmup_tokens) == (2.0, 0.85, 1000)


def test_hours_are_counted_at_the_peak_of_the_dtype_that_trains(tmp_path):
    """float32 is without TF32: 66.9e12 of an H100, and all that a V100 has, 15.7e12."""
    base = tmp_path / "base.yaml"
    base.write_text("train:\n  dtype: float32\n")
    words = ("--law", PAPER, "--flops", "1e20", "--json")
    slow = json.loads(said(*words, "--base", base))
    assert slow["gpu_hours"] == pytest.approx(1e20 / (0.4 * 66.9e12) / 3600)
    assert slow["assumptions"]["dtype"] == "float32"
    budget = json.loads(said("--law", PAPER, "--gpu-hours", slow["gpu_hours"], "--json", "--base", base))
    assert budget["C"] == pytest.approx(1e20)
    planned, written = planned_file(tmp_path, "--flops", "1e20", "--gpu", "v100")
    assert planned["gpu_hours"] == pytest.approx(1e20 / (0.4 * 15.7e12) / 3600)
    assert written["train"]["dtype"] == planned["assumptions"]["dtype"] == "float32"


def test_the_text_of_the_bases_caches_is_counted(tmp_path):
    """Where the caches are there nothing is assumed: the longest text of all of them."""
    for name, tokens in (("a", 8), ("b", 24)):
        (tmp_path / name).mkdir()
        index = {"latent_shape": [16, 5, 4, 4], "text_tokens": tokens, "text_dim": 64}
        (tmp_path / name / "index.json").write_text(json.dumps(index))
    base, memory = tmp_path / "base.yaml", []
    for caches in (["a"], ["a", "b"]):
        base.write_text(yaml.safe_dump({"data": {"cache": [str(tmp_path / name) for name in caches]}}))
        planned = json.loads(said("--law", PAPER, "--flops", "1e18", "--base", base, "--json"))
        assert planned["assumptions"]["memory"] == []
        memory.append(planned["memory_gb"])
    assert memory[0] < memory[1]


def test_hours_at_an_mfu_that_no_gpu_reaches_are_warned_about():
    """80 tokens at a time, as the clips of the miniature study are alone, leave an H100 waiting for its memory."""
    law = ROOT / "results" / "mini" / "law.json"
    small = json.loads(said("--law", law, "--flops", "1e15", "--gpus", "6", "--json"))
    assert (small["gpus"], small["micro_batch"], small["n_ctx"]) == (6, 1, 80)
    assert any("80 tokens at a time keep the GPU waiting" in text for text in small["warnings"])
    assert json.loads(said("--law", law, "--flops", "1e15", "--json"))["gpus"] == 1
    large = json.loads(said("--law", PAPER, "--flops", "1e22", "--json"))
    assert not any("waiting" in text for text in large["warnings"])


@pytest.mark.parametrize(
    ("gpus", "start"),
    [
        (1, "python"),
        (6, "torchrun --standalone --nproc_per_node 6"),
        (8, "torchrun --standalone --nproc_per_node 8"),
        (64, "torchrun --nnodes 8 --nproc_per_node 8"),
        (12, "torchrun --nnodes 2 --nproc_per_node 6"),
    ],
)
def test_the_command_that_trains_it_has_the_gpus(tmp_path, gpus, start):
    words = ("--law", PAPER, "--flops", "1e22", "--gpus", gpus, "--out", tmp_path / "planned.yaml")
    printed = said(*words)
    assert f"train it with: {start} train.py --config {tmp_path / 'planned.yaml'} data.cache=FOLDER\n" in printed
    assert ("--node_rank" in printed) == (gpus > 8)


def test_a_base_without_a_number_of_gpus_is_planned_for_the_process_that_it_starts(tmp_path):
    """Batch, hours, layout and command are those of one GPU, and the layout is the base's with its defaults."""
    base, words = tmp_path / "base.yaml", ("--law", PAPER, "--params", "1.07e9", "--tokens", "2.25e10")
    base.write_text("train:\n  dtype: bfloat16\n")
    planned, written = planned_file(tmp_path, *words[2:], "--base", base)
    free = json.loads(said(*words, "--json"))
    clips = round(planned["B_opt"] / 1280)
    assert (clips % 2, planned["B"], planned["gpus"]) == (1, clips * 1280, 1)  # an odd number is not moved
    assert free["gpus"] > 1
    assert planned["hours"] == planned["gpu_hours"]
    assert written["train"].keys() == {"tokens", "batch_tokens"}
    assert not trainable(tmp_path / "planned.yaml").config.train.activation_checkpointing
    printed = said(*words, "--base", base, "--out", tmp_path / "again.yaml")
    assert "train it with: python train.py --config" in printed
    assert f"{planned['hours']:.4g} on 1 x h100" in printed
    # On 66 GB 2.4e9 parameters need activation checkpointing, which is written with --gpus alone.
    large = ("--law", PAPER, "--params", "2.416e9", "--tokens", "1e10", "--json", "--gpu-memory", "66")
    held, moved = (json.loads(said(*large, "--base", base, *more)) for more in ((), ("--gpus", "1")))
    assert (held["activation_checkpointing"], held["fits_memory"]) == (False, False)
    assert any(text.endswith("; --gpus 1 would") for text in held["warnings"])
    assert (moved["activation_checkpointing"], moved["fits_memory"]) == (True, True)


def test_a_batch_that_was_given_is_advised_a_number_of_gpus_that_shares_it():
    """4,191 clips are 3 times 1,397: two GPUs would suffice and cannot share them."""
    words = ("--law", PAPER, "--params", "2.416e9", "--flops", "1e22", "--batch", str(4191 * 1280), "--json")
    (warning,) = (text for text in json.loads(said(*words, "--gpus", "1"))["warnings"] if "does not fit" in text)
    assert warning.endswith("; --gpus 3 would")
    assert json.loads(said(*words, "--gpus", "3"))["fits_memory"] is True


def test_a_recipe_of_fingerprints_is_not_compared_with_folders():
    """A recipe's vae and text are the data's; log.vae and log.text are where previews find theirs."""
    from videoscaling.training.planning.planned_config import read_base, recipe_warnings

    base = read_base(str(ROOT / "configs" / "train" / "quickstart.yaml"))
    assert recipe_warnings({"vae": "e707829e2bdd99bf", "text": "c0ffee"}, base) == []
    (warning,) = recipe_warnings({"vae": "e707829e2bdd99bf", "weight_decay": 0.5}, base)
    assert "optim.weight_decay" in warning


def test_a_law_of_other_data_than_the_bases_cache_warns(tmp_path):
    from videoscaling.training.planning.planned_config import read_base, recipe_warnings

    (tmp_path / "latents").mkdir()
    index = {"fingerprint": "abc", "latent_shape": [16, 5, 4, 4], "text_tokens": 8, "text_dim": 64}
    (tmp_path / "latents" / "index.json").write_text(json.dumps(index))
    (tmp_path / "base.yaml").write_text(f"data: {{cache: {tmp_path / 'latents'}}}\n")
    base = read_base(str(tmp_path / "base.yaml"))
    assert recipe_warnings({"data": "abc"}, base) == []
    (warning,) = recipe_warnings({"data": "def"}, base)
    assert warning.endswith(
        "of fingerprint abc, but the law was fitted on data of fingerprint def: its losses are of other clips"
    )
