"""Turn a compute budget into a run: model size, tokens, batch, learning rate, predicted loss and cost.

python tools/plan.py --law configs/laws/paper.json --flops 1e22
python tools/plan.py --law law.json --flops 1e15 --base configs/train/x.yaml --out configs/train/planned.yaml

Beyond 100 times the compute that the law was fitted on, and far below it, the plan warns. docs/laws.md has the laws as
formulas and the law file's keys.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import sizes
from scaling import laws
from scaling.plan import ESTIMATORS, Request, plan
from scaling.plan_table import table
from utils.devices import PEAK_FLOPS
from utils.errors import Parser, UserError, run_cli
from utils.files import write_text


def arguments() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--law", required=True, help="law file, such as configs/laws/paper.json or one from tools/fit.py"
    )
    budget = parser.add_argument_group("what is fixed (one of them, or --params with one of them)")
    budget.add_argument("--flops", type=float, help="training compute, e.g. 1e22")
    budget.add_argument("--gpu-hours", type=float, help="training compute as hours of --gpu at --mfu")
    budget.add_argument("--tokens", type=float, help="training tokens T")
    budget.add_argument("--loss", type=float, help="validation loss to reach")
    budget.add_argument("--params", type=float, help="model parameters N")
    parser.add_argument("--batch", type=float, help="batch in tokens, where memory dictates it; the rate follows")
    parser.add_argument("--n-ctx", type=int, help="tokens per clip (default: --base's, or the law's)")
    parser.add_argument("--estimator", help=f"how to choose N: {', '.join(ESTIMATORS)} (default: the law's)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="loss given away, relative, for the range of N (default 0.001)"
    )
    parser.add_argument("--gpu", default="h100", help=f"one of {', '.join(PEAK_FLOPS)} (default h100)")
    parser.add_argument("--mfu", type=float, default=0.4, help="fraction of the GPU's peak reached (default 0.4)")
    parser.add_argument("--sampler-steps", type=int, default=50, help="sampling steps per clip served (default 50)")
    parser.add_argument(
        "--no-guidance", action="store_true", help="sample without guidance: one forward per step, not two"
    )
    parser.add_argument(
        "--serve-clips",
        type=float,
        help="clips to be served: minimise training plus serving at equal loss, "
        "which trains for longer than the budget",
    )
    parser.add_argument(
        "--base",
        help="config that supplies data, VAE and the rest; the plan's config extends it. Where its data.cache is "
        "there, its tokens per clip overrides the law's",
    )
    parser.add_argument("--out", help="write a config that train.py runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def config(planned: dict, law: str, base: str | None, out: Path) -> str:
    """The YAML that trains the plan; ``extends`` is relative to the file itself. Warns of milestones dropped.

    Raises:
        UserError: train.py would refuse it on top of the base.
    """
    from training.config import config_from_dict, load_yaml, merge
    from training.resolve import encoded_shape, resolve

    number = {name: v["value"] if isinstance(v := planned[name], dict) else v for name in ("lr", "loss")}
    tokens, under = math.ceil(planned["T"]), load_yaml(base) if base else {}
    values: dict = {
        "name": out.stem,
        "model": {"size": planned["size"]},
        "optim": {"lr": float(f"{number['lr']:.6g}")},
        "train": {"tokens": tokens, "batch_tokens": planned["B"]},
    }
    # The base's own size and end would contradict the plan's.
    held = config_from_dict(under)
    for group, names in (("model", ("layers", "width", "heads")), ("train", ("flops",))):
        values[group] |= {name: None for name in names if getattr(getattr(held, group), name) is not None}
    if late := [milestone for milestone in held.train.milestones if milestone > tokens]:
        values["train"]["milestones"] = [milestone for milestone in held.train.milestones if milestone <= tokens]
        planned["warnings"].append(
            f"the base's train.milestones {late} are past the plan's end: the config drops them"
        )
    whole = config_from_dict(merge(under, values))
    frames, *sides = whole.model.patch
    shape = encoded_shape(whole) or [0, frames * planned["n_ctx"], *sides]
    resolve(whole, {"latent_shape": shape, "fingerprint": whole.data.fingerprint})
    head = [f"# Planned by tools/plan.py from {law}: {planned['C']:.4g} FLOPs, predicted loss {number['loss']:.5g}."]
    if base:
        values = {"extends": os.path.relpath(Path(base).resolve(), out.resolve().parent), **values}
    return "\n".join([*head, *yaml_lines(values)]) + "\n"


def yaml_lines(values: dict, indent: str = "") -> list[str]:
    """Nested values as YAML, leaves as JSON: what they hold needs no other quotes."""
    lines = []
    for name, value in values.items():
        leaf = "" if isinstance(value, dict) else f" {json.dumps(value, ensure_ascii=False)}"
        lines += [f"{indent}{name}:{leaf}", *(yaml_lines(value, f"{indent}  ") if not leaf else [])]
    return lines


def recipe_warnings(recipe: dict, base: str) -> list[str]:
    """Keys of the base config that differ from what the law was fitted with: its losses hold for one recipe."""
    from training.config import config_from_dict, flatten, load_yaml, to_dict

    given = flatten(to_dict(config_from_dict(load_yaml(base))))
    warnings = []
    for name, fitted in recipe.items():
        keys = [key for key in given if name in (key.rpartition(".")[2], key.replace(".", "_"))]
        # Training's own key, where validation has one of the same name.
        key = next((key for key in keys if not key.startswith("validation.")), None)
        if key and fitted is not None and given[key] != fitted:
            warnings.append(f"{base} has {key} {given[key]!r}, but the law was fitted with {fitted!r}")
    return warnings


def tokens_of(base: str, given: int | None) -> tuple[int | None, str]:
    """(tokens per clip of the base config's data, where its cache is at hand, else what was ``given``; its cache).

    Raises:
        UserError: the two contradict each other, or the cache is none.
    """
    from training.config import load_config
    from training.resolve import clip_tokens, encoded_shape

    config = load_config(base, [])
    shape = encoded_shape(config)
    if shape is None:
        return given, config.data.cache
    found = clip_tokens(config, shape)
    if given not in (None, found):
        raise UserError(f"--n-ctx {given}: the clips of {base}'s cache have {found} tokens; leave it out")
    return found, config.data.cache


def main() -> None:
    args = arguments().parse_args()
    if args.base and not Path(args.base).is_file():
        raise UserError(f"--base {args.base}: no such file")
    cache = ""
    if args.base:
        args.n_ctx, cache = tokens_of(args.base, args.n_ctx)
    request = Request(
        args.flops, args.params, args.tokens, args.loss, args.gpu_hours, args.gpu.lower(), args.mfu, args.batch,
        args.n_ctx, args.estimator, args.tolerance, args.sampler_steps, not args.no_guidance, args.serve_clips,
    )  # fmt: skip
    law = laws.load(args.law)
    planned = plan(law, request, sizes)
    if args.base:
        planned["warnings"] += recipe_warnings(law.recipe, args.base)
    if cache and args.n_ctx is None:
        planned["warnings"].append(
            f"n_ctx {planned['n_ctx']} is the law's: {cache}, the base's cache, is not there yet; plan again when "
            "it is"
        )
    if args.out:
        write_text(args.out, config(planned, args.law, args.base, Path(args.out)))
    print(json.dumps(planned, indent=1) if args.json else table(planned))
    if args.out and not args.json:
        missing = "" if cache else " data.cache=FOLDER"
        print(f"wrote {args.out}; train it with: python train.py --config {args.out}{missing}")
        if missing:
            print("(latents of tools/cache_latents.py; a --base that names them makes the config whole)")


if __name__ == "__main__":
    run_cli(main)
