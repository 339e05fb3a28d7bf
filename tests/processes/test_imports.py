import subprocess
import sys
from pathlib import Path

import scaling

MODULES = sorted(path.stem for path in Path(scaling.__path__[0]).glob("*.py") if path.stem != "__init__")


def test_scaling_imports_neither_torch_nor_matplotlib():
    assert len(MODULES) > 10
    code = "; ".join(f"import scaling.{module}" for module in MODULES)
    code += "; import sys; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
