"""Plans as the objects of ``tools/plan.py --json``."""

from typing import Any

from videoscaling.models import sizes
from videoscaling.scaling.laws import Law
from videoscaling.scaling.planning.plan import plan as make_plan
from videoscaling.scaling.planning.request import Request
from videoscaling.scaling.planning.table import table


def plan(law: Law, request: Request) -> dict[str, Any]:
    return make_plan(law, request, sizes).to_dict()


def text_of(law: Law, request: Request) -> str:
    return table(make_plan(law, request, sizes))
