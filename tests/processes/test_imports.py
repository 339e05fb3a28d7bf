"""What must not be imported, as it costs each command seconds."""

from pathlib import Path

import scaling
from tests.processes.launch import python

MODULES = sorted(path.stem for path in Path(scaling.__path__[0]).glob("*.py") if path.stem != "__init__")


def test_scaling_imports_neither_torch_nor_matplotlib():
    assert len(MODULES) > 10
    code = "; ".join(f"import scaling.{module}" for module in MODULES)
    code += "; import sys; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert python("-c", code).returncode == 0


def test_no_torch():
    code = "import models.sizes, sys; sys.exit('torch' in sys.modules)"
    assert python("-c", code).returncode == 0
