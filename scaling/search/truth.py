"""A law taken to be true, and runs with the losses that it would give them: with a run's noise and grids' scatter.

A surface gives its own noise of a run as a function of (N, T, lr / B) and its own scatter between grids; of the shapes
and forms that it averages, the heaviest is the truth. A run's error persists over its milestones, so that more of them
do not average it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from videoscaling.scaling.estimates import Estimate
from videoscaling.scaling.fitting.grids.fit_points import SHARED
from videoscaling.scaling.fitting.surface import noise
from videoscaling.scaling.laws import EDGE, TOLERANCE, GivenBatch, Law
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.runs import RunTable
from videoscaling.scaling.search.planned_runs import PlannedRun
from videoscaling.utils.errors import UserError

CORRELATION = 0.9  # of a run's errors at two milestones: 0.8 to 0.99 over seeds of small models
NOISE = 1e-3  # sd of ln loss of one run, where the law says nothing of it
MAX_NOISE = 0.1  # a noise model far from its runs promises anything
# sd between grids of ln lr_opt, of ln of the batch's optimum and of ln loss, and between sizes of ln loss.
SCATTER = ("ln_x", "ln_z", "ln_level", "ln_size")
RATE = ("aB", "aT", "aN")
BATCH = ("bT", "bN")


@dataclass(frozen=True)
class Truth:
    """A law that is taken to be true.

    Attributes:
        law: power laws with curvature and losses, or a surface of one shape and one form.
        noise: sd of ln loss of one run; None: by the surface's noise model.
        scatter: sd by name of SCATTER.
    """

    law: Law
    noise: float | None
    scatter: dict[str, float]

    @staticmethod
    def of(law: Law, noise_of_run: float | None = None) -> "Truth":
        """The truth by a law.

        Raises:
            UserError: the law does not say what a rate or a batch costs, or has no losses.
        """
        if law.surface is None:
            law.require("loss", "batch", "lr", "curvature")
            # Rates lie where the curvature has them.
            ridge = -law.curvature.lr_batch / (2 * law.curvature.lr_lr)
            law = replace(law, lr_given_batch=GivenBatch(ridge))
            known = (law.fit.get("scatter") or {}).get("run")
            return Truth(
                law, noise_of_run or known or NOISE, dict.fromkeys(("ln_x", "ln_z", "ln_level", "ln_size"), 0)
            )
        if reason := law.response.no_losses:
            raise UserError(f"law {law.name!r} predicts no losses ({reason}), which a simulation needs")
        member, shape = law.surface.members[0], law.surface.shape
        one = replace(
            law.surface,
            members=(replace(member, weight=1.0),),
            shapes=(replace(shape, weight=1.0, solution=member.solution),),
        )
        sd = dict(zip(noise.NAMES, np.exp(member.solution.phi).tolist()))
        return Truth(replace(law, surface=one), noise_of_run, {name: sd[name] for name in SCATTER})

    def of_clips(self, n_ctx: int) -> "Truth":
        """This truth for runs on clips of ``n_ctx`` tokens, the smallest batch, whatever the law was fitted on.

        A law that does not know its clips has the smallest batch of its runs for one: simulated sweeps found smaller
        ones that were better than its best.
        """
        surface = self.law.surface
        if surface is None:
            return self
        own = replace(surface, cells=replace(surface.cells, n_ctx=float(n_ctx)))
        return replace(self, law=replace(self.law, surface=own))

    def ln_loss(self, N: NDArray, T: NDArray, B: NDArray, lr: NDArray) -> NDArray[np.float64]:
        """ln of the law's loss at any batch and rate, [rows]."""
        law = self.law
        if law.surface is not None:
            return np.log(law.response.predict(N, T, B, lr).mean)
        y = np.log(B / np.maximum(law.batch(N, T), law.fit.get("floor") or 0))
        return np.log(law.response.losses(N, T)) + np.log1p(law.curvature(np.log(lr / law.lr(N, T)), y))

    def best_ln_loss(self, N: float, T: float) -> float:
        """ln of the law's loss at the best batch, however large, and its best rate."""
        response = self.law.response
        if self.law.surface is None:
            return float(np.log(response.losses(N, T)))
        B = response.wanted_batch(N, T, 0.0)
        return float(self.ln_loss(*(np.atleast_1d(v) for v in (N, T, B, response.rate(N, T, B).value)))[0])

    def run_sd(self, N: NDArray, T: NDArray, B: NDArray, lr: NDArray) -> NDArray[np.float64]:
        """sd of ln loss of one run, from seed to seed, [rows]."""
        if self.noise is not None:
            return np.full(np.broadcast(N, T, B, lr).shape, self.noise)
        surface = self.law.surface
        n, t, b = surface.scale.logs(N, T, B)
        solution = surface.members[0].solution
        sd, _ = noise.sd_of(solution.phi, n, t, np.log(lr / surface.lr_scale) - b, np.zeros(n.shape))
        return np.minimum(sd * math.sqrt(solution.outliers), MAX_NOISE)

    def scattered(
        self,
        N: NDArray,
        T: NDArray,
        B: NDArray,
        lr: NDArray,
        *,
        grid: NDArray[np.int64],
        size: NDArray[np.int64],
        random: np.random.Generator,
    ) -> NDArray[np.float64]:
        """``ln_loss`` where each grid's optimum and level, and each size's level, lie off the law's, [rows].

        Args:
            grid, size: numbers of each row's grid and size, from 0.
        """
        x, z, level, of_size = (
            self.scatter[name] * random.standard_normal(int(label.max()) + 1)[label]
            for name, label in zip(SCATTER, (grid, grid, grid, size))
        )
        # A grid whose optimum lies further out is the law's grid with its cells moved the other way.
        rates = self.law.response.rate
        moved = lr * np.exp(-x)
        if np.any(z):
            moved = moved * rates(N, T, B * np.exp(-z)).value / rates(N, T, B).value
        return self.ln_loss(N, T, B * np.exp(-z), moved) + level + of_size

    @cached_property
    def exponents(self) -> dict[str, float]:
        """Of lr_opt in B, T and N (aB, aT, aN), and of B_opt or the batch's edge in T and N (bT, bN)."""
        law = self.law
        if law.surface is not None:
            names = law.surface.shape.solution.model.names
            return {name: float(law.surface.exponent(name).value) for name in (*RATE, *BATCH) if name in names}
        slope = law.lr_given_batch.slope
        found = {"aB": slope, "aT": law.lr.T - slope * law.batch.T, "aN": law.lr.N - slope * law.batch.N}
        return found | {"bT": law.batch.T, "bN": law.batch.N}

    def at(self, N: float, T: float, C: float, *, cost: allocation.Cost, n_ctx: int) -> dict[str, float]:
        """The batch that a plan takes at N and T, ``best_ln_loss`` there, and the value of each of ``quantities``."""
        B = float(self.law.response.batch(N, T, n_ctx, TOLERANCE))
        found = quantities(self.law, N, T, B=B, C=C, cost=cost, n_ctx=n_ctx)
        known = {name: float(one.value) for name, one in found.items()}
        return {"B": B, "best_ln_loss": self.best_ln_loss(N, T)} | known


