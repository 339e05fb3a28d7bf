"""sample.py from a freshly trained checkpoint: the files, what they carry, and what does not change them."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.commands import call
from videoscaling import VideoDiT, VideoPipeline, read_curve
from videoscaling.data.export import to_bytes
from videoscaling.diffusion.validation import validation_times
from videoscaling.sample import parser, read_prompts
from videoscaling.training.checkpoints.exported import EMBEDDED, read_trained
from videoscaling.utils.errors import UserError

PROMPTS = ["a large red circle gliding left", "a small blue star resting", "two words"]


def python(script: str, *arguments: str, status: int = 0) -> str:
    out = call(script, *arguments)
    assert out.returncode == status, out.stderr
    return out.stderr if status else out.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of the embedded encoders' latents of synthetic clips, trained for twenty steps."""
    folder = tmp_path_factory.mktemp("run")
    cache = str(folder / "cache")
    python("tools/cache_latents.py", "--source", "synthetic", "--clips", "16", "--validation", "4", "--out", cache)
    settings = ["model.size=1x64", "train.batch_tokens=160", "train.tokens=3200", "optim.beta2_half_life=1e4"]
    settings += [f"log.prompts=[{PROMPTS[1]}]", "log.sample_steps=2"]
    python("train.py", f"data.cache={cache}", f"out={folder}", "name=run", *settings)
    return folder / "run"


def test_formats_metadata_and_batches(trained: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS[1:]) + "\n\n")
    together = tmp_path / "together"
    common = ("--checkpoint", str(trained), "--steps", "3", "--seed", "7")
    python("sample.py", *common, "--prompt", PROMPTS[0], "--prompts", str(prompts), "--out", str(together))
    records = json.loads((together / "samples.json").read_text())
    assert [(r["prompt"], r["seed"]) for r in records] == [(p, 7 + i) for i, p in enumerate(PROMPTS)]
    assert {r["scheduler"] for r in records} == {"dpm++"}  # the default by name
    with av.open(str(together / records[1]["file"])) as video:
        assert json.loads(video.metadata["comment"])["prompt"] == PROMPTS[1]
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert np.shape(frames) == (17, 32, 32, 3)
    # The second prompt alone, with its seed, is the same video: png has no compression to hide behind.
    for out, more in (("batch", ["--prompts", str(prompts)]), ("alone", ["--prompt", PROMPTS[1]])):
        settings = ("--checkpoint", str(trained), "--steps", "3", "--seed", "8", "--format", "png")
        python("sample.py", *settings, *more, "--out", str(tmp_path / out))
    batch, alone = (np.asarray(Image.open(next((tmp_path / out).glob("000*.png")))) for out in ("batch", "alone"))
    assert batch.shape == (32, 9 * 32, 3)
    assert np.abs(batch.astype(int) - alone).max() <= 1  # float32 sums in another order may round to the next level
    text = Image.open(next((tmp_path / "alone").glob("*.png"))).text["comment"]
    assert json.loads(text)["seed"] == 8


def test_a_notebook_gets_the_videos_of_the_command(trained: Path, tmp_path: Path) -> None:
    words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    settings = ("--steps", "3", "--seed", "7", "--guidance", "3", "--format", "png")
    python("sample.py", "--checkpoint", str(trained), *settings, *words, "--out", str(tmp_path))
    videos = VideoPipeline.from_run(trained)(PROMPTS, steps=3, seed=7, guidance=3.0)
    assert videos.shape == (3, 3, 17, 32, 32)
    for number, video in enumerate(videos):
        written = np.asarray(Image.open(next(tmp_path.glob(f"{number:03d}*.png"))))
        assert (written[:, :32] == to_bytes(video)[0]).all()
    pipeline = VideoPipeline.from_run(trained, weights="ema")
    alone = pipeline(PROMPTS[1], steps=3, seed=8, guidance=3.0)
    assert (alone[0] - videos[1]).abs().max() < 1e-5  # sums in another order
    network, weights = VideoDiT.from_run(trained), pipeline.model.state_dict()
    assert isinstance(network, VideoDiT)
    assert not network.training
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())


