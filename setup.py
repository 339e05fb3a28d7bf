"""Puts the folders of the repository into one package, videoscaling; pyproject.toml has everything else."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("data", "diffusion", "models", "scaling", "sweeps", "tools", "training", "utils")


class Build(build_py):
    """Adds the commands at the root, which sweeps start."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        root = [(package, name, f"{name}.py") for name in ("train", "sample")] if package == "videoscaling" else []
        return found + root


parents = {path.parent for folder in FOLDERS for path in Path(folder).rglob("*.py")}
setup(
    packages=[
        "videoscaling",
        "videoscaling.configs",
        *(".".join(("videoscaling", *path.parts)) for path in sorted(parents)),
    ],
    package_dir={f"videoscaling.{folder}": folder for folder in (*FOLDERS, "configs")},
    package_data={
        "videoscaling.configs": ["**/*"],
        "videoscaling.models": ["embedded_vae/*", "real32_vae/*", "real64_vae/*", "embedded_dit/*"],
        "videoscaling.scaling.planning": ["page.html"],
        "videoscaling.scaling.reporting": ["page.html"],
    },
    cmdclass={"build_py": Build},
)
