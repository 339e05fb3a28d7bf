"""Priors of the constants of loss forms, and which constants they decide.

They act on logarithms, but for the floor's: its share of the lowest loss has a uniform prior.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

EXPONENTS = ("aN", "aT", "aB", "aS")
# Prior of the logarithms of exponents and of k, [mean, sd]: published exponents are 0.2 to 0.8, and the prior counts
# as a single point three noise widths off would. Without it an exponent that the data do not show runs to 0 or to
# infinity.
PRIORS = {name: (np.log(0.4), 1.0) for name in EXPONENTS} | {"k": (0.0, 1.0)}
# The floor's share of the lowest loss is as likely anywhere from 0 to 1: u, with share = Phi(u), is normal. On many
# tables only a bound of the floor is identified: without a prior it ran to 0 (1e-13 on the study's runs), and
# predictions far beyond the data depended on where a descent stopped. Published floors leave no end out: 0 (Kaplan et
# al. 2020, a joint form with k 0.095), 0.87 (Chinchilla: 1.69 of 1.94), 0.95 (arXiv 2411.17470: 0.486 of 0.513).
FLOOR = (0.0, 1.0)
# A constant whose error is not this much smaller than its prior's is the prior's, not the data's; one known to no
# better than a factor of e is not identified.
LEARNED = 0.7
LOOSE = 1.0


def prior_of(names: Sequence[str]) -> tuple[NDArray, NDArray]:
    """Mean and precision (1 / sd, 0 without a prior) of constants by name, in the coordinates of ``prior_at``."""
    pairs = [FLOOR if name == "Linf" else PRIORS.get(name, (0.0, np.inf)) for name in names]
    return np.array([mean for mean, _ in pairs]), np.array([1 / sd for _, sd in pairs])


def prior_at(
    theta: NDArray, prior: tuple[NDArray, NDArray], floor: int | None, lowest: ArrayLike
) -> tuple[NDArray, NDArray]:
    """How many sd each constant is from its prior, with the derivatives in theta, [..., constants].

    Args:
        prior: mean and precision; the floor's are of u, Phi(u) its share of the lowest loss, the others' of theta.
        floor: where ln Linf is; None where there is none.
        lowest: [...] ln of the lowest loss.
    """
    at, slope = theta.copy(), np.ones_like(theta)
    if floor is not None:
        from scipy.special import ndtri  # not at the top: half of the time of a plan, which needs no prior

        share = np.clip(np.exp(theta[..., floor] - lowest), 1e-12, 1 - 1e-9)
        at[..., floor] = u = ndtri(share)
        slope[..., floor] = share * np.sqrt(2 * np.pi) * np.exp(u**2 / 2)
    return (at - prior[0]) * prior[1], slope * prior[1]


def remarks(sd: NDArray, slope: NDArray) -> list[str]:
    """What to print behind each constant: empty where the data identify it.

    Args:
        sd: [constants] standard errors of the logarithms. slope: as ``prior_at`` gives.
    """
    return [
        " (the prior's: not identified)" if error * prior > LEARNED else " (not identified)" if error > LOOSE else ""
        for error, prior in zip(sd, slope)
    ]
