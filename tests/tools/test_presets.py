"""Presets of a law: the configs are the plan's, and train.py takes them; the page says what is in them."""

import json
from pathlib import Path

import pytest

from tests.commands import Done, call
from videoscaling.models import sizes
from videoscaling.scaling import law_file
from videoscaling.training.config import load_config

ROOT = Path(__file__).resolve().parents[2]
LAW = ROOT / "configs" / "laws" / "paper.json"


def presets(*words: object) -> Done:
    return call("tools/presets.py", *words)


def test_each_config_is_the_laws(tmp_path: Path) -> None:
    """Shapes as they were asked for, though the ladder has others of nearly that N."""
    base = tmp_path / "base.yaml"
    base.write_text("optim: {beta2_half_life: 1e6}\n")
    (tmp_path / "results" / "run").mkdir(parents=True)
    result = {"status": "done", "N": 16 * 16 * 320**2, "device": "a GPU", "tokens": 8_000_000, "seconds": 4.0}
    result["milestones"] = [{"nominal": 5e8, "ema_val_loss": 0.1}, {"nominal": 1e9, "ema_val_loss": 0.7654}]
    (tmp_path / "results" / "run" / "result.json").write_text(json.dumps(result))
    done = presets(
        "16x320:1e9",
        "2x1024:4e9",
        "--law",
        LAW,
        "--base",
        base,
        "--out",
        tmp_path / "presets",
        "--page",
        tmp_path / "page.md",
        "--results",
        tmp_path / "results",
    )
    assert done.returncode == 0, done.stderr
    law, page = law_file.load(LAW), (tmp_path / "page.md").read_text()
    for name, tokens in (("16x320", 1e9), ("2x1024", 4e9)):
        config = load_config(tmp_path / "presets" / f"{name}.yaml", [])
        shape = sizes.parse_size(name)
        N = sizes.parameters(shape.layers, shape.width)
        assert config.model.size == name
        assert config.optim.beta2_half_life == 1e6
        assert config.optim.lr == pytest.approx(float(law.lr(N, tokens)), rel=0.05)  # B is whole clips
        assert abs(config.train.batch_tokens - float(law.batch(N, tokens))) <= 1280 / 2
        assert config.train.tokens == tokens
        assert f"| {N:,} | {tokens:,.0f} | {config.train.batch_tokens:,} |" in page
        assert f"{float(law.loss(N, tokens / 8)):.3f}" in page
    # 2e6 tokens a second: 1e9 take 500 s, and an eighth of that is 0.017 h.
    assert "| 16x320 | a GPU | " in page
    assert " at 0.14 h |\n" in page
    assert " at 0.017 h | " in page
    assert "| 2x1024 | not measured | " in page
    assert page.count("| 0.765 |\n") == 1  # the lowest measured there


def test_losses_on_the_way_are_of_the_presets_own_pair(tmp_path: Path) -> None:
    """At the best pair of each T a surface's losses would be lower: by its tolerance of 0.1 % at the end."""
    law, base = ROOT / "results/doom/before_2x192/law.json", ROOT / "configs/train/doom.yaml"
    page = tmp_path / "page.md"
    done = presets("2x32:6553600", "--law", law, "--base", base, "--out", tmp_path / "presets", "--page", page)
    assert done.returncode == 0, done.stderr
    rows = [line for line in page.read_text().splitlines() if "2x32" in line]
    expected, on_the_way = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    assert expected[7].split()[0] == on_the_way[-1] == "0.822"
    assert float(on_the_way[2]) == pytest.approx(0.885, abs=0.001)  # 0.876 at the best pair of an eighth of T


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["4x128"], "'4x128' is not SIZE:TOKENS, such as 4x128:5e6"),
        (["4x128:many"], "is not SIZE:TOKENS"),
        (["4by128:5e6"], "'4by128' is not LAYERSxWIDTH"),
        (["4x128:100"], "less than one clip"),
        (["4x128:5e6", "--results", "absent"], "absent: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, words: list[str], said: str) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("{}\n")
    done = presets(*words, "--law", LAW, "--base", base, "--out", tmp_path / "out", "--page", tmp_path / "page.md")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"base.yaml"}