def test_gif_and_other_schedulers(trained: Path, tmp_path: Path) -> None:
    common = ("--checkpoint", str(trained), "--prompt", PROMPTS[0], "--steps", "3", "--format", "gif")
    for scheduler in ("dpm++", "unipc"):
        said = python("sample.py", *common, "--scheduler", scheduler, "--out", str(tmp_path / scheduler))
        assert "(32x32 pixels; --upscale 8 enlarges them)" in said
        image = Image.open(next((tmp_path / scheduler).glob("*.gif")))
        assert (image.n_frames, image.size) == (17, (32, 32))


def test_a_grid_shows_every_video_over_its_caption(trained: Path, tmp_path: Path) -> None:
    common = ("--checkpoint", str(trained), "--steps", "2", "--format", "png", "--out", str(tmp_path))
    python("sample.py", *common, *(word for prompt in PROMPTS for word in ("--prompt", prompt)), "--grid", "2")
    grid = Image.open(tmp_path / "grid.gif")
    assert grid.n_frames == 17
    assert grid.info["comment"].decode().split("\n") == PROMPTS
    shown = np.asarray(grid.convert("RGB"), dtype=float)
    for number, (row, column) in enumerate(((0, 0), (0, 1), (1, 0))):
        first = np.asarray(Image.open(next(tmp_path.glob(f"{number:03d}*.png"))), dtype=float)[:, :32]
        below = (shown.shape[0] - 8) // 2
        x, y = 8 + column * 168, 8 + row * below
        tile = shown[y : y + 160 : 5, x : x + 160 : 5]  # each pixel five times
        assert np.abs(tile - first).mean() < 12  # of 255: a gif has 256 colours
        assert (shown[y + 160 : y + below - 8, x : x + 160] < 128).any()  # its caption
    assert (shown[8 + below :, 176:] == 255).all()  # no fourth


def test_a_model_that_ships_draws_the_colour_of_its_prompt(tmp_path: Path) -> None:
    prompt = "a large red circle gliding right over black and navy gradient drifting up"
    text = python(
        "sample.py", "--prompt", prompt, "--steps", "20", "--upscale", "4", "--grid", "1", "--out", str(tmp_path)
    )
    assert "the embedded model" in text
    assert "enlarges" not in text
    with av.open(str(next(tmp_path.glob("000_*.mp4")))) as video:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]).astype(int)
        assert video.streams.video[0].average_rate == 8
    assert frames.shape == (17, 128, 128, 3)
    red, others = frames[..., 0], frames[..., 1:].max(-1)
    assert 0.03 < (red - others > 80).mean() < 0.5  # a circle of radius 0.22 to 0.26 covers 0.15 to 0.21
    assert (others - red > 120).mean() < 0.02  # the background is navy at most
    with av.open(str(tmp_path / "grid.mp4")) as video:
        assert video.metadata["comment"] == prompt
        assert video.streams.video[0].frames == 17


