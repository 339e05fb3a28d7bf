"""The Python interface: arrays in, arrays out, no files needed.

    from videoscaling import fit, load_law, plan, predict, read_runs

    law = fit(read_runs("results/mini/cells"))     # or fit({"N": N, "T": T, "B": B, "lr": lr, "loss": loss})
    predict(law, N=[1e6, 2e6], T=1e7).predicted    # also low, high, mean_low, mean_high, extrapolated
    plan(law, flops=1e14)["N"]

docs/notebooks/laws.ipynb shows each of them on committed runs.
"""

from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

from videoscaling.scaling.law_file import load as load_law
from videoscaling.scaling.laws import Law
from videoscaling.scaling.prediction import predict
from videoscaling.scaling.runs import RunTable, from_arrays
from videoscaling.scaling.runs import read as read_runs

__all__ = ["fit", "load_law", "plan", "predict", "read_runs"]


def fit(runs: RunTable | Mapping[str, ArrayLike], form: str = "auto") -> Law:
    """The law of the runs that are not held out, as ``tools/fit.py all`` gives it.

    It is one response surface where some (N, T) has several (B, lr), and a law of losses where there are losses alone.

    Args:
        runs: from ``read_runs``, or columns [rows] of one length: N parameters, T tokens, B tokens, lr and loss (inf:
            diverged); and where known run_id (milestones of one run err together), n_ctx (tokens per clip), heldout.
        form: of the loss in N and T: "auto" averages by held-out error; "joint", "floorless", "additive" or "product".

    Raises:
        UserError: a column is missing, of another length, or no positive numbers.
        UnsupportedFit: the runs do not support a surface.
    """
    from videoscaling.models.sizes import smooth_width
    from videoscaling.scaling.fitting.method import choose_method, fit_law
    from videoscaling.scaling.fitting.options import Options
    from videoscaling.scaling.fitting.run_info import cost_of

    table = runs if isinstance(runs, RunTable) else from_arrays(runs)
    table, cost, flops = cost_of(table, None, smooth_width)
    method = choose_method(table, "all", False, None)
    return fit_law(table, "all", method, Options(form=form), cost, {"name": "law", "flops": flops}).law


def plan(law: Law, **fixed: Any) -> dict[str, Any]:
    """The run that a law plans, as the object of ``tools/plan.py --json``.

    Args:
        fixed: what is fixed, of ``planning.request.Request``: flops; or params with tokens or flops; or tokens; or
            loss; and batch, n_ctx and so on.

    Raises:
        UserError: contradictory or impossible requests, or a law without what they need.
    """
    from videoscaling.models import sizes
    from videoscaling.scaling.planning.plan import plan as make_plan
    from videoscaling.scaling.planning.request import Request

    return make_plan(law, Request(**fixed), sizes).to_dict()
