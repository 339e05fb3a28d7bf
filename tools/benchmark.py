"""Benchmarks of training, sampling and data on this machine.

    python tools/benchmark.py --minutes 10
    python tools/benchmark.py peers --dtype bfloat16

--minutes: training steps by size, clip and layout, and stacked runs, the most useful figures first, each in a process
of its own and on disk when it is known, with the account of a step's FLOPs and bytes (what limits it?).
rates: of a matrix product and of memory.  attention: its backends.
sample: a video's time, and the shares of model, guidance and VAE.
data: reading cached latents; decoding, alone and during encoding.
peers: our model's step and diffusers' Wan's of equal shape.  stack: runs trained together and one by one.

Alternatives are timed in turn, round after round, in one process. The table shows medians; --json adds quartiles.
FLOPs are C_token's (3/4 N (7 + n_ctx / width) a token) unless called exact.
"""

import argparse
import importlib
import json
import tempfile
from pathlib import Path

from videoscaling.models.sizes import parse_size
from videoscaling.tools.benchmarks.shapes import CLIPS
from videoscaling.utils.devices import pick_device
from videoscaling.utils.errors import Parser, UserError, path_text, run_cli
from videoscaling.utils.inputs import check_paths
from videoscaling.utils.options import number

# Each part's module in tools/benchmarks.
PARTS = {
    "rates": "rates",
    "attention": "attention",
    "sample": "sampling",
    "data": "data",
    "peers": "peers",
    "stack": "stack",
}
# Options that a part does not read.
UNREAD = {part: ("minutes", "out", *(() if part == "stack" else ("stack",))) for part in PARTS}
UNREAD["data"] += ("size", "dtype")
UNREAD["rates"] += ("size", "clips", "n_ctx")
OF_PARTS = ("size", "clips", "n_ctx", "stack", "dtype", "rounds", "device", "json")


def arguments() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(PARTS), nargs="?", help="one part alone, instead of --minutes")
    parser.add_argument("--minutes", type=number(float, 0, 1e5), help="measure what fits into so many minutes")
    parser.add_argument(
        "--out", type=path_text, writes="file", help="with --minutes: JSON lines, appended (default benchmark.jsonl)"
    )
    parser.add_argument("--size", action="append", help="LAYERSxWIDTH; may be given again (default: by part)")
    parser.add_argument("--clips", type=int, help="clips per step (stack 2 and 8, peers 2, sample 4, attention 2)")
    parser.add_argument(
        "--n-ctx", type=int, choices=tuple(CLIPS), help="tokens per clip (80; stack 64; peers and attention 1280)"
    )
    parser.add_argument("--stack", type=int, default=8, help="runs trained together, in part stack (default 8)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="what blocks compute in")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each thing, after warming up")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object with quartiles, versions and device"
    )
    return parser


def measure_all(args: argparse.Namespace) -> int:
    """Measure a machine's figures for ``--minutes``; returns the exit status."""
    if args.minutes is None:
        raise UserError(f"give --minutes 10, or a part: {', '.join(PARTS)}")
    from videoscaling.tools.benchmarks.figures import measure
    from videoscaling.tools.benchmarks.report import about, headline

    device, out = pick_device(None), Path(args.out or "benchmark.jsonl")
    facts = about(device)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"about": facts}) + "\n")
    print(headline(facts))
    with tempfile.TemporaryDirectory() as folder:
        missing = measure(args.minutes, out, device.type, Path(folder))
    if missing:
        print(f"not measured in {args.minutes:g} minutes: {'; '.join(missing)}")
    print(f"{out}: one line for each figure")
    return 0


def main() -> int:
    parser = arguments()
    args = parser.parse_args()
    check_paths(parser, args)
    if args.part is None:
        parser.refuse_unread(args, OF_PARTS, "is for a part, such as rates")
        return measure_all(args)
    parser.refuse_unread(args, UNREAD[args.part], f"not read by the part {args.part}")
    if args.part == "peers" and len(args.size or []) > 1:
        raise UserError("--size: the part peers compares one size; give it once")
    if args.rounds < 1 or (args.clips is not None and args.clips < 1):
        raise UserError("--rounds and --clips: must be at least 1")
    for size in args.size or ():
        parse_size(size)
    if args.stack < 1:
        raise UserError("--stack: must be at least 1")
    from videoscaling.tools.benchmarks.report import about, headline, table

    device = pick_device(args.device)
    module = importlib.import_module(f"videoscaling.tools.benchmarks.{PARTS[args.part]}")
    rows = getattr(module, f"bench_{args.part}")(args, device)
    facts = about(device)
    if args.json:
        print(json.dumps({"benchmark": args.part, "about": facts, "rows": rows}, indent=1))
    else:
        print(headline(facts))
        print(table(rows))
    return 0


if __name__ == "__main__":
    run_cli(main)