def test_prompts_of_a_table_have_their_own_seeds_frames_and_size(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text('prompt,seed,note\n"one, two",5,x\nthree,,y\n')
    words = ["--prompts", str(tmp_path / "prompts.csv"), "--steps", "1", "--format", "png", "--seed", "40"]
    said = python("sample.py", *words, "--frames", "9", "--size", "64x48", "--out", str(tmp_path / "out"))
    assert "(64x48 pixels (height x width); --upscale 4 enlarges them)" in said
    records = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [(r["prompt"], r["seed"], r["checkpoint"]) for r in records] == [
        ("one, two", 5, "embedded"),
        ("three", 41, "embedded"),
    ]
    assert Image.open(tmp_path / "out" / records[0]["file"]).size == (9 * 48, 64)
    for table, message in (("prompt,seed\nx,-1\n", "seed '-1' of 'x'"), ("text,seed\nx,1\n", "no column prompt")):
        (tmp_path / "prompts.csv").write_text(table)
        assert message in python("sample.py", *words, "--out", str(tmp_path / "no"), status=2)
    assert not (tmp_path / "no").exists()


def test_columns_of_prompts_are_read_in_any_case_and_others_are_named(tmp_path: Path) -> None:
    """Seeds in a column Seed were ignored without a word, and a missing prompt was the word None."""
    (tmp_path / "prompts.jsonl").write_text('{"Prompt ": "one", "SEED": 7, "style": "x"}\n{"Prompt ": null}\n')
    words = [
        "--prompts",
        str(tmp_path / "prompts.jsonl"),
        "--steps",
        "1",
        "--format",
        "png",
        "--out",
        tmp_path / "out",
    ]
    done = call("sample.py", *words)
    assert done.returncode == 0, done.stderr
    assert "columns not read: style\n" in done.stderr
    records = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [(r["prompt"], r["seed"]) for r in records] == [("one", 7), ("", 1)]


def test_the_very_column_is_read_beside_one_in_another_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a nameless column, as of row numbers, is not named."""
    path = tmp_path / "prompts.csv"
    for table in (",PROMPT,prompt,Seed,seed\n0,other,own,5,7\n", ",prompt,PROMPT,seed,Seed\n0,own,other,7,5\n"):
        path.write_text(table)
        arguments = parser().parse_args(["--checkpoint", "embedded", "--prompts", str(path), "--out", str(tmp_path)])
        assert read_prompts(arguments) == [("own", 7)]
        assert capsys.readouterr().err.endswith("columns not read: PROMPT, Seed\n")


def test_what_every_process_of_a_torchrun_finds_is_said_by_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.csv").write_text("prompt,style\nx,y\n")
    arguments = parser().parse_args(["--prompts", str(tmp_path / "prompts.csv")])
    pipeline = VideoPipeline.from_run()
    pipeline.guidable = False
    for rank, lines in (("1", 0), ("0", 2)):
        monkeypatch.setenv("RANK", rank)
        read_prompts(arguments)
        pipeline("x", steps=1)
        assert capsys.readouterr().err.count("\n") == lines  # the unread column, and guidance without dropout


def test_a_model_trained_with_other_kernels_than_are_here_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = read_trained("embedded")
    trained.config.model.attention = "xformers"  # has none for the CPU
    monkeypatch.setattr("videoscaling.training.pipeline.read_trained", lambda path, weights: trained)
    assert VideoDiT.from_run(device="cpu").backend == "sdpa"


def test_a_negative_prompt_is_what_guidance_leads_away_from() -> None:
    pipeline = VideoPipeline.from_run()
    plain, negative, none = (
        pipeline("a small red star resting", steps=2, guidance=g, negative_prompt=words)
        for g, words in ((3.0, ""), (3.0, "a large blue ring"), (1.0, ""))
    )
    assert (plain - negative).abs().max() > 0.01
    # Away from the prompt itself there is nothing to be led to: the unguided video.
    same = pipeline("a small red star resting", steps=2, guidance=3.0, negative_prompt="a small red star resting")
    assert (same - none).abs().max() < 1e-4
    with pytest.raises(UserError, match="negative prompt"):
        pipeline("x", guidance=1.0, negative_prompt="y")


@pytest.mark.parametrize(
    ("options", "message", "load"),
    [
        (["--scheduler", "ddim"], "'ddim': not one for rectified_flow; one of dpm++, unipc, euler", "load_encoders"),
        (["--device", "cudo"], "--device cudo: not available here", "read_trained"),
    ],
)
def test_options_are_refused_before_weights_are_loaded(
    monkeypatch: pytest.MonkeyPatch, options: list[str], message: str, load: str
) -> None:
    """With a text encoder of 19 GB that was minutes later."""
    loaded = []
    monkeypatch.setattr(f"videoscaling.training.pipeline.{load}", lambda *given, **more: loaded.append(given))
    assert message in python("sample.py", "--prompt", "x", *options, status=2)
    assert not loaded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--upscale", "600"], "videos: 19200 x 19200 pixels, and mp4 has at most 16384 a side; give a smaller"),
        (["--grid", "150"], "the grid: 16808 x 200 pixels, and mp4 has at most 16384 a side; give another number"),
        (["--grid", "1"], "the grid: 176 x 19208 pixels, and mp4 has at most 16384 a side; give another number"),
    ],
)
def test_pictures_that_no_file_can_hold_are_refused_before_sampling(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], message: str
) -> None:
    """A traceback followed the last video."""
    monkeypatch.setattr("videoscaling.training.pipeline.sample", None)
    prompts = ["--prompt", "x"] * 100
    assert message in python("sample.py", *prompts, "--out", str(tmp_path / "out"), *options, status=2)
    assert not list(tmp_path.iterdir())


def test_a_grid_has_no_more_columns_than_videos(tmp_path: Path) -> None:
    words = ["--prompt", "x", "--steps", "1", "--format", "gif", "--grid", "100000000", "--out", str(tmp_path)]
    python("sample.py", *words)
    assert Image.open(tmp_path / "grid.gif").size == (176, 200)


def test_every_prompt_has_a_seed_of_its_own() -> None:
    pipeline = VideoPipeline.from_run()
    # With guidance 1 a single seed broadcast: three videos of one noise, and no error.
    for seeds, message in (([5], "1 number for 3 prompts"), ([5, 6, 7, 8], "4 numbers for 3 prompts")):
        with pytest.raises(UserError, match=message):
            pipeline(["a", "b", "c"], seed=seeds, steps=1, guidance=1.0)
    with pytest.raises(UserError, match="there is none"):
        pipeline([])
    counted, given = (pipeline(["a", "b"], seed=seed, steps=1, guidance=1.0) for seed in (np.int64(5), (5, 6)))
    assert torch.equal(counted, given)


def test_guidance_of_a_model_trained_without_dropout_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = VideoPipeline.from_run()
    pipeline("x", steps=1)
    assert capsys.readouterr().err == ""
    pipeline.guidable = False
    pipeline("x", steps=1)
    assert "caption_dropout=0" in capsys.readouterr().err
    pipeline("x", steps=1, guidance=1.0)
    assert capsys.readouterr().err == ""


def test_an_exported_folder_gives_the_videos_of_its_run(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    printed = python("tools/export.py", "--checkpoint", str(trained), "--out", str(folder), "--licence", "mit")
    assert "diffusion_pytorch_model.safetensors, metrics.jsonl, scheduler_config.json" in printed
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "diffusion_pytorch_model.safetensors", "scheduler_config.json", "README.md"),
        "metrics.jsonl",
    }
    np.testing.assert_equal(asdict(read_curve(folder)), asdict(read_curve(trained)))
    run, exported = VideoPipeline.from_run(trained), VideoPipeline.from_run(folder)
    made = [pipeline(PROMPTS, steps=2, guidance=3.0) for pipeline in (run, exported)]
    assert torch.equal(*made)
    file = VideoPipeline.from_run(folder / "diffusion_pytorch_model.safetensors")
    assert torch.equal(file.model.final.weight, run.model.final.weight)
    card = (folder / "README.md").read_text()
    result = json.loads((trained / "result.json").read_text())
    assert card.startswith("---\nlicense: mit\n")
    assert re.search(r"^\| data \| synthetic, \d+ clips, fingerprint", card, re.M)
    assert f"{result['milestones'][-1]['ema_val_loss']:.4f}" in card
    from diffusers import DPMSolverMultistepScheduler

    # Plain diffusers and safetensors: the scheduler's times, divided by 1000, are the model's.
    scheduler = DPMSolverMultistepScheduler.from_pretrained(folder)
    scheduler.set_timesteps(4)
    assert torch.allclose(scheduler.timesteps / 1000, scheduler.sigmas[:-1], atol=2e-3)
    assert load_file(folder / "diffusion_pytorch_model.safetensors").keys() == run.model.state_dict().keys()
    # It is replaced, a folder of something else is not, and what is missing or damaged is named.
    law = str(Path(__file__).parents[1] / "results" / "mini" / "law.json")
    python("tools/export.py", "--checkpoint", str(trained), "--out", str(folder), "--law", law)
    assert re.search(
        "95 % interval of a run .* of runs with other values of .*data", (folder / "README.md").read_text()
    )
    # An export of averaged weights, asked for its raw ones: of these it was said that there are none, which is no fix.
    words = ("--checkpoint", str(folder), "--weights", "model", "--out", str(tmp_path / "again"))
    error = python("tools/export.py", *words, status=2)
    assert f"--checkpoint {folder}: is an export already; copy the folder" in error
    error = python("tools/export.py", "--checkpoint", str(trained), "--out", str(tmp_path), status=2)
    assert "is no export" in error
    assert "holds no model weights; there are ema" in python(
        *("sample.py", "--checkpoint", str(folder), "--weights", "model", "--prompt", "x"), status=2
    )
    facts = json.loads((folder / "config.json").read_text())
    del facts["model.width"]
    (folder / "config.json").write_text(json.dumps(facts))
    assert "has no model.width" in python("sample.py", "--checkpoint", str(folder), "--prompt", "x", status=2)


def test_tensorboard_has_losses_and_sampled_videos(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    tags = events.Tags()
    wanted = {"train/loss", "train/lr", "train/grad_norm", "train/flops", "validation/ema_val_loss"}
    assert wanted <= {*tags["scalars"]}
    filled = {int(t) for t in (10 * validation_times(4, 4, 0)).flatten()}  # bins that hold one of the 16 samples
    found = {tag for tag in tags["scalars"] if tag.startswith("validation_by_t/")}
    assert found == {f"validation_by_t/{b / 10:.1f}_to_{(b + 1) / 10:.1f}" for b in filled}
    (image,) = events.Images(f"samples/0 {PROMPTS[1]}")
    assert image.encoded_image_string[:3] == b"GIF"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "x", "--checkpoint", "nowhere"], "nowhere: no such checkpoint"),
        (["--prompt", "x", "--scheduler", "eulr"], "did you mean 'euler'"),
        (["--prompt", "x", "--steps", "0"], "steps 0: must lie between 1 and 1000"),
        ([], "no prompt"),
        (["--prompts", "absent.txt"], "absent.txt: no such file"),
    ],
)
def test_bad_input_is_one_line(trained: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    if "--checkpoint" not in arguments:
        arguments = ["--checkpoint", str(trained), *arguments]
    error = python("sample.py", "--out", str(tmp_path / "out"), *arguments, status=2)
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_prompts_that_are_cut_are_warned_of(trained: Path, tmp_path: Path) -> None:
    words = ["--checkpoint", str(trained), "--steps", "1", "--out", str(tmp_path), "--prompt", PROMPTS[0]]
    assert "longer than" not in call("sample.py", *words).stderr
    done = call("sample.py", *words, "--prompt", "word " * 64)
    assert done.returncode == 0
    assert "warning: prompts: 1 of 2 longer than the text encoder's 64 tokens, and cut\n" in done.stderr


def test_an_empty_prompts_file_is_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    error = python("sample.py", "--checkpoint", str(trained), "--prompts", str(tmp_path / "empty.txt"), status=2)
    assert "no prompt in it; write one per line" in error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("latent_shape", value) for value in (None, [], "x", 5, {"0": 1}, [16, 5, 4], [16, 5, 4, -4], [10**30] * 4)),
        *((name, None) for name in ("text_dim", "vae", "text", "model.layers", "model.width", "model.heads")),
        *(("text_dim", value) for value in (0, -1, 2.5, 10**30, "64")),
        ("vae", [1]),
        ("fps", "fast"),
        ("fps", -1),
    ],
)
def test_a_damaged_exported_model_is_one_line(tmp_path: Path, name: str, value: object) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads((EMBEDDED / "config.json").read_text()) | {name: value})
    )
    with pytest.raises(UserError, match=f"config.json: {name}"):
        VideoPipeline.from_run(tmp_path)
