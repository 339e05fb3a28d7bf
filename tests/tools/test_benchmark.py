"""The benchmark times what it says it times."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from tests.commands import call
from videoscaling.tools.benchmarks import rates, sampling
from videoscaling.tools.benchmarks.common import spread, timed
from videoscaling.tools.benchmarks.figures import Rates, Sampling, Stack, Step, described, figures, measure
from videoscaling.tools.benchmarks.sampling import STEPS, TIMED_STEPS, shares
from videoscaling.tools.benchmarks.shapes import CLIPS

ROOT = Path(__file__).resolve().parents[2]


def test_things_are_timed_in_turn() -> None:
    calls: list[str] = []
    things = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    seconds = timed(things, 4, torch.device("cpu"))
    assert "".join(calls) == "ab" * (4 + 3)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4}
    assert spread([3.0, 1.0, 2.0], 10)["value"] == 20


def benchmark(*arguments: str) -> dict:
    out = call("tools/benchmark.py", *arguments, "--rounds", "2", "--json")
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


@pytest.mark.parametrize("part", ["attention", "sample", "data"])
def test_parts_report_what_they_timed(part: str) -> None:
    size = () if part == "data" else ("--size", "1x64")
    done = benchmark(part, *size, "--n-ctx", "80", "--clips", "2")
    assert done["about"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert "C_token" in done["about"]["flops"]
    assert done["rows"]
    for row in done["rows"]:
        timing = next(value for key, value in row.items() if key.startswith("milliseconds"))
        assert 0 < timing["low"] <= timing["value"] <= timing["high"]


def test_rates_are_a_products_and_a_copys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SIDE", {"cpu": 64})
    monkeypatch.setattr(rates, "NUMBERS", {"cpu": 1 << 12})
    args = argparse.Namespace(dtype="float32", rounds=2)
    monkeypatch.setattr(rates, "timed", lambda things, *_: {key: [0.5, 0.5] for key in things})
    (row,) = rates.bench_rates(args, torch.device("cpu"))
    assert row["flops_per_second"]["value"] == 2 * 64**3 / 0.5
    assert row["bytes_per_second"]["value"] == 8 * (1 << 12) / 0.5


def test_shares_are_of_a_video_of_all_steps() -> None:
    """Two rounds, the second twice as slow: seconds double, shares stay."""
    steps = STEPS / TIMED_STEPS
    alone, guided = [1.0, 2.0], [1.5, 3.0]
    row = shares(alone, guided, [0.5 * steps, steps], clips=2)
    assert row["milliseconds_per_video"]["low"] < row["milliseconds_per_video"]["high"]
    assert row["milliseconds_per_video"]["value"] == pytest.approx(1e3 / 2 * 1.5 * 2 * steps)
    values = [row[f"{part}_percent"]["value"] for part in ("model", "guidance", "vae")]
    assert values == pytest.approx([50, 25, 25])
    row |= {"figure": Sampling("1B", 1280).text}
    assert described(row).endswith("s a video; model 50.0%, guidance 25.0%, vae 25.0%")


def test_wans_autoencoder_decodes_the_larger_clips() -> None:
    vae = sampling.wan_autoencoder(torch.device("cpu"))
    assert sum(parameter.numel() for parameter in vae.model.parameters()) == 126_892_531
    for n_ctx, pixels in ((1280, (17, 256, 256)), (32760, (81, 480, 832))):
        assert vae.latent_shape(*pixels) == CLIPS[n_ctx][0]


RATES = {"flops_per_second": {"value": 1e9}, "bytes_per_second": {"value": 1e8}}
PARTS = {"products": 4e9, "attention": 1e9, "optimizer": 2e8, "gradients": 1e8, "activations": 0, "gathers": 0}
TIMES = {"seconds_per_step": 10.0, "data_seconds_per_step": 0.1, "tokens_per_second": 16.0, "mfu": None}
REPORT = {"N": 5, "memory": {"measured": 7, "total": 8}, "time": TIMES | {"micro_batch": 2, "account": PARTS}}
STACK = {"rows": [{"times_as_fast": {"compiled": {"value": 3.0}}}]}


def test_figures_are_on_disk_when_they_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three figures, of which one fails, and a fourth that the end of the time cuts."""
    chosen = [Rates("float32"), Step("2x64", 80, 2), Stack(8, "2x64", 2), Step("4x128", 80, 2), Stack(64, "2x64", 2)]
    monkeypatch.setattr("videoscaling.tools.benchmarks.figures.figures", lambda device: list(chosen))
    monkeypatch.setattr("videoscaling.tools.benchmarks.figures.random_cache", lambda path, *_, **__: path)
    out, commands = tmp_path / "figures.jsonl", []
    answers = [(0, json.dumps({"rows": [RATES]}), ""), (0, json.dumps(REPORT), ""), (0, json.dumps(STACK), "")]
    answers += [(2, "", "warning: slow\nout of memory"), (None, "", "")]

    def launch(words: list[str], seconds: float) -> tuple[int | None, str, str]:
        assert 0 < seconds <= 60
        assert len(out.read_text().splitlines() if out.exists() else []) == len(commands)
        commands.append(words)
        return answers[len(commands) - 1]

    assert measure(1, out, "cpu", tmp_path, launch) == [chosen[4].text]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["figure"] for row in rows] == [figure.text for figure in chosen[:4]]
    assert rows[1]["account_seconds"] == {
        "products": 4.0,
        "attention": 1.0,
        "optimizer": 2.0,
        "gradients": 1.0,
        "activations": 0.0,
    }
    assert rows[1]["limit"] == "products"
    assert rows[3]["failed"] == "out of memory"
    printed = capsys.readouterr().out
    assert "products 40%, attention 10%, optimizer 20%" in printed
    assert "rest 20%; largest: products" in printed
    assert commands[1][:3] == ["videoscaling.train", "--dry-run", "--json"]
    assert "train.batch_tokens=160" in commands[1]