def quantities(
    law: Law, N: float, T: float, *, B: float, C: float, cost: allocation.Cost, n_ctx: int
) -> dict[str, Estimate]:
    """What a law says of runs of N and T, without what it does not know.

    It is the loss, the best rate at B tokens, the batch beyond which the loss is EDGE above the best, B_opt, and N_opt
    of C FLOPs.
    """
    response, found = law.response, {}
    if response.no_losses is None:
        best, losses = response.predict(N, T), response.losses
        found["loss"] = Estimate(best.mean[0], best.mean_low[0], best.mean_high[0])
        size = float(allocation.optimum(losses, C, cost))
        near = size, C / float(cost(np.array(size)))
        found["N_opt"] = losses.estimate(lambda one: allocation.optimum(one, C, cost), *near)
    found |= {"lr": response.rate(N, T, B), "edge": _edge(law, N, T, n_ctx), "B_opt": response.best_batch(N, T)}
    return {name: one for name, one in found.items() if one is not None}


def _edge(law: Law, N: float, T: float, n_ctx: int) -> Estimate | None:
    if law.surface is not None:
        return None if law.surface.shape.batch == "none" else law.surface.edge(T, N, EDGE)
    batch = max(float(law.batch(N, T)), n_ctx) * np.exp(np.linspace(0, 25, 5001))
    price = law.response.penalty(N, T, batch)
    beyond = price > price[0] * (1 + EDGE)
    return Estimate.of(batch[np.argmax(beyond)]) if beyond.any() else None


def simulated_runs(truth: Truth, runs: Sequence[PlannedRun], seed: int, n_ctx: int) -> RunTable:
    """Runs with losses by the truth, one row per milestone.

    SHARED of a run's variance is that of its samples: runs of one size and stream have it in common.
    """
    random = np.random.default_rng([seed, 0])
    run = np.repeat(np.arange(len(runs)), [len(one.milestones) for one in runs])
    N, B, lr, stream = (np.array([getattr(one, name) for one in runs])[run] for name in ("N", "B", "lr", "stream"))
    T = np.concatenate([one.milestones for one in runs]).astype(float)
    N, B, lr = (v.astype(float) for v in (N, B, lr))
    grid, size = _numbers(N, T), _numbers(N)
    own = _persistent(run, np.arange(len(run)), random)
    samples = np.where(stream < 0, -1 - run, stream)
    shared = _persistent(_numbers(N, samples), _numbers(N, samples, T), random)
    error = truth.run_sd(N, T, B, lr) * (math.sqrt(1 - SHARED) * own + math.sqrt(SHARED) * shared)
    loss = np.exp(truth.scattered(N, T, B, lr, grid=grid, size=size, random=random) + error)
    unknown, width = np.full(len(N), np.nan), len(str(len(runs)))
    return RunTable(
        run_id=np.array([f"simulated-{i:0{width}d}" for i in run]),
        N=N,
        T=T,
        nominal_T=T,
        B=B,
        lr=lr,
        loss=loss,
        loss_se=unknown,
        raw_loss=loss,
        raw_loss_se=unknown,
        flops=unknown,
        seed=run,
        n_ctx=np.full(len(N), n_ctx),
        heldout=np.zeros(len(N), dtype=bool),
        samples=np.full(len(N), ""),
        samples_crc32=np.full(len(N), -1),
        stream=stream,
        skipped=unknown,
        noise_scale=unknown,
        recipe={},
        source=f"simulated from {truth.law.name}",
    )


def _numbers(*labels: NDArray) -> NDArray[np.int64]:
    """Number of each row's combination of labels, from 0."""
    return np.unique(np.stack(labels), axis=1, return_inverse=True)[1].ravel()


def _persistent(whole: NDArray[np.int64], own: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.float64]:
    """Standard normal numbers [rows]: rows of one ``whole`` correlate, those of one ``own`` are equal."""
    offset, rest = (random.standard_normal(int(label.max()) + 1)[label] for label in (whole, own))
    return math.sqrt(CORRELATION) * offset + math.sqrt(1 - CORRELATION) * rest
