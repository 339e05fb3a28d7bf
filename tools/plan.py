"""Turn a compute budget into a run: model size, tokens, batch, learning rate, predicted loss and cost.

python tools/plan.py --law configs/laws/paper.json --flops 1e22
python tools/plan.py --law configs/laws/paper.json --flops 1e22 --gpu h100 --gpus 64 --out planned.yaml
python tools/plan.py --law law.json --flops 1e15 --base configs/train/quickstart.yaml --out runs/planned.yaml
python tools/plan.py --law configs/laws/paper.json --law runs/law.json --html runs/planner.html

A plan is fixed by --flops, --gpu-hours, --tokens or --loss, or by --params and one of these.
Beyond 100 times the compute that the law was fitted on, and far below it, the plan warns. docs/laws.md has the laws as
formulas and the law file's keys.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

from videoscaling.models import sizes
from videoscaling.scaling import law_file, laws
from videoscaling.scaling.planning.plan import Plan, plan
from videoscaling.scaling.planning.request import Request
from videoscaling.scaling.planning.table import table
from videoscaling.tools.inputs import CONFIG, LAW
from videoscaling.training.planning import planned_config
from videoscaling.training.planning.layout import (
    BATCH_TOLERANCE,
    DEFAULT_GPUS,
    MIN_GPU_TOKENS,
    add_layout,
    check_machine,
    default_gpus,
    shared_clips,
)
from videoscaling.training.planning.memory_formula import ModelShape
from videoscaling.training.run import beta2_warnings
from videoscaling.utils.devices import GPUS
from videoscaling.utils.errors import Parser, UserError, path_text, plural, run_cli
from videoscaling.utils.files import write_text
from videoscaling.utils.inputs import check_paths
from videoscaling.utils.options import add_options, options_of


def arguments() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--law",
        type=path_text,
        required=True,
        reads=LAW,
        action="append",
        help="law file, such as configs/laws/paper.json or one from tools/fit.py; several with --html",
    )
    parser.add_argument(
        "--prior",
        type=path_text,
        reads=LAW,
        help="law file whose batch and rate are taken, and marked as assumed, where --law has neither",
    )
    add_options(parser, Request)
    parser.add_argument(
        "--gpus",
        type=int,
        help="GPUs that share each step; the law's batch moves to the nearest that they share evenly (default: the "
        f"most up to {DEFAULT_GPUS} with {MIN_GPU_TOKENS} tokens each that move it by no more than "
        f"{100 * BATCH_TOLERANCE:g} per cent; one with --base)",
    )
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GB", help="memory of one GPU, where it differs from the largest sold"
    )
    parser.add_argument(
        "--no-guidance",
        dest="guidance",
        action="store_false",
        help="sample without guidance: one forward per step, not two",
    )
    parser.add_argument(
        "--base",
        type=path_text,
        reads=CONFIG,
        help="config that supplies data, VAE and the rest, and whose keys the plan's config keeps; it extends "
        "configs/train/gpu.yaml without. Where its data.cache is there, its tokens per clip overrides the law's; the "
        "layout is written with --gpus alone",
    )
    parser.add_argument("--out", type=path_text, writes="file", help="write a config that train.py runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--html",
        type=path_text,
        writes="file",
        metavar="PAGE",
        aliases=("--page", "--web"),
        help="write a page with sliders for the budget, the GPU and the clips served, of one or more laws",
    )
    return parser


def plan_for_gpus(law: laws.Law, request: Request, gpus: int | None) -> tuple[Plan, int]:
    """(The plan, GPUs that share its batch evenly); the law's batch moves to the nearest that they can share.

    ``gpus`` None: the most up to a node's that move it by no more than ``BATCH_TOLERANCE``, and not a batch that the
    user gave.

    Raises:
        UserError: ``gpus`` cannot share the batch that the user gave.
    """
    planned = plan(law, request, sizes)
    n_ctx = planned.n_ctx
    if planned.B is None:
        return planned, 1
    clips = planned.B // n_ctx
    count, shared = min(gpus or default_gpus(clips, n_ctx), clips), clips
    if request.batch is None:
        shared = shared_clips(clips, count)
        if shared * n_ctx > planned.T:
            shared = clips // count * count
    elif gpus is None:
        count = next(number for number in range(count, 0, -1) if clips % number == 0)
    elif clips % count:
        low = clips // count * count
        raise UserError(
            f"--batch {planned.B}: {plural(clips, 'clip')} cannot be shared by {count} GPUs; nearest {low * n_ctx} "
            f"and {(low + count) * n_ctx}"
        )
    if shared != clips:
        # The rate, the loss and the tokens follow the batch, as where memory dictates one.
        planned = plan(law, replace(request, batch=float(shared * n_ctx)), sizes)
    if gpus and gpus > count:
        planned.warnings.append(
            f"a batch of {plural(clips, 'clip')} can be shared by at most {plural(clips, 'GPU')}, not by {gpus}"
        )
    return planned, count


def load_law(path: str, prior: str | None) -> laws.Law:
    """The law file, with the batch and the rate of another where one is given.

    Raises:
        UserError: it has its own.
    """
    law = law_file.load(path)
    if prior is None:
        return law
    if law.batch is not None or law.lr is not None or law.surface is not None:
        raise UserError(f"--prior: law {law.name!r} has a batch or a rate of its own; leave it out")
    other = law_file.load(prior)
    other.require("batch", "lr")
    return laws.with_hyperparameters(law, other)


def launcher(gpus: int) -> str:
    """What starts train.py on so many GPUs, on nodes of 8 or of the most below 8 that divide them."""
    each = next(count for count in range(DEFAULT_GPUS, 0, -1) if gpus % count == 0)
    if gpus == 1:
        return "python"
    return f"torchrun {'--standalone' if each == gpus else f'--nnodes {gpus // each}'} --nproc_per_node {each}"


def write_page(parser: Parser, args: argparse.Namespace) -> None:
    """Write --html's page, by each --law."""
    from videoscaling.scaling.planning.page import page  # its template is read for it alone

    fixed = ("gpu_hours", "tokens", "loss", "params", "batch", "prior", "gpus", "gpu_memory", "base", "out", "json")
    parser.refuse_unread(args, fixed, "--html plans every budget on its own")
    found = {path: law_file.load(path) for path in args.law}
    write_text(args.html, page(found, options_of(Request, args), sizes))
    print(f"wrote {args.html}; open it in a browser")


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    check_paths(parser, args)
    if args.html:
        return write_page(parser, args)
    if len(args.law) > 1:
        raise UserError("--law: a plan is by one law; several go side by side with --html PAGE")
    args.law = args.law[0]
    check_machine(args.gpus, args.gpu_memory)
    base = planned_config.read_base(args.base)
    args.n_ctx = planned_config.clip_length(base, args.n_ctx)
    cache = base.config.data.cache
    request = options_of(Request, args, dtype=base.config.train.dtype)
    law = load_law(args.law, args.prior)
    # Without --gpus a user's base keeps its layout: the plan is for the one process that the base starts.
    layout = not args.base or args.gpus is not None
    planned, gpus = plan_for_gpus(law, request, args.gpus if layout else 1)
    clip, assumed = planned_config.clip_shape(base.config, planned.n_ctx)
    token_dim = clip.latent_shape[0] * math.prod(base.config.model.patch)
    shape = ModelShape(planned.layers, planned.width, planned.heads, token_dim, clip.text_dim)
    optim = planned_config.planned_optim(law.recipe, base)
    if planned.B is not None:
        add_layout(
            planned,
            shape,
            clip,
            gpus=gpus,
            memory_gb=args.gpu_memory or GPUS[request.gpu].memory_gb,
            assumed=assumed,
            fixed=planned_config.fixed_layout(base),
            unwritten={} if layout else planned_config.default_layout(base),
            batch_moves=request.batch is None,
        )
        planned.warnings += beta2_warnings([(optim, planned.B)])
    planned.warnings += planned_config.recipe_warnings(law.recipe, base, request.gpu, optim)
    if cache and args.n_ctx is None:
        planned.warnings.append(
            f"n_ctx {planned.n_ctx} is the law's: {cache}, the base's cache, is not there yet; plan again when it is"
        )
    if args.out:
        if lacking := [name for name in ("B", "lr") if getattr(planned, name) is None]:
            raise UserError(
                f"--out: law {law.name!r} gives no {' and no '.join(lacking)}, which a run needs; --prior LAW takes "
                "both from another law, such as configs/laws/paper.json"
            )
        out = Path(args.out)
        text = planned_config.planned_yaml(planned, recipe=law.recipe, law=args.law, base=base, out=out, layout=layout)
        write_text(out, text)
    print(json.dumps(planned.to_dict(), indent=1) if args.json else table(planned))
    if args.out and not args.json:
        missing = "" if cache else " data.cache=FOLDER"
        print(f"wrote {args.out}; train it with: {launcher(gpus)} train.py --config {args.out}{missing}")
        if gpus > DEFAULT_GPUS:
            print("(on each node, with its --node_rank and with --master_addr and --master_port: docs/training.md)")
        if missing:
            print("(latents of tools/cache_latents.py; a --base that names them makes the config whole)")


if __name__ == "__main__":
    run_cli(main)
