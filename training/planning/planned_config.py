"""A plan's configuration for train.py: its YAML on top of a base, the law's optimiser keys, and where a base differs.

Without --base the YAML extends configs/train/gpu.yaml and holds dtype, compilation and layout. With --base the YAML
keeps every key that the base sets, and the layout is written only with --gpus.
"""

import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from videoscaling import ROOT
from videoscaling.training.config import Config, config_from_dict, flatten, known_keys, load_yaml, merge, to_dict
from videoscaling.training.planning.layout import LayoutKeys
from videoscaling.training.planning.memory_formula import ClipShape, assumed_clip
from videoscaling.training.run import WARMUP_FRACTION, cache_indexes, clip_tokens, encoded_shape, resolve
from videoscaling.training.schema import OptimKeys
from videoscaling.utils.devices import best_dtype
from videoscaling.utils.errors import UserError
from videoscaling.utils.yaml_text import Values

GPU_BASE = ROOT / "configs" / "train" / "gpu.yaml"
WARMUP_ROUNDING = 1e-3  # a recipe's warm-up has four decimals, and its tokens are whole
LAYOUT_KEYS = ("parallel", "micro_batch", "activation_checkpointing")


@dataclass(frozen=True)
class Base:
    """A base configuration: its values as written (``extends`` followed), and typed.

    Attributes:
        from_user: whether it is --base, whose keys the plan keeps.
    """

    path: Path
    from_user: bool
    values: Values
    config: Config

    @property
    def name(self) -> str:
        """The path as messages show it."""
        return str(self.path if self.from_user else self.path.relative_to(ROOT))

    @property
    def keys(self) -> set[str]:
        """Dotted keys that the file, or one that it extends, sets."""
        return set(flatten(self.values))

    @property
    def layout(self) -> LayoutKeys:
        """The ``LAYOUT_KEYS`` that it sets."""
        return {name: getattr(self.config.train, name) for name in LAYOUT_KEYS if f"train.{name}" in self.keys}


def fixed_layout(base: Base) -> LayoutKeys:
    """What the base decides of the layout."""
    keys = base.config
    decided: LayoutKeys = {"context": keys.train.context_parallel, "plain_attention": keys.model.attention == "plain"}
    return decided | (base.layout if base.from_user else {})


def default_layout(base: Base) -> LayoutKeys:
    """The layout of a run whose YAML holds none: the base's, defaults included.

    A micro-batch that is not set is left out, as training halves it until it fits.
    """
    return {name: getattr(base.config.train, name) for name in ("parallel", "activation_checkpointing")}


def read_base(path: str | None) -> Base:
    """The base at ``path``, by default the one for GPUs.

    Raises:
        UserError: no such file, or no configuration of train.py.
    """
    values = load_yaml(path or GPU_BASE)
    return Base(Path(path or GPU_BASE), path is not None, values, config_from_dict(values))


def clip_length(base: Base, given: int | None) -> int | None:
    """Tokens per clip of the base's data where its cache is there, else ``given``.

    Raises:
        UserError: the two contradict each other, or the cache is none.
    """
    shape = encoded_shape(base.config)
    if shape is None:
        return given
    found = clip_tokens(base.config, shape)
    if given not in (None, found):
        raise UserError(f"--n-ctx {given}: the clips of {base.name}'s cache have {found} tokens; leave it out")
    return found


def clip_shape(config: Config, n_ctx: int) -> tuple[ClipShape, list[str]]:
    """The shape of a training clip of ``config``'s data, and the assumptions made without a cache.

    Raises:
        UserError: the index.json in data.cache is no cache's index.
    """
    clip, assumed = assumed_clip(n_ctx, tuple(config.model.patch))
    if (shape := encoded_shape(config)) is not None:
        clip = clip._replace(latent_shape=tuple(shape))
        assumed = [text for text in assumed if not text.startswith("latents")]
    texts = [[index.get("text_tokens"), index.get("text_dim")] for index in cache_indexes(config)]
    if texts and all(type(number) is int and number > 0 for text in texts for number in text):
        clip = clip._replace(text_tokens=max(tokens for tokens, _ in texts), text_dim=texts[0][1])
        assumed = [text for text in assumed if not text.startswith("text")]
    return clip, assumed


