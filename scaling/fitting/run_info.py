"""What a law file says of its runs: their costs, ranges and names, and what to be warned of in them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.laws import FitInfo, Law, Provenance
from videoscaling.scaling.planning.allocation import Cost, c_token, proportional
from videoscaling.scaling.runs import RunTable
from videoscaling.utils.errors import UserError, plural

# C_token at a shape's own width and at the smooth rule's differ by less than this.
SAME_COST = 0.15
# A share of skipped steps above which a fit warns. A run that skipped 10.5 % of its 200 steps ended 1.2 % higher:
# 1 % costs about 0.1 % of the loss, as much as the cells differ among which a grid's optimum lies (0.06 to 0.2 %).
MAX_SKIPPED = 0.01


def cost_of(table: RunTable, n_ctx: int | None, width: Callable[[float], float]) -> tuple[RunTable, Cost, str]:
    """The table with its tokens per clip, training FLOPs per token as a function of N, and as text where these
    come from.

    Args:
        n_ctx: tokens per clip as the user gives them, or None.
        width: of a model with N parameters.
    """
    known = {int(n) for n in table.n_ctx if n > 0}
    if n_ctx is not None and known - {n_ctx}:
        raise UserError(f"--n-ctx {n_ctx}: the results have {', '.join(map(str, sorted(known)))}; leave it out")
    if n_ctx is not None and np.allclose(table.flops, 6 * table.N * table.T, rtol=1e-9, atol=0):
        raise UserError(f"--n-ctx {n_ctx}: the results' T are flops / 6N, which is another cost; leave it out")
    if n_ctx is not None or len(known) == 1:
        tokens = n_ctx or known.pop()
        if np.any(table.B / tokens < 1 - 1e-9):
            raise UserError(
                f"{table.source}: a batch of {np.nanmin(table.B):g} tokens is less than one clip of {tokens}; if "
                f"batches are counted in clips, say --batch-unit sequences:{tokens}"
            )
        table = replace(table, n_ctx=np.full(len(table), tokens))
        return table, c_token(tokens, width), f"C_token with n_ctx {tokens}"
    if np.any(np.isfinite(table.flops)):
        ratio = float(np.nanmedian(table.flops / (table.N * table.T)))
        return table, proportional(ratio), f"{ratio:.3g} N T, from the flops column"
    return table, proportional(), "6 N T, assumed"


def recipe_warnings(table: RunTable) -> list[str]:
    """A line where the runs were not trained alike: one law's losses hold for one recipe."""
    differing = table.recipe.get("differs_between_runs")
    return [f"the runs differ in {', '.join(differing)}: their losses are not of one recipe"] if differing else []


def skipped_warnings(table: RunTable) -> list[str]:
    """A line where runs skipped more of their steps than ``MAX_SKIPPED``: they learned from fewer tokens than T."""
    many = np.isfinite(table.loss) & (table.skipped > MAX_SKIPPED)
    if not many.any():
        return []
    worst = np.argmax(np.where(many, table.skipped, 0))
    return [
        f"{plural(len(set(table.run_id[many])), 'run')} skipped more than {100 * MAX_SKIPPED:g} % of their steps, as "
        f"their gradients were not finite ({table.run_id[worst]}: {100 * table.skipped[worst]:.3g} %): their losses "
        "are those of fewer tokens than T"
    ]


def tokens_per_clip(table: RunTable) -> int | None:
    """Tokens per clip where the whole run table has the same."""
    return int(table.n_ctx[0]) if len(set(table.n_ctx)) == 1 and table.n_ctx[0] > 0 else None


def run_names(table: RunTable) -> list[str]:
    """Names of the runs; rows of a table that names none are from the first to the last."""
    names = sorted(set(table.run_id.tolist()))
    if len(names) > 2 and all(name.startswith("row-") and name[4:].isdigit() for name in names):
        numbers = [int(name[4:]) for name in names]
        return [f"row-{min(numbers)} to row-{max(numbers)}"]
    return names


def training_flops(table: RunTable, N: NDArray, T: NDArray, cost: Cost) -> NDArray[np.float64]:
    """Training FLOPs of points N, T [points]: by what each size's runs recorded, which knows their own widths.

    Runs that counted by another rule than ``cost`` are left out: their budgets cannot be compared with the others'.
    """
    per_token = np.array(cost(N), dtype=float)
    for size in np.unique(N):
        seen = table.flops[size == table.N] / table.T[size == table.N]
        if np.isfinite(seen).any() and abs(np.nanmedian(seen) / cost(size) - 1) < SAME_COST:
            per_token[size == N] = np.nanmedian(seen)
    return T * per_token


def flops_per_parameter_token(table: RunTable, cost: Cost) -> float | None:
    """Of a law whose cost does not follow from its tokens per clip."""
    return None if tokens_per_clip(table) else float(cost(np.array(1e9)) / 1e9)


def law_of(
    table: RunTable,
    N: NDArray,
    T: NDArray,
    cost: Cost,
    provenance: Provenance,
    unknown: dict[str, str],
    fit: FitInfo,
    **parts: Any,
) -> Law:
    """The law of fitted ``parts``, with what a law file says of the runs behind it.

    Args:
        N, T: [points] that were fitted.
        unknown: the reasons for what is null.
        fit: how it was fitted.
    """
    return Law(
        **(dict.fromkeys(("batch", "lr", "loss", "allocation", "curvature", "lr_given_batch", "draws")) | parts),
        name=str(provenance.get("name", "law")),
        n_ctx=tokens_per_clip(table),
        domain=domain(table, N, T, cost),
        recipe=table.recipe,
        fit=fit,
        provenance=provenance | {"unknown": unknown, "source": table.source, "runs": run_names(table)},
    )


def domain(table: RunTable, N: NDArray, T: NDArray, cost: Cost) -> dict[str, list[float] | None]:
    """(smallest, largest) of the points N, T [points], of the batches and of training FLOPs; None where unknown."""
    C = training_flops(table, N, T, cost)
    spans = {"N": N, "T": T, "B": table.B, "C": C}
    return {name: None if np.isnan(v).any() else [float(np.min(v)), float(np.max(v))] for name, v in spans.items()}
