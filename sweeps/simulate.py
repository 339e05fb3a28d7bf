"""``sweep.py simulate``: the errors of a sweep's plan under a known law, before any cell is trained."""

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from videoscaling.data.index import CacheMeta
from videoscaling.models.sizes import smooth_width
from videoscaling.scaling import law_file
from videoscaling.scaling.planning import allocation
from videoscaling.scaling.planning.request import LEAST, MOST_FLOPS, MOST_N_CTX
from videoscaling.scaling.search import simulate
from videoscaling.scaling.search.simulate import Target
from videoscaling.scaling.search.truth import MAX_NOISE, Truth
from videoscaling.sweeps.cost import flops_of
from videoscaling.sweeps.grid import Prediction, Sweep, join, load_sweep
from videoscaling.sweeps.run import planned_runs
from videoscaling.training.config import Config
from videoscaling.training.run import Run, clip_tokens, encoded_shape
from videoscaling.utils.errors import UserError
from videoscaling.utils.messages import warn
from videoscaling.utils.options import check_range
from videoscaling.utils.progress import Progress

LIMITS = {
    "flops": (LEAST, MOST_FLOPS),
    "noise": (LEAST, MAX_NOISE),
    "n_ctx": (1, MOST_N_CTX),
    "sweeps": (2, 10_000),
    "seeds": (1, 1000),
}


def latent_shape(config: Config, given: int | None, law: Any, assumed: set[str]) -> list[int]:
    """(C, f, h, w) of clips, encoded or not: the cache's if it is there, else of ``given`` tokens, else of the law's.

    The law's tokens are an assumption, which is added to ``assumed`` as text. Without a cache the clips are one row
    of tokens without channels, whose number is not known, and no cell is refused for them.

    Raises:
        UserError: ``given`` contradicts the cache, the cache is damaged, or the tokens per clip are not known.
    """
    folder, shape = config.data.cache, encoded_shape(config)
    if shape is not None:
        found = clip_tokens(config, shape)
        if given not in (None, found):
            raise UserError(f"--n-ctx {given}: the clips of {folder} have {found} tokens; leave it out")
        return shape
    where = f"no latent cache in {folder}" if folder else "no data.cache"
    if given is None and law.n_ctx is None:
        raise UserError(f"{where}, and law {law.name!r} has no n_ctx: give --n-ctx, the tokens per clip")
    if given is None:
        assumed.add(f"{where}: clips of {law.n_ctx} tokens are taken, as in law {law.name!r}; --n-ctx gives yours")
    frames, *sides = config.model.patch
    return [0, frames * (given or law.n_ctx), *sides]


def targets_of(sweep: Sweep, flops: float | None, truth: Truth, cost: allocation.Cost) -> list[Target]:
    """The last milestone of each held-out size; the law's best run of ``flops`` where they are given, or no size is
    held out (then of ten times the costliest run's)."""
    heldout: dict[int, int] = {}
    for cell in sweep.cells:
        if cell.config.heldout:
            heldout[cell.N] = max(cell.config.train.milestones[-1], heldout.get(cell.N, 0))
    if flops is None and heldout:
        return [Target(N, T, T * float(cost(N))) for N, T in sorted(heldout.items())]
    budget = flops or 10 * max(flops_of(cell) for cell in sweep.cells)
    return [Target.best_at(truth.law, budget, cost, sweep.cells[0].n_ctx)]


def command(arguments: argparse.Namespace, overrides: list[str], prediction: Callable[[Path], Prediction]) -> int:
    """Simulate the sweep under a known law, fit it many times, and report the error of its laws and predictions."""
    if arguments.prior is not None:
        raise UserError("--prior: sweeps are fitted by one surface, which assumes no law's exponents; leave it out")
    for name, (least, most) in LIMITS.items():
        check_range(name, getattr(arguments, name), least, most)
    law = law_file.load(arguments.law)
    truth = Truth.of(law, arguments.noise)
    assumed: set[str] = set()

    def meta(config: Config) -> CacheMeta:
        shape = latent_shape(config, arguments.n_ctx, law, assumed)
        return {"latent_shape": shape, "fingerprint": config.data.fingerprint}

    try:
        sweep = load_sweep(arguments.config, overrides, meta, prediction)
        others = [load_sweep(path, [], meta, prediction) for path in arguments.also]
    except UserError as error:
        raise UserError("; ".join([str(error), *assumed])) from None
    n_ctx = sweep.cells[0].n_ctx
    for path, other in zip(arguments.also, others):
        if (found := other.cells[0].n_ctx) != n_ctx:
            raise UserError(f"--also {path}: clips of {found} tokens, not of {n_ctx}; a law holds for one")
    cost = allocation.c_token(n_ctx, smooth_width)
    targets = targets_of(sweep, arguments.flops, truth, cost)
    cells: dict[str, Run] = {}
    for cell in itertools.chain.from_iterable(one.cells for one in (*others, sweep)):
        join(cells, cell)  # some are in several
    with Progress(arguments.sweeps, "simulate", "sweeps") as bar:
        expected = simulate.expect(
            truth,
            planned_runs(replace(sweep, cells=list(cells.values()))),
            targets,
            cost=cost,
            n_ctx=n_ctx,
            sweeps=arguments.sweeps,
            seeds=arguments.seeds,
            report=bar.update,
        )
    expected["warnings"] = [*assumed, *expected["warnings"]]
    for text in expected["warnings"]:
        warn(text)
    print(json.dumps(expected) if arguments.json else simulate.text(expected))
    return 0