def planned_yaml(planned: Any, *, recipe: dict, law: str, base: Base, out: Path, layout: bool = False) -> str:
    """The YAML that trains the plan; ``extends`` is relative to the file itself. Warns of milestones dropped.

    Args:
        planned: a ``scaling.planning.plan.Plan``; with its layout where ``layout`` is true.
        recipe: the law's, whose optimiser trains the plan.
        law: the law file, for the first line.
        layout: write the keys of the layout that the base leaves open.

    Raises:
        UserError: train.py would refuse it on top of the base.
    """
    lr, loss = float(planned.lr.value), float(planned.loss.value)
    tokens = math.ceil(planned.T)
    milestones = [milestone for milestone in base.config.train.milestones if milestone <= tokens]
    warmup = _warmup_keys(recipe, base, min([*milestones, tokens]), planned.warnings)
    optim = _optim_values(planned_optim(recipe, base), base)
    values: dict = {
        "name": out.stem,
        "model": {"size": planned.size},
        "optim": {"lr": float(f"{lr:.6g}"), **optim, **warmup},
        "train": {"tokens": tokens, "batch_tokens": planned.B},
    }
    if not base.from_user:
        values["train"] |= {"dtype": planned.assumptions["dtype"], "compile": base.config.train.compile}
    if layout:
        values["train"] |= {
            name: planned.layout[name] for name in LAYOUT_KEYS if not (base.from_user and name in base.layout)
        }
    # The base's own size and end would contradict the plan's.
    for group, names in (("model", ("layers", "width", "heads")), ("train", ("flops",))):
        values[group] |= {name: None for name in names if getattr(getattr(base.config, group), name) is not None}
    if late := [milestone for milestone in base.config.train.milestones if milestone > tokens]:
        values["train"]["milestones"] = milestones
        planned.warnings.append(f"the base's train.milestones {late} are past the plan's end: the config drops them")
    whole = config_from_dict(merge(base.values, values))
    frames, *sides = whole.model.patch
    shape = encoded_shape(whole) or [0, frames * planned.n_ctx, *sides]
    meta = {"latent_shape": shape, "fingerprint": whole.data.fingerprint}
    resolve(whole, meta, bfloat16=lambda: planned.assumptions["dtype"] == "bfloat16")
    head = [f"# Planned by tools/plan.py from {law}: {planned.C:.4g} FLOPs, predicted loss {loss:.5g}."]
    if layout:
        memory = f"{planned.layout['memory_gb']:.3g} GB of each by formula"
        head.append(f"# Laid out for {planned.layout['gpus']} x {planned.assumptions['gpu']}, {memory}.")
    values = {"extends": os.path.relpath(base.path.resolve(), out.resolve().parent), **values}
    return "\n".join([*head, *yaml_lines(values)]) + "\n"


def planned_optim(recipe: dict, base: Base) -> OptimKeys:
    """A plan's optimiser: the base's with the settings of a law's ``recipe``, so that it trains as the law's runs did.

    A user's base keeps the keys that it sets.
    """
    names = {name.removeprefix("optim.") for name in known_keys() if name.startswith("optim.")} - {"lr"}
    found = {name: value for name, value in recipe.items() if name in names and value is not None}
    ruled = {name: value for name, value in found.items() if not (base.from_user and f"optim.{name}" in base.keys)}
    return replace(base.config.optim, **ruled)


def _optim_values(optim: OptimKeys, base: Base) -> Values:
    """The keys of ``optim`` as a plan writes them: all but those that the user's own base sets as they are.

    The rate is the plan's and the warm-up has a rule of its own; only wsd has a decay.
    """
    left_out = {"lr", "warmup_tokens"} | ({"decay_fraction"} if optim.schedule != "wsd" else set())
    return {
        name: value
        for name, value in asdict(optim).items()
        if name not in left_out and not (base.from_user and f"optim.{name}" in base.keys)
    }


def _warmup_keys(recipe: dict, base: Base, first_milestone: int, warnings: list[str]) -> dict[str, int]:
    """The law's warm-up, a share of the smallest milestone, where train.py's own rule is another.

    The same share is left to that rule, which follows a run whose end is changed on the command line.
    """
    share = recipe.get("warmup")
    if not isinstance(share, int | float):
        return {}
    if base.from_user and (tokens := base.config.optim.warmup_tokens) is not None:
        if abs(tokens / first_milestone - share) > WARMUP_ROUNDING:
            warnings.append(
                f"{base.name} has optim.warmup_tokens {tokens}, {tokens / first_milestone:.3g} of the smallest "
                f"milestone, but the law was fitted with {share:.3g}"
            )
        return {}
    return {} if share == WARMUP_FRACTION else {"warmup_tokens": round(share * first_milestone)}


def yaml_lines(values: dict, indent: str = "") -> list[str]:
    """Nested values as YAML, leaves as JSON, which needs no other quotes."""
    lines = []
    for name, value in values.items():
        leaf = "" if isinstance(value, dict) else f" {json.dumps(value, ensure_ascii=False)}"
        lines += [f"{indent}{name}:{leaf}", *(yaml_lines(value, f"{indent}  ") if not leaf else [])]
    return lines


def recipe_warnings(recipe: dict, base: Base, gpu: str | None = None, optim: OptimKeys | None = None) -> list[str]:
    """Keys of the base that differ from the law's runs: its losses hold for one recipe.

    Args:
        gpu: the GPU that is planned for, whose dtype train.dtype=auto becomes.
        optim: the optimiser of the plan's own YAML, where one is written.
    """
    given = flatten(to_dict(base.config if optim is None else replace(base.config, optim=optim)))
    if given["train.dtype"] == "auto" and gpu is not None:
        given["train.dtype"] = best_dtype(gpu)
    warnings = []
    for name, fitted in recipe.items():
        keys = [key for key in given if name in (key.rpartition(".")[2], key.replace(".", "_"))]
        # Training's own key, where validation has one of the same name. log.vae and log.text name folders, while a
        # recipe's vae and text are fingerprints of the data.
        key = next((key for key in keys if not key.startswith(("validation.", "log."))), None)
        if key and fitted is not None and given[key] != fitted:
            warnings.append(f"{base.name} has {key} {given[key]!r}, but the law was fitted with {fitted!r}")
    return warnings + _data_warnings(recipe, base)


def _data_warnings(recipe: dict, base: Base) -> list[str]:
    """Where the base's cache is there and alone: whether the law's runs were trained on the same clips."""
    indexes, fitted = cache_indexes(base.config), recipe.get("data")
    if len(indexes) != 1 or fitted in (None, indexes[0].get("fingerprint")):
        return []
    return [
        f"{base.name} has a data.cache of fingerprint {indexes[0].get('fingerprint')}, but the law was fitted on data "
        f"of fingerprint {fitted}: its losses are of other clips"
    ]
