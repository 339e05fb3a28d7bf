"""Who may import whom (docs/architecture.md): the base layer, one run, many runs, and laws that read results alone."""

import ast
from pathlib import Path

import pytest

from videoscaling import ROOT

MAY_IMPORT = {
    "utils": set(),
    "data": {"utils"},
    "models": {"utils"},
    "diffusion": {"utils"},
    "training": {"data", "models", "diffusion", "utils"},
    "scaling": {"models", "utils"},
    "sweeps": {"data", "models", "training", "scaling", "utils"},
}
NAMES = {*MAY_IMPORT, "tools"}


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports anywhere, the bare names of packages as ``package.name``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_those_below_it_alone(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert len(paths) > 5
    allowed = MAY_IMPORT[package] | {package, "ROOT", "IMPORT_PATH"}
    for path in paths:
        ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("videoscaling.")}
        assert ours <= allowed, f"{path}: imports {ours - allowed}"


def test_laws_know_of_models_their_sizes_alone() -> None:
    names = {name for path in (ROOT / "scaling").rglob("*.py") for name in imports_of(path)}
    assert len(names) > 50
    assert all(
        name.startswith("videoscaling.models.sizes") for name in names if name.startswith("videoscaling.models")
    )


def test_every_module_has_one_name() -> None:
    """``data.x`` and ``videoscaling.data.x`` would be two modules, each with its own classes and caches."""
    folders = [ROOT / folder for folder in (*NAMES, "tests")]
    for path in [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]:
        bare = {name for name in imports_of(path) if name.split(".")[0] in NAMES}
        assert not bare, f"{path}: import {bare} from videoscaling"
