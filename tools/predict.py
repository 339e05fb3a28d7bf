"""Predict the loss of each run in a table, with intervals, from a law file.

    python tools/predict.py --law configs/laws/paper.json runs.csv --out predicted.csv
    python tools/predict.py --law law.json table.csv --columns N=params,T=tokens --seeds 3
    python tools/predict.py --law surface.json table.csv --columns B=batch --batch-unit sequences:2048

Each row needs N (parameters) and T (tokens). A law file with a surface, as fit.py makes of grids, also reads B and
lr: rows without them are predicted at the best ones. Added columns: predicted; low and high, the 95 % interval of one
new run, its noise included (of the mean of K runs with --seeds K); mean_low and mean_high, the law's own; of
a surface regret, regret_low and regret_high, what the row's B and lr cost over the best ones (relative loss, 95 %);
extrapolated, 1 outside the fitted range. Rows keep their order. Without --out the table goes to stdout. docs/laws.md
says how the intervals are made.
"""

import argparse
import sys
from pathlib import Path

from videoscaling.scaling import law_file, prediction_table
from videoscaling.scaling.prediction import predict, unread_note
from videoscaling.scaling.tables import parse_columns
from videoscaling.tools.inputs import LAW, TABLE
from videoscaling.utils.errors import Parser, UserError, path_text, plural, run_cli
from videoscaling.utils.files import atomic_write
from videoscaling.utils.inputs import check_paths
from videoscaling.utils.options import number


def arguments() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "table", type=path_text, reads=TABLE, help="CSV, TSV, JSON lines (or .gz of these) or Parquet, a row a run"
    )
    parser.add_argument(
        "--law", type=path_text, required=True, reads=LAW, help="law file, such as one from tools/fit.py"
    )
    parser.add_argument("--columns", help="OURS=THEIRS,...: how the table names N, T, B and lr")
    parser.add_argument("--batch-unit", help="what the table's batch counts: tokens, or sequences:TOKENS_EACH")
    parser.add_argument(
        "--seeds", type=number(int, 1, 1000), default=1, help="low and high hold the mean of so many new runs"
    )
    parser.add_argument("--out", type=path_text, writes="file", help="CSV to write (default: stdout)")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    check_paths(parser, args)
    law, columns = law_file.load(args.law), parse_columns(args.columns)
    reads_pairs = law.response.reads_pairs
    if unread := [ours for ours in columns if ours not in ("N", "T", "B", "lr")]:
        raise UserError(f"--columns: {unread[0]} is not read here; leave it out")
    if not reads_pairs and (args.batch_unit or {"B", "lr"}.intersection(columns)):
        option = "batch-unit" if args.batch_unit else "columns"
        raise UserError(
            f"--{option}: law {law.name!r} has no surface: its loss is that of the best B and lr, which are not read; "
            "leave them out"
        )
    table = prediction_table.read(Path(args.table), columns, args.batch_unit, reads_pairs)
    predicted = predict(law, table.N, table.T, table.B, table.lr, seeds=args.seeds)
    unread = [unread_note(law, table.unread)] if table.unread else []
    for note in (*predicted.notes, *unread):
        print(f"note: {note}", file=sys.stderr)
    if not args.out:
        prediction_table.write(table, predicted, sys.stdout)
        return
    with atomic_write(args.out) as tmp, tmp.open("w", newline="", encoding="utf-8") as handle:
        prediction_table.write(table, predicted, handle)
    outside = int(predicted.extrapolated.sum())
    print(f"wrote {args.out}: {plural(len(table.rows), 'row')}, {outside} outside the fitted range")


if __name__ == "__main__":
    run_cli(main)
