"""A law holds for one recipe: it has every key that makes another run, but for those that a law varies."""

import pytest

from videoscaling.training.config import Config, load_config
from videoscaling.training.keys import NEVER, info_of
from videoscaling.training.result import recipe
from videoscaling.training.run import resolve

VARIED = {"seed", "data.seed", "optim.lr", "model.size", "model.layers", "model.width"} | {
    f"train.{name}" for name in ("tokens", "flops", "milestones", "batch_tokens")
}
# Another value of each key, and the keys that it needs.
OTHERS = {
    "model.heads": ("2",),
    "model.patch": ("[1,2,2]", "train.batch_tokens=8e5"),
    "data.fingerprint": ("y",),
    "data.caption_dropout": ("0.3",),
    "diffusion.process": ("vp_cosine", "diffusion.target=v"),
    "diffusion.target": ("x0", "diffusion.process=vp_cosine"),
    "diffusion.timesteps": ("uniform",),
    "diffusion.logit_mean": ("0.5",),
    "diffusion.logit_std": ("2",),
    "optim.beta1": ("0.8",),
    "optim.beta2_half_life": ("1e6",),
    "optim.beta2_range": ("[0,1]",),
    "optim.eps": ("1e-6",),
    "optim.weight_decay": ("0.1",),
    "optim.clip": ("2",),
    "optim.schedule": ("cosine",),
    "optim.warmup_tokens": ("100",),
    "optim.decay_fraction": ("0.5", "optim.schedule=wsd"),
    "ema.width": ("0.1",),
    "train.dtype": ("bfloat16",),
    "train.init": ("runs/x",),
    "validation.clips": ("10",),
    "validation.timesteps": ("8",),
    "validation.seed": ("3",),
}


def recipe_of(*overrides: str) -> dict:
    end = ["data.cache=x", "model.size=4x128", "train.batch_tokens=8e5", "train.tokens=1e9"]
    config = load_config(None, [*end, *overrides])
    meta = {"latent_shape": [4, 5, 4, 4], "fingerprint": config.data.fingerprint}
    known = {"vae_fingerprint": "v", "text_fingerprint": "t", "validation_hash": "h"}
    return recipe(resolve(config, meta).config, known)


@pytest.mark.parametrize(
    "name", [n for n, info in info_of(Config).items() if info.identity != NEVER and n not in VARIED]
)
def test_what_makes_another_run_makes_another_recipe(name: str) -> None:
    value, *needed = OTHERS[name]
    assert recipe_of(*needed, f"{name}={value}") != recipe_of(*needed)


def test_what_has_no_effect_is_not_in_the_recipe() -> None:
    assert recipe_of("optim.decay_fraction=0.5") == recipe_of() == recipe_of("model.heads=4")
    assert recipe_of("model.heads=2")["heads"] == "of 64 channels"
