import json
import math
from pathlib import Path

import pytest
import yaml

from tests.commands import call
from videoscaling.training.config import load_config
from videoscaling.training.run import resolve

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "configs" / "laws" / "paper.json"


def run(*words):
    return call("tools/plan.py", *words)


def refused(*words):
    """What the command says; asserts that it is one line, with status 2."""
    done = run("--law", PAPER, *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    return done.stderr


def said(*words):
    """What the command prints."""
    done = run(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lawlike(path, **changes):
    """The paper's law as a file, changed; ``fit`` and ``provenance`` are added to."""
    law = json.loads(PAPER.read_text())
    for key, value in changes.items():
        law[key] = law[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(law))
    return path


def test_json_has_what_machines_read():
    planned = json.loads(run("--law", PAPER, "--flops", "1e22", "--json").stdout)
    for key in (
        "N",
        "T",
        "B",
        "lr",
        "steps",
        "loss",
        "C",
        "n_ctx",
        "layers",
        "width",
        "heads",
        "gpu_hours",
        "inference_flops_per_clip",
    ):
        value = planned[key]
        assert isinstance(value, int | float) or {"value", "low", "high"} <= set(value)
    assert planned["N_opt"]["predicted"] == pytest.approx(2.435e9, rel=1e-3)


def test_table_for_people():
    done = run("--law", PAPER, "--params", "1.07e9", "--tokens", "1e10")
    assert done.returncode == 0
    for text in ("learning rate", "0.000178", "142080", "0.51268", "h100 at MFU 0.4"):
        assert text in done.stdout


def test_writes_a_config_that_extends_the_base(tmp_path):
    base = tmp_path / "configs" / "base.yaml"
    base.parent.mkdir()
    base.write_text("data:\n  cache: x\n")
    out = tmp_path / "runs" / "planned.yaml"
    done = run("--law", PAPER, "--flops", "1e20", "--base", base, "--out", out, "--json")
    planned, config = json.loads(done.stdout), yaml.safe_load(out.read_text())
    assert (out.parent / config.pop("extends")).resolve() == base
    assert config["model"] == {"size": f"{planned['layers']}x{planned['width']}"}
    assert config["train"] == {"tokens": pytest.approx(planned["T"], abs=1), "batch_tokens": planned["B"]}
    assert config["optim"]["lr"] == pytest.approx(planned["lr"], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--law", "missing.json", "--flops", "1e20"), "no such file"),
        (("--law", PAPER), "nothing is fixed: give --flops"),
        (("--law", PAPER, "--flops", "1e5"), "no model has about"),
        (("--law", PAPER, "--flops", "1e20", "--base", "missing.yaml"), "no such configuration file"),
        (("--law", __file__, "--flops", "1e20"), "not a JSON file"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, message):
    done = run(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_base_of_another_recipe_is_warned_about(tmp_path):
    law = json.loads(PAPER.read_text())
    law["recipe"] = {"weight_decay": 0.0, "ema_width": 0.05, "timesteps": "uniform", "vae": None}
    (tmp_path / "law.json").write_text(json.dumps(law))
    base = tmp_path / "base.yaml"
    base.write_text("optim:\n  weight_decay: 0.1\n")
    done = run("--law", tmp_path / "law.json", "--flops", "1e20", "--base", base, "--json")
    reported = [text for text in json.loads(done.stdout)["warnings"] if "fitted with" in text]
    assert len(reported) == 2
    assert "optim.weight_decay 0.1, but the law was fitted with 0.0" in reported[0]
    assert "diffusion.timesteps 'logit_normal'" in reported[1]


def test_clips_are_those_of_the_bases_cache(tmp_path):
    """The paper's clips have 1280 tokens; a plan for other data must count and batch its own."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "index.json").write_text(json.dumps({"latent_shape": [16, 5, 4, 4]}))
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump({"data": {"cache": str(tmp_path / "cache")}, "train": {"dtype": "auto"}}))
    budget = ("--law", PAPER, "--flops", "1e20", "--json")
    planned = json.loads(run(*budget, "--base", base).stdout)
    assert planned["n_ctx"] == 80
    # A base that no number of GPUs is given for trains as one process.
    without = json.loads(run(*budget, "--n-ctx", 80, "--gpus", 1).stdout)
    assert planned["gpus"] == 1
    # The index says nothing of the text.
    assert planned["assumptions"].pop("memory") == ["text of 512 tokens x 4096 (T5)"]
    assert without["assumptions"].pop("memory") == ["text of 512 tokens x 4096 (T5)", "latents of 16 channels"]
    assert planned == without | {"warnings": planned["warnings"]}
    refused = run(*budget, "--base", base, "--n-ctx", 1280)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "have 80 tokens" in refused.stderr


NUMBERS = (
    "flops",
    "gpu-hours",
    "tokens",
    "loss",
    "params",
    "batch",
    "n-ctx",
    "tolerance",
    "mfu",
    "sampler-steps",
    "serve-clips",
)


@pytest.mark.parametrize("option", NUMBERS)
def test_numbers_beyond_sense_are_refused_by_name(option):
    budget = () if option in ("flops", "gpu-hours", "tokens", "loss") else ("--flops", "1e20")
    whole = option in ("n-ctx", "sampler-steps")
    values = ("0", "-1", "9" * 400) + (() if whole else ("nan", "inf", "-inf", "1e-300", "1e300"))
    for value in values:
        said = refused(f"--{option}={value}", *budget)
        assert f"error: --{option} " in said
        assert ": must be a number from 1e-09 to " in said
    done = run("--law", PAPER, f"--{option}=x", *budget)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    kind = "a whole number" if whole else "a number without a unit"
    assert f"error: --{option} 'x': must be {kind}, such as " in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--flops 1e20 --mfu 1.01", "--mfu 1.01: must be a number from 1e-09 to 1"),
        ("--flops 1e20 --gpu a100x", "unknown GPU 'a100x'; did you mean 'a100'"),
        ("--flops 1e20 --estimator best", "unknown estimator 'best'"),
        ("--flops 1e20 --tokens 1e9", "--flops and --tokens do not fix a plan"),
        ("--params 1e9", "--params does not fix a plan"),
        ("--params 1e9 --tokens 1e9 --flops 1e20", "--flops and --params and --tokens do not fix a plan"),
        ("--tokens 1e9 --serve-clips 1e6", "--serve-clips trades tokens for size: it contradicts --tokens"),
        ("--params 1e9 --flops 1e20 --serve-clips 1e6", "--serve-clips chooses N: it contradicts --params"),
        ("--flops 1e20 --batch 1280.5", "no whole number of clips: nearest 1280 and 2560"),
        ("--loss 100", "--loss 100 is no plan's"),
        ("--loss 0.4856", "the law's floor is 0.4856"),
        ("--params 1.5e7 --loss 0.516984", "never reaches loss 0.516984 (in 1e+20 tokens): by law 'paper' its limit"),
    ],
)
def test_what_contradicts_itself_or_cannot_be_reached(words, message):
    assert message in refused(*words.split())


def test_the_limit_named_is_the_sizes_own():
    """Just above the limit that the refusal names there is a plan, and just below there is none."""
    said = refused("--params", "1.5e7", "--loss", "0.5")
    limit = float(said.split()[-1])
    assert 0.5 < limit < 0.53
    assert run("--law", PAPER, "--params", "1.5e7", "--loss", limit + 1e-3).returncode == 0
    assert "never reaches" in refused("--params", "1.5e7", "--loss", limit - 1e-6)


def test_the_smallest_tolerance_leaves_the_best_size():
    planned = json.loads(run("--law", PAPER, "--flops", "1e20", "--tolerance", "1e-9", "--json").stdout)
    near = planned["N_within_tolerance"]
    assert near["low"] <= near["high"]
    assert near["low"] == pytest.approx(planned["N_opt"]["minimised"], rel=0.01)


def test_a_range_of_sizes_without_an_end_is_said_to_have_none(tmp_path):
    law = lawlike(tmp_path / "flat.json", loss={"aN": 0.1, "aT": 0.12, "Linf": 2.0})
    words = ("--law", law, "--flops", "1e21", "--tolerance", "0.02")
    near = json.loads(said(*words, "--json"))["N_within_tolerance"]
    assert near["low"] is None
    assert f"below 100 (cheapest to serve) to {near['high']:.4g}\n" in said(*words)


def test_serving_says_what_it_costs_and_saves():
    """The budget is overrun for the sake of serving: by how much, and what is saved against the plan without."""
    words = ("--law", PAPER, "--flops", "1e21", "--json")
    alone, served = (json.loads(said(*words, *more)) for more in ((), ("--serve-clips", "1e8")))
    reported = served["serving"]
    assert "serving" not in alone
    assert reported["flops"] == pytest.approx(1e8 * served["inference_flops_per_clip"])
    assert reported["total_flops"] == pytest.approx(served["C"] + reported["flops"])
    without = alone["C"] + 1e8 * alone["inference_flops_per_clip"]
    assert reported["without"] == {"N": alone["N"], "C": alone["C"], "total_flops": pytest.approx(without)}
    assert reported["training_excess"] == pytest.approx(served["C"] / 1e21 - 1)
    assert reported["saved"] == pytest.approx(1 - reported["total_flops"] / without)
    assert 0 < reported["saved"] < 1 < 1 + reported["training_excess"]
    printed = said(*words[:-1], "--serve-clips", "1e8")
    over = f"{reported['training_excess']:.0%}"
    assert f"training takes {over} more than the budget" in printed
    assert f"{reported['flops']:.4g} FLOPs for 1e+08 clips, {reported['total_flops']:.4g} with training" in printed
    assert f"with training: {reported['saved']:.1%} less than the plan without serving" in printed
    # Whichever budget a plan has, its sizes are said to be for it.
    assert f"at {served['C']:.4g} FLOPs" in printed


def test_what_a_law_was_doubtful_of_is_said_again(tmp_path):
    """Forced or not, the first of its warnings; and a law that was fitted with other costs than the plan's."""
    law = lawlike(tmp_path / "a.json", fit={"forced": True, "warnings": ["forced: only 0 of 3 grids", *"bcdef"]})
    warnings = json.loads(said("--law", law, "--flops", "1e20", "--json"))["warnings"]
    assert [text for text in warnings if text.startswith("law 'paper': ")] == [
        "law 'paper': forced: only 0 of 3 grids",
        "law 'paper': b",
        "law 'paper': c",
        "law 'paper': 3 more in its fit.warnings",
    ]
    law = lawlike(tmp_path / "b.json", n_ctx=None, provenance={"flops": "6 N T, assumed"})
    warnings = json.loads(said("--law", law, "--flops", "1e20", "--n-ctx", "1280", "--json"))["warnings"]
    (cost,) = (text for text in warnings if "6 N T, assumed" in text)
    assert "C_token" in cost
    assert "fit.py --n-ctx 1280" in cost
    assert not any("N T" in text for text in json.loads(said("--law", PAPER, "--flops", "1e20", "--json"))["warnings"])


def test_the_config_has_a_name_and_the_command_all_it_needs(tmp_path):
    out, base = tmp_path / "big_one.yaml", tmp_path / "base.yaml"
    budget = ("--law", PAPER, "--flops", "1e20", "--out", out)
    assert "data.cache=FOLDER" in said(*budget)
    assert yaml.safe_load(out.read_text())["name"] == "big_one"
    base.write_text("name: base\n")
    assert "data.cache=FOLDER" in said(*budget, "--base", base)
    base.write_text(f"data:\n  cache: {tmp_path / 'later'}\n")
    printed = said(*budget, "--base", base)
    assert f"train it with: python train.py --config {out}\n" in printed
    assert f"n_ctx 1280 is the law's: {tmp_path / 'later'}, the base's cache, is not there yet" in printed


def test_the_table_has_the_batchs_interval_and_its_extrapolation(tmp_path):
    draws = [[2e4, 0.8, 0.19, 2e-4, -0.05, -0.16], [2.4e4, 0.8, 0.19, 2.2e-4, -0.05, -0.16]] * 2
    columns = [f"{part}.{name}" for part in ("batch", "lr") for name in ("coefficient", "T", "N")]
    law = lawlike(tmp_path / "a.json", draws=draws, fit={"draw_columns": columns}, domain={"B": [1e4, 1e5]})
    printed = said("--law", law, "--params", "1.07e9", "--tokens", "1e10")
    planned = json.loads(said("--law", law, "--params", "1.07e9", "--tokens", "1e10", "--json"))
    best = planned["B_opt"]
    assert f"142080  best {best['value']:.4g}  [{best['low']:.4g}, {best['high']:.4g}]" in printed
    assert planned["extrapolation"]["B"] == pytest.approx(1.4208)
    assert ", B 1.42x, " in printed


def test_help_has_the_defaults():
    text = " ".join(said("--help").split())
    for reported in ("default 0.4", "default 0.001", "default 50", "100 times", "docs/laws.md", "overrides the law's"):
        assert reported in text, reported


def trainable(out, n_ctx=1280):
    """The written config as train.py resolves it, with a cache of such clips."""
    return resolve(load_config(out, []), {"latent_shape": [4, n_ctx, 1, 1], "fingerprint": ""})


@pytest.mark.parametrize("stem", ["planned", "a: b #c", "1e5", 'ein "Ü" \U0001f600'])
def test_whatever_the_base_says_the_config_trains_the_plan(tmp_path, stem):
    """The base's own end, milestones and shape are not the plan's, and its name may be any."""
    folder = tmp_path / "x: y #z"
    folder.mkdir()
    base, out = folder / "base #1.yaml", tmp_path / f"{stem}.yaml"
    keys = {
        "train": {"flops": 1e17, "milestones": [1000000, 2000000000, 10**12], "micro_batch": 2},
        "model": {"layers": 4, "width": 128, "heads": 4},
        "data": {"cache": "later"},
    }
    base.write_text(yaml.safe_dump(keys))
    planned = json.loads(said("--law", PAPER, "--flops", "1e20", "--base", base, "--out", out, "--json"))
    run = trainable(out)
    assert (run.config.train.tokens, run.config.train.flops) == (math.ceil(planned["T"]), None)
    assert run.config.train.milestones == [1000000, 2000000000, math.ceil(planned["T"])]
    assert (run.config.train.batch_tokens, run.config.train.micro_batch) == (planned["B"], 2)
    assert (run.config.model.layers, run.config.model.width) == (planned["layers"], planned["width"])
    assert (run.config.name, run.config.data.cache) == (stem, "later")
    (dropped,) = [text for text in planned["warnings"] if "milestone" in text]
    assert "1000000000000" in dropped


def test_a_base_that_no_run_can_have_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "index.json").write_text(json.dumps({"latent_shape": [192, 2, 4, 4]}))
    base, out = tmp_path / "base.yaml", tmp_path / "out.yaml"
    base.write_text(yaml.safe_dump({"data": {"cache": str(tmp_path / "cache")}}))
    words = ("--params", "8.4e6", "--tokens", "1e8", "--base", base, "--out", out)
    assert "too narrow for tokens of 192 numbers" in refused(*words)
    assert not out.exists()
    base.write_text(base.read_text() + "model:\n  patch: [1, 3, 3]\n")
    assert "model.patch=[1, 3, 3]: does not divide" in refused(*words)
    assert not out.exists()


@pytest.mark.parametrize(
    "index", ["[]", "3", '{"latent_shape": 5}', '{"latent_shape": [16, 5, 4]}', '{"latent_shape": [16, 5, 4, "x"]}']
)
def test_a_bad_index_of_the_bases_cache_is_named(tmp_path, index):
    (tmp_path / "index.json").write_text(index)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"data": {"cache": str(tmp_path)}}))
    assert "index.json: not the index of a latent cache" in refused(
        "--flops", "1e20", "--base", tmp_path / "base.yaml"
    )


