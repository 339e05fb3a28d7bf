import subprocess
import sys
from pathlib import Path

import pytest

import scaling

MODULES = sorted(path.stem for path in Path(scaling.__path__[0]).glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", MODULES)
def test_scaling_imports_neither_torch_nor_matplotlib(module):
    code = f"import scaling.{module}, sys; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
