"""The benchmark times what it says it times."""

import json
from pathlib import Path

import pytest
import torch

from tests.commands import call
from videoscaling.models.sizes import exact_flops, parse_size
from videoscaling.tools.benchmarks.common import spread, timed
from videoscaling.tools.benchmarks.steps import products

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("size", ["1x64", "4x128", "8x512"])
def test_products_are_the_exact_count_less_what_is_done_once_a_clip(size: str) -> None:
    shape, clips, text = parse_size(size), 3, (31, 64)
    made = sum(2 * b * m * k * n for b, m, k, n in products(shape, 80, clips, text, 16))
    d = shape.width
    once = 2 * (256 * d + d * d + 6 * d * d + 2 * d * d)  # the time's embedding, and the modulations made of it
    assert made == clips * (exact_flops(shape.layers, d, 80, 16, *text, training=False) - once)


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


@pytest.mark.slow
@pytest.mark.parametrize("part", ["train", "peers"])
def test_steps_and_peers_report_ratios(part: str) -> None:
    done = benchmark(part, "--size", "1x128", "--n-ctx", "80", "--clips", "2")
    for row in done["rows"]:
        assert row["tokens_per_second"] > 0
    if part == "peers":
        assert [row["model"] for row in done["rows"]] == ["ours", "ours, compiled", "Wan", "Wan, compiled"]
        assert done["rows"][1]["ours_is_faster"]["value"] == 1
    else:
        assert 0 < done["rows"][0]["data_share"] < 1


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
        ["train", "--rounds", "0"],
        ["stack", "--stack", "0"],
        ["sample", "--size", "4by4"],
        ["data", "--device", "cuda:99"],
    ):
        out = call("tools/benchmark.py", *bad)
        assert (out.returncode, out.stderr.count("\n")) == (2, 1), out.stderr