def test_an_unfinished_cache_is_not_there_yet(tmp_path):
    (tmp_path / "index.json").write_text(json.dumps({"finished": False, "settings": {}}))
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"data": {"cache": str(tmp_path)}}))
    planned = json.loads(said("--law", PAPER, "--flops", "1e20", "--base", tmp_path / "base.yaml", "--json"))
    assert planned["n_ctx"] == 1280
    assert any("is not there yet" in text for text in planned["warnings"])


@pytest.mark.parametrize("part", ["batch", "lr", "loss"])
def test_draws_of_some_laws_give_the_intervals_that_they_can(tmp_path, part):
    """A rate's interval needs the batch's draws too, whose ridge it lies on."""
    names = ("coefficient", "T", "N") if part != "loss" else ("Tc", "aT", "Nc", "aN", "Linf")
    row = [json.loads(PAPER.read_text())[part][name] for name in names]
    law = lawlike(tmp_path / "law.json", draws=[row] * 4, fit={"draw_columns": [f"{part}.{name}" for name in names]})
    planned = json.loads(said("--law", law, "--flops", "1e20", "--json"))
    drawn = {"batch": "B_opt", "lr": None, "loss": "loss"}[part]
    for name in ("B_opt", "lr", "loss"):
        assert isinstance(planned[name], dict) == (name == drawn)
    others = ", ".join(other for other in ("batch", "lr", "loss") if other != part)
    assert any(f"no intervals that need draws of {others}:" in text for text in planned["warnings"])
