"""The package as `pip install` leaves it, in an environment of its own and away from the repository."""

import json
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.processes.launch import ROOT, environment, run

PROGRAM = """
import json, sys
from videoscaling import IMPORT_PATH, PAPER, ROOT, VideoDiT, load_law, predict, read_curve
from videoscaling.models.vae import load_vae
from videoscaling.scaling.reporting import report  # which reads its page.html

load_vae("embedded", "cpu")
assert VideoDiT.from_run().config.layers == 4
assert read_curve(ROOT / "models" / "embedded_dit").tokens[-1] > 6e6
assert (ROOT / "train.py").is_file() and (ROOT / "configs" / "train" / "gpu.yaml").is_file()
assert not [name for name in sys.modules if name.split(".")[0] in ("data", "models", "training", "utils")]
print(json.dumps([str(IMPORT_PATH), float(predict(load_law(PAPER), N=1e9, T=1e10).predicted[0])]))
"""


@pytest.fixture
def installed(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """The Python of a fresh environment with the wheel alone, and variables that lend it this one's packages."""
    source, env = tmp_path / "source", environment(PYTHONPATH=sysconfig.get_path("purelib"))
    for name in run(["git", "ls-files"], cwd=ROOT).stdout.splitlines():
        path = ROOT / name
        if path.is_file() and not path.is_symlink() and not name.startswith(("results/", "tests/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(path.read_bytes())
    python = tmp_path / "environment" / "bin" / "python"
    pip = ["-m", "pip", "--disable-pip-version-check"]
    for command in (
        [sys.executable, *pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", tmp_path, source],
        [sys.executable, "-m", "venv", tmp_path / "environment"],
        [python, *pip, "install", "--no-deps", "--no-index", "--find-links", tmp_path, "videoscaling"],
    ):
        done = run(command, cwd=tmp_path, env=env if command[0] == python else None)
        assert done.returncode == 0, done.stderr
    return python, env


@pytest.mark.slow
def test_the_wheel_predicts_and_plans_in_an_environment_of_its_own(
    installed: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    python, env = installed
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run([python, "-c", PROGRAM], cwd=elsewhere, env=env)
    assert done.returncode == 0, done.stderr
    place, loss = json.loads(done.stdout)
    assert Path(place).is_relative_to(tmp_path / "environment")
    assert 0 < loss < 1
    law = Path(place) / "videoscaling" / "configs" / "laws" / "paper.json"
    words = ["--law", law, "--flops", "1e22", "--json", "--out", "planned.yaml"]
    done = run([python, "-m", "videoscaling.tools.plan", *words], cwd=elsewhere, env=env)
    assert done.returncode == 0, done.stderr
    planned, here = json.loads(done.stdout), run([sys.executable, ROOT / "tools" / "plan.py", *words], cwd=tmp_path)
    assert planned == json.loads(here.stdout)
    assert (elsewhere / "planned.yaml").is_file()
    done = run(
        [python, "-m", "videoscaling.sample", "--prompt", "a red square", "--steps", "1"], cwd=elsewhere, env=env
    )
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "samples" / "000_a_red_square.mp4").is_file()
