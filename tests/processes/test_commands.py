"""Each command as a process; other tests call it in theirs (tests/commands.py)."""

from pathlib import Path

import pytest

from tests.processes.launch import ROOT, python

# A user's mistake, which each command finds before it does anything.
MISTAKES = {
    "train.py": (["optim.lrr=1"], "did you mean"),
    "sample.py": (["--checkpoint", "nowhere", "--prompt", "x"], "no such checkpoint"),
    "tools/benchmark.py": (["stack", "--size", "1by1"], "1by1"),
    "tools/cache_latents.py": (["--source", "nowhere", "--out", "x"], "nowhere"),
    "tools/evaluate_samples.py": (["a.npy"], "a.npy: no such file or folder"),
    "tools/evaluate_vae.py": (["--source", "nowhere", "--vae", "embedded"], "nowhere"),
    "tools/export.py": (["--checkpoint", "nowhere", "--out", "x"], "no such checkpoint"),
    "tools/fit.py": (["all", "missing.csv", "--out", "x.json"], "no such file"),
    "tools/plan.py": (["--law", "missing.json", "--flops", "1e20"], "no such file"),
    "tools/predict.py": (["missing.csv", "--law", "missing.json", "--out", "x.csv"], "no such file"),
    "tools/presets.py": (["4x128"], "the following arguments are required"),
    "tools/replay.py": (["missing.csv"], "missing.csv"),
    "tools/report.py": (["missing.csv", "--law", "missing.json", "--out", "x.html"], "no such file"),
    "tools/study.py": (["missing", "--law", "missing.json"], "give a folder of runs"),
    "tools/sweep.py": (["run", "missing.yaml"], "no such configuration file"),
    "tools/train_vae.py": (["--out", "x", "--steps", "nope"], "--steps"),
    "tools/update_docs.py": (["--nope"], "--nope"),
}


def test_no_command_is_forgotten() -> None:
    commands = {path for path in (ROOT / "tools").glob("*.py") if "__main__" in path.read_text()}
    assert {ROOT / name for name in MISTAKES} == commands | {ROOT / "train.py", ROOT / "sample.py"}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(command: str, tmp_path: Path) -> None:
    words, message = MISTAKES[command]
    done = python(command, *words, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