def test_figures_begin_with_the_most_useful_and_have_names_of_their_own() -> None:
    for device, sizes in (("cuda", {"0.1B", "1B", "4B"}), ("cpu", {"2x64", "4x128"})):
        names = [figure.text for figure in figures(device)]
        assert names[0].startswith("rates")
        assert len(set(names)) == len(names)
        steps = [figure for figure in figures(device) if isinstance(figure, Step)]
        assert {figure.size for figure in steps} == sizes
    assert {figure.n_ctx for figure in figures("cuda") if isinstance(figure, Step)} == {1280, 8192, 32760}
    assert sum(isinstance(figure, Sampling) for figure in figures("cuda")) == 2


@pytest.mark.slow
def test_peers_report_ratios() -> None:
    done = benchmark("peers", "--size", "1x128", "--n-ctx", "80", "--clips", "2")
    assert all(row["tokens_per_second"] > 0 for row in done["rows"])
    assert [row["model"] for row in done["rows"]] == ["ours", "ours, compiled", "Wan", "Wan, compiled"]
    assert done["rows"][1]["ours_is_faster"]["value"] == 1


@pytest.mark.slow
def test_stacks_are_compared_with_runs_alone() -> None:
    (row,) = benchmark("stack", "--size", "1x64", "--clips", "2", "--stack", "3")["rows"]
    assert (row["n_ctx"], row["runs"]) == (64, 3)
    for how in ("compiled", "uncompiled"):
        alone, together = (row["run_steps_per_second"][f"{name}, {how}"]["value"] for name in ("alone", "together"))
        gain = row["times_as_fast"][how]
        assert gain["low"] <= gain["value"] <= gain["high"]
        assert gain["value"] == pytest.approx(together / alone, rel=0.5)  # medians of ratios, and of what they compare


def test_bad_input_is_one_line() -> None:
    for bad in (
        ["rates", "--rounds", "0"],
        [],
        ["--minutes", "1", "--size", "2x64"],
        ["stack", "--stack", "0"],
        ["sample", "--size", "4by4"],
        ["data", "--device", "cuda:99"],
    ):
        out = call("tools/benchmark.py", *bad)
        assert (out.returncode, out.stderr.count("\n")) == (2, 1), out.stderr
