"""What a start loads: every process of a sweep, a test or a tool pays for it."""

from pathlib import Path

from tests.processes.launch import ROOT, python
from videoscaling import scaling
from videoscaling.tools.update_docs import SCRIPTS

FOLDER = Path(scaling.__path__[0])
MODULES = [
    ".".join(("videoscaling.scaling", *path.relative_to(FOLDER).with_suffix("").parts))
    for path in sorted(FOLDER.rglob("*.py"))
    if path.stem != "__init__"
]
HEAVY = ("torch._dynamo", "torch._inductor", "diffusers", "transformers", "torchvision", "tensorboard", "scipy")


def loaded_of(unwanted: tuple[str, ...], *modules: str) -> list[str]:
    """Those of ``unwanted`` that a process has loaded after importing ``modules``."""
    code = f"import sys, {', '.join(modules)}; print(*(name for name in {unwanted!r} if name in sys.modules))"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_compiler_is_not_loaded_by_an_import() -> None:
    modules = ("training.train", "training.stacked.loop", "sample")
    assert loaded_of(HEAVY, *(f"videoscaling.{module}" for module in modules)) == []


def test_scaling_imports_neither_torch_nor_matplotlib() -> None:
    assert len(MODULES) > 10
    assert loaded_of(("torch", "matplotlib"), *MODULES) == []


def test_sizes_and_configurations_do_without_torch() -> None:
    modules = ("models.sizes", "training.config", "training.planning.planned_config")
    assert loaded_of(("torch",), *(f"videoscaling.{module}" for module in modules)) == []


def test_a_prediction_loads_neither_torch_nor_optimisers() -> None:
    """scipy.optimize is half of the time of a prediction by a surface, and a fit alone needs it."""
    unwanted = ("torch", "matplotlib", "scipy.optimize")
    assert loaded_of(unwanted, "videoscaling.tools.predict", "videoscaling.scaling.fitting.surface.surface_file") == []


def test_the_help_of_no_command_waits_for_an_import() -> None:
    """cache_latents.py and evaluate_samples.py took two and four seconds of processor time to say what they can do."""
    heavy = ("torch", "av", "matplotlib", "diffusers", "scipy.optimize")
    code = (
        "import sys; from tests.commands import call\n"
        f"for script in {[str(path.relative_to(ROOT)) for path in SCRIPTS]!r}:\n"
        f"    print(call(script, '--help').returncode, *(name for name in {heavy!r} if name in sys.modules))"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0"] * len(SCRIPTS)


# A path that does not exist in each option that takes one, where nothing else needs torch.
MISTYPED = (
    ("sample.py", "--prompt", "x", "--checkpoint", "nowhere"),
    ("sample.py", "--prompt", "x", "--vae", "nowhere"),
    ("sample.py", "--prompt", "x", "--text", "nowhere"),
    ("sample.py", "--prompts", "nowhere"),
    ("train.py", "--config", "nowhere"),
    ("train.py", "--config", "configs/train/base.yaml", "data.cache=nowhere"),
    ("train.py", "--config", "configs/train/base.yaml", "data.cache=nowhere", "--dry-run"),
    ("tools/export.py", "--checkpoint", "nowhere", "--out", "unwritten"),
    ("tools/export.py", "--checkpoint", "tests", "--law", "nowhere", "--out", "unwritten"),
    ("tools/cache_latents.py", "--source", "nowhere", "--out", "unwritten"),
    ("tools/cache_latents.py", "--source", "synthetic", "--vae", "nowhere", "--out", "unwritten"),
    ("tools/evaluate_samples.py", "nowhere"),
    ("tools/evaluate_samples.py", "embedded", "--real", "nowhere"),
    ("tools/evaluate_vae.py", "--source", "nowhere"),
    ("tools/train_vae.py", "--source", "nowhere", "--out", "unwritten"),
    ("tools/sweep.py", "run", "nowhere"),
    ("tools/sweep.py", "run", "configs/sweep/quickstart.yaml", "config.data.cache=nowhere", "name=unwritten"),
)


# A number out of range in each option that has a range, and a name that is none.
OUT_OF_RANGE = (
    ("sample.py", "--prompt", "x", "--steps", "0"),
    ("sample.py", "--prompt", "x", "--guidance", "nan"),
    ("sample.py", "--prompt", "x", "--guidance-interval", "0.8", "0.2"),
    ("sample.py", "--prompt", "x", "--guidance-rescale", "2"),
    ("sample.py", "--prompt", "x", "--shift", "-1"),
    ("sample.py", "--prompt", "x", "--scheduler", "eulr"),
    ("sample.py", "--prompt", "x", "--guidance", "1", "--negative-prompt", "y"),
    ("sample.py", "--prompt", "x", "--seed", "-1"),
    *(("sample.py", "--prompt", "x", f"--{name}", "0") for name in ("fps", "batch", "grid", "upscale", "frames")),
    ("sample.py", "--prompt", "x", "--size", "0"),
    ("sample.py", "--prompt", "x", "--fps", "1e10"),
    ("tools/evaluate_samples.py", "embedded", "--steps", "0"),
    ("tools/evaluate_samples.py", "embedded", "--guidance", "inf"),
    ("tools/evaluate_samples.py", "embedded", "--clips", "1"),
)


def test_numbers_out_of_range_are_refused_before_torch_is_loaded() -> None:
    """sample.py imported torch, for two seconds and more, to say that --steps 0 is none."""
    code = (
        "import sys; from tests.commands import call\n"
        f"for words in {OUT_OF_RANGE!r}:\n"
        "    done = call(*words)\n"
        "    option = [word for word in words if word.startswith('--')][-1]\n"
        "    named = option.strip('-').split('-')[0] in done.stderr\n"
        "    print(done.returncode, named, done.stderr.count('\\n'), 'torch' in sys.modules, *words)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [" ".join(("2 True 1 False", *words)) for words in OUT_OF_RANGE]


def test_mistyped_paths_are_reported_before_torch_is_loaded() -> None:
    """sample.py took 5.7 s to report a missing checkpoint. One process for all: it names the commands that load it."""
    code = (
        "import sys; from tests.commands import call\n"
        f"for words in {MISTYPED!r}:\n"
        "    done = call(*words)\n"
        "    print(done.returncode, 'nowhere' in done.stderr, 'torch' in sys.modules, *words)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [" ".join(("2 True False", *words)) for words in MISTYPED]
