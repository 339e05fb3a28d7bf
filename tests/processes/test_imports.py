"""What a start loads: every process of a sweep, a test or a tool pays for it."""

import subprocess
import sys

import pytest

from tests.training.test_trainer import ENVIRONMENT, ROOT

LOADED = "import sys, {module}; print(*(name for name in {unwanted!r} if name in sys.modules))"


@pytest.mark.parametrize("module", ["training.trainer", "training.ensemble", "sample"])
def test_the_compiler_is_not_loaded_by_an_import(module: str) -> None:
    unwanted = ("torch._dynamo", "torch._inductor", "diffusers", "transformers", "torchvision", "tensorboard", "scipy")
    code = LOADED.format(module=module, unwanted=unwanted)
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.split() == []
