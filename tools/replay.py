"""What ``tools/sweep.py extend`` would have trained of a table of finished runs, and how well that predicts the rest.

python tools/replay.py dense_lr_bs_loss.csv --columns "T=D,B=bs,L=smooth loss" --batch-unit sequences:2048
python tools/replay.py lr_bsz.train.csv --batch-unit sequences:2048 --held-out 1 --shares 0.02 0.1

Regret is that of the predicted pair, at the nearest cell; rms the error of losses within 2 % of their grid's best.
"""

import argparse
import json

from videoscaling.scaling import runs, tables
from videoscaling.scaling.fitting.surface.cells import Cells
from videoscaling.scaling.search.replay import Options, replay
from videoscaling.tools.inputs import RESULTS
from videoscaling.utils.errors import Parser, path_text, run_cli
from videoscaling.utils.inputs import check_paths
from videoscaling.utils.options import add_options, check_bounds, options_of
from videoscaling.utils.text_tables import table


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=path_text, reads=RESULTS, help="a row per run, as tools/fit.py reads it")
    parser.add_argument("--columns", help="as in tools/fit.py, e.g. N=params,T=tokens,B=batch,lr=lr,L=loss")
    parser.add_argument("--batch-unit", help="what a batch counts: tokens, or sequences:TOKENS_EACH")
    add_options(parser, Options)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    options = options_of(Options, args)
    check_bounds(options)
    check_paths(parser, args)
    read = runs.read(args.table, tables.parse_columns(args.columns), args.batch_unit)
    rows = replay(Cells.of_table(read), options)
    if args.json:
        print(json.dumps({"held_out": options.held_out, "noise": options.noise, "rows": rows}))
    else:
        print("\n".join(table(rows)))


if __name__ == "__main__":
    run_cli(main)
