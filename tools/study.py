"""What a study shows, from its results and its law alone: noise, exponents, held-out sizes, N_opt, one fixed pair.

python tools/study.py results/mini/cells --law results/mini/law.json
python tools/study.py results/mini/cells --law results/mini/law.json --json > study.json
python tools/study.py results/mini/cells --law results/mini/law.json --expect results/mini/study.json

Answers have intervals where the results identify them. With --expect they are compared with earlier ones: exit
status 1 and a line for each number that differs. docs/reproduction.md shows a whole study.
"""

import argparse
import json
import sys
from pathlib import Path

from videoscaling.models.sizes import smooth_width
from videoscaling.scaling import PAPER, law_file
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.reporting.study import differences, study, text
from videoscaling.tools.inputs import LAW, STUDY, STUDY_ANSWERS
from videoscaling.utils.errors import Parser, path_text, run_cli
from videoscaling.utils.files import read_json
from videoscaling.utils.inputs import check_paths


def arguments() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results",
        type=path_text,
        reads=STUDY,
        help="the study's results: a sweep's folder, or one of committed results",
    )
    parser.add_argument(
        "--law", type=path_text, required=True, reads=LAW, help="law file that tools/fit.py made of them"
    )
    parser.add_argument(
        "--prior", type=path_text, reads=LAW, help="the law file given to tools/fit.py as --prior, if one was"
    )
    parser.add_argument(
        "--expect", type=path_text, reads=STUDY_ANSWERS, help="earlier --json output that this must agree with"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def main() -> int:
    parser = arguments()
    args = parser.parse_args()
    check_paths(parser, args)
    law, reference = law_file.load(args.law), law_file.load(PAPER)
    prior = law_file.load(args.prior) if args.prior else None
    cost = allocation.cost_of(law, smooth_width)
    answers = study(Path(args.results), law, cost, prior=prior, reference=reference)
    print(json.dumps(answers, indent=1) if args.json else text(answers))
    if args.expect is None:
        return 0
    found = list(differences(json.loads(json.dumps(answers)), read_json(args.expect)))
    for line in found:
        print(line, file=sys.stderr)
    print(f"{args.expect}: {'the same numbers' if not found else f'{len(found)} differ'}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    run_cli(main)
