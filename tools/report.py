"""One HTML page about a sweep: its figures, its laws, the prediction against the planned run, sampled videos.

python tools/report.py runs/my_sweep --law law.json --planned runs/planned --samples samples/ --out report.html
python tools/report.py results/mini/cells --law results/mini/law.json --figures runs/figures --out runs/report.html
"""

import argparse
from datetime import date
from pathlib import Path

from videoscaling.models.sizes import smooth_width
from videoscaling.scaling import PAPER, law_file, runs, tables
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.reporting import report
from videoscaling.scaling.reporting.measured_run import compare
from videoscaling.scaling.reporting.sources import Sources
from videoscaling.tools.inputs import FOLDER, LAW, RESULTS, RUN
from videoscaling.utils.errors import Parser, path_text, run_cli
from videoscaling.utils.inputs import check_paths
from videoscaling.utils.results import FILE, read_result
from videoscaling.utils.revision import code_revision


def arguments() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results",
        type=path_text,
        reads=RESULTS,
        help="the sweep's folder, or the CSV or JSONL file the law was fitted on",
    )
    parser.add_argument("--law", type=path_text, required=True, reads=LAW, help="law file from tools/fit.py")
    parser.add_argument(
        "--planned",
        type=Path,
        reads=RUN,
        help="run directory of what tools/plan.py planned: prediction against measurement",
    )
    parser.add_argument("--samples", type=Path, reads=FOLDER, help="folder of sampled gif, png or mp4 files to show")
    parser.add_argument("--columns", help="as in tools/fit.py")
    parser.add_argument("--batch-unit", help="as in tools/fit.py")
    parser.add_argument(
        "--figures",
        aliases=("--png",),
        type=Path,
        writes="folder",
        help="also write each figure into this folder: SVG, PNG, its points as CSV, its caption as text",
    )
    parser.add_argument(
        "--tensorboard",
        type=path_text,
        writes="folder",
        help="also write the figures as TensorBoard images into this folder",
    )
    parser.add_argument("--out", type=Path, writes="file", required=True, help="HTML file to write")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    check_paths(parser, args)
    law, published = law_file.load(args.law), law_file.load(PAPER)
    table = runs.read(args.results, tables.parse_columns(args.columns), args.batch_unit, hyperparameters=False)
    planned = compare(law, read_result(args.planned / FILE)) if args.planned else None
    made = f"; figure by commit {(code_revision() or 'unknown')[:10]} on {date.today().isoformat()}"
    cost = allocation.cost_of(law, smooth_width)
    sources = Sources.of(table, law, cost, planned=planned, published=published, made=made)
    charts = report.write(sources, args.out, args.samples, args.figures)
    if args.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(args.tensorboard) as writer:
            for chart in charts:
                writer.add_figure(f"scaling/{chart.name}", chart.figure)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    run_cli(main)
