"""Warnings of a plan: where it leaves what the law's runs measured, by how much, and what the law does not know."""

from typing import TYPE_CHECKING

from videoscaling.scaling.laws import Law
from videoscaling.utils.errors import plural

if TYPE_CHECKING:
    from videoscaling.scaling.planning.plan import Plan

# Beyond this multiple of the fitted compute a law is a hope.
FAR = 100.0
# The largest rate of the committed runs at a constant one, of models of 6.6e4 and 1.3e5 parameters; larger bear less.
MAX_LR = 0.03
# In fewer steps there is no warm-up and no optimum as those of the fit.
FEW_STEPS = 100
# Of the warnings that the law's fit left, a plan repeats so many.
REPEATED = 3
# An interval of N_opt wider than this factor identifies no size.
UNKNOWN = 10.0


def plan_warnings(law: Law, plan: "Plan") -> list[str]:
    """Lines on what ``plan`` takes from ``law`` beyond what its runs measured."""
    warnings, n_ctx = [], plan.n_ctx
    far = plan.extrapolation["C"]
    if far is not None and far > FAR:
        warnings.append(f"C is {far:,.0f} times the largest compute the law was fitted on")
    fitted = law.domain.get("C")
    if fitted is not None and fitted[0] / FAR > plan.C:
        warnings.append(f"C is {fitted[0] / plan.C:,.0f} times below the smallest compute the law was fitted on")
    unknown = [name for name in ("B", "lr") if getattr(plan, name) is None]
    if unknown:
        reasons = {plan.unknown[name] for name in unknown}
        warnings.append(
            f"{' and '.join(unknown)} unknown ({'; '.join(sorted(reasons))}): --prior LAW takes both from another law"
        )
    if plan.lr is not None and plan.lr.value > MAX_LR:
        warnings.append(
            f"learning rate {plan.lr.value:.3g}: above {MAX_LR:g}, more than AdamW usually bears; the law is "
            "followed too far beyond its runs: plan more FLOPs, or fit a law to runs of this size"
        )
    if plan.B is not None:
        warnings += law.response.batch_warnings(plan.N, plan.T, plan.B, n_ctx)
    others = ", ".join(name for name in sorted(plan.N_opt) if name != "minimised")
    if law.n_ctx is None:
        how, cost = law.provenance.get("flops") or "unknown costs", f"N_opt ({others}) and " if others else ""
        warnings.append(
            f"the law counted {how}, and this plan C_token: {cost}multiples of C are for other costs; fit.py --n-ctx "
            f"{n_ctx} counts as plans do"
        )
    elif law.n_ctx != n_ctx:
        cost = f", and N_opt ({others}) is for what those cost" if others else ""
        warnings.append(
            f"clips of {n_ctx} tokens, but the law's have {law.n_ctx}: its loss, batch and rate are theirs{cost}"
        )
    if plan.steps is not None and plan.steps < FEW_STEPS:
        warnings.append(
            f"only {plural(plan.steps, 'step')}: the law's optima are those of many; a smaller --batch has more"
        )
    sizes = [float(size.value) for size in plan.N_opt.values()]
    if max(sizes) > 1.25 * min(sizes):
        warnings.append(f"the estimators of N_opt disagree: {min(sizes):.3g} to {max(sizes):.3g}")
    loose = [name for name, size in plan.N_opt.items() if size.high > UNKNOWN * max(size.low, 1.0)]
    if loose:
        warnings.append(
            f"N_opt ({', '.join(loose)}) is known to no better than a factor of {UNKNOWN:g}: the law identifies "
            "no size; sweep longer, or choose one with --params"
        )
    for part in ("batch", "lr", "loss"):
        assumed = getattr(law, part) and getattr(law, part).assumed
        if assumed:
            warnings.append(f"{part}: {', '.join(assumed)} assumed, not measured")
    if plan.serving and (excess := plan.serving["training_excess"]) > 0:
        warnings.append(f"training takes {excess:.0%} more than the budget without serving, for fewer FLOPs in all")
    fit_warnings = law.fit.get("warnings") or []
    warnings += [f"law {law.name!r}: {text}" for text in fit_warnings[:REPEATED]]
    if len(fit_warnings) > REPEATED:
        warnings.append(f"law {law.name!r}: {len(fit_warnings) - REPEATED} more in its fit.warnings")
    return warnings + law.response.unknown_intervals()
