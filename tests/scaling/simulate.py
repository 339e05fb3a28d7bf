"""Run tables that power laws of batch and rate would produce, with noise: what tests fit."""

from collections.abc import Iterable

import numpy as np

from videoscaling.scaling.laws import Law
from videoscaling.scaling.runs import SHARED, RunTable


def run_table(
    law: Law,
    cells: Iterable[tuple[float, float, float]],
    milestones: Iterable[float],
    noise: float,
    correlation: float = 0.6,
    seed: int = 0,
    n_ctx: int = 0,
) -> RunTable:
    """One run per cell (N, B, lr), validated at every milestone.

    Args:
        law: loss law, and curvature around the batch and rate laws; a batch or lr of nan means at their optimum.
        noise: relative standard deviation of one loss.
        correlation: of the noise of two milestones of one run.
        seed: of the noise.
    """
    random = np.random.default_rng(seed)
    N, B, lr = np.array(list(cells), dtype=float).T
    T = np.array(list(milestones), dtype=float)
    shared, own = random.standard_normal((len(N), 1)), random.standard_normal((len(N), len(T)))
    error = noise * (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)
    N, B, lr, T = (np.broadcast_to(v, error.shape).ravel() for v in (N[:, None], B[:, None], lr[:, None], T))
    best_B, best_lr = law.batch(N, T), law.lr(N, T)
    B, lr = np.where(np.isnan(B), best_B, B), np.where(np.isnan(lr), best_lr, lr)
    loss = law.loss(N, T) * (1 + error.ravel())
    if law.curvature is not None:
        loss *= 1 + law.curvature(np.log(lr / best_lr), np.log(B / best_B))
    unknown = np.full(len(N), np.nan)
    width = len(str(len(shared)))
    return RunTable(
        run_id=np.repeat([f"simulated-{i:0{width}d}" for i in range(len(shared))], error.shape[1]),
        N=N,
        T=T,
        nominal_T=T,
        B=B,
        lr=lr,
        loss=loss,
        loss_se=noise * loss,
        raw_loss=loss,
        raw_loss_se=unknown,
        flops=unknown,
        seed=np.repeat(np.arange(len(shared)), error.shape[1]),
        n_ctx=np.full(len(N), n_ctx),
        heldout=np.zeros(len(N), dtype=bool),
        samples=np.full(len(N), ""),
        samples_crc32=np.full(len(N), -1),
        stream=np.full(len(N), -1),
        skipped=unknown,
        noise_scale=unknown.copy(),
        recipe={},
        source=f"simulated from {law.name}",
    )


def grid(
    law: Law, N: Iterable[float], T: Iterable[float], batches: int, rates: int, factor: float, offset: float = 0.0
) -> list[tuple[float, float, float]]:
    """Cells (N, B, lr) around the law's optimum at each N and the middle T, ``factor`` apart; ``offset`` in steps."""
    middle = float(np.exp(np.mean(np.log(list(T)))))
    steps = [factor ** (np.arange(count) - (count - 1) / 2 + offset) for count in (batches, rates)]
    return [
        (n, float(law.batch(n, middle)) * b, float(law.lr(n, middle)) * r)
        for n in N
        for b in steps[0]
        for r in steps[1]
    ]


def concatenate(tables: list[RunTable]) -> RunTable:
    """Run tables of one source as one."""
    shared = {name: getattr(tables[0], name) for name in SHARED}
    names = [name for name in RunTable.__dataclass_fields__ if name not in shared]
    return RunTable(**{name: np.concatenate([getattr(part, name) for part in tables]) for name in names}, **shared)
