"""A small sweep as two files, for tests of what works on sweeps."""

from pathlib import Path
from typing import Any

import yaml


def write_sweep(folder: Path, cache: Path, base: dict[str, Any] | None = None, **keys: Any) -> Path:
    """base.yaml and grid.yaml in ``folder``; returns the latter, one size of width 32 and two milestones by default.

    Args:
        base: sections of training that the cells share, in place of the defaults or in addition to them.
        keys: of the sweep, likewise.
    """
    shared = {"data": {"cache": str(cache)}, "optim": {"beta2_half_life": 2e4}, "validation": {"timesteps": 2}}
    grid = {
        "name": "grid",
        "out": str(folder / "runs"),
        "base": "base.yaml",
        "milestones": [640, 1280],
        "sizes": [{"size": "1x32"}],
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(shared | (base or {})))
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(grid | keys))
    return path


def edit(path: Path, **changes: Any) -> None:
    """Replace keys of a sweep's YAML."""
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
