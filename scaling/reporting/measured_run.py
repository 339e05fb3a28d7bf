"""A trained run against what its law predicted."""

from dataclasses import dataclass

from videoscaling.scaling.checks.heldout import relative_error
from videoscaling.scaling.laws import Law
from videoscaling.scaling.prediction import predict
from videoscaling.scaling.tables import positive
from videoscaling.utils.errors import UserError
from videoscaling.utils.results import RunResult


@dataclass(frozen=True)
class Milestone:
    """A milestone of a planned run: T, its loss with standard error, the prediction, and the training FLOPs until it.

    ``low`` and ``high`` are the law's 95 % interval, nan where it has none; ``error`` is measured / predicted - 1.
    """

    T: float
    loss: float
    se: float
    predicted: float
    low: float
    high: float
    error: float
    flops: float | None


@dataclass(frozen=True)
class MeasuredRun:
    """A run that was planned by a law, against the law's predictions."""

    N: float
    milestones: tuple[Milestone, ...]


def compare(law: Law, result: RunResult) -> MeasuredRun:
    """Prediction against measurement at each milestone of a run, from its ``result.json``."""
    if not result["milestones"]:
        raise UserError("the planned run has no milestone to compare with")
    N, found = positive(result.get("N"), "the planned run's N"), []
    for milestone in result["milestones"]:
        weights = "val" if milestone.get("ema_val_loss") is None else "ema_val"
        names = {"T": "tokens", "loss": f"{weights}_loss", "se": f"{weights}_se", "flops": "flops"}
        measured = {
            ours: positive(milestone.get(theirs), f"the planned run's {theirs}")
            for ours, theirs in names.items()
            if ours in ("T", "loss") or milestone.get(theirs)
        }
        try:
            said = predict(law, N, measured["T"])
        except UserError as reason:
            raise UserError(f"no loss is predicted for the planned run: {reason}") from None
        predicted, low, high = (float(v[0]) for v in (said.predicted, said.mean_low, said.mean_high))
        error = float(relative_error(measured["loss"], predicted))
        known = {"se": 0.0, "flops": None} | measured
        found.append(Milestone(**known, predicted=predicted, low=low, high=high, error=error))
    return MeasuredRun(N, tuple(found))
