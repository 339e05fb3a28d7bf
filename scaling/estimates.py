"""Values with 95 % intervals, and the quantiles that make them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95


class Span(TypedDict):
    """A value with the ends of its 95 % interval in JSON; null is unknown, or no bound."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, arrays of one shape.

    The ends are nan where the interval is unknown; a low end of 0 and an infinite high one are no bounds.
    """

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @staticmethod
    def of(value: NDArray, draws: NDArray | None = None) -> "Estimate":
        """``value`` with the central 95 % of ``draws`` [draws, ...], where there are any."""
        value = np.asarray(value, dtype=float)
        if draws is None:
            return Estimate(value, np.full(value.shape, np.nan), np.full(value.shape, np.nan))
        return Estimate(value, *np.quantile(draws, [0.025, 0.975], axis=0))

    def as_json(self) -> float | Span:
        """One value with its interval where that is known, null for an end that is no bound."""
        if np.isnan(self.low) and np.isnan(self.high):
            return float(self.value)
        ends = {
            name: float(end) if 0 < end < np.inf else None for name, end in (("low", self.low), ("high", self.high))
        }
        return {"value": float(self.value), **ends}

    def span(self, form: str | Callable[[float], str]) -> str:
        """One value's interval as text, its ends by a format or a function; empty where it is unknown."""
        if np.isnan(self.low):
            return ""
        low, high = (form(end) if callable(form) else f"{end:{form}}" for end in (self.low, self.high))
        if self.low > 0 and self.high < np.inf:
            return f"[{low}, {high}]"
        if self.low > 0:
            return f"[at least {low}]"
        return f"[at most {high}]" if self.high < np.inf else "[unbounded]"


@dataclass(frozen=True)
class Prediction:
    """Losses [rows]: the law's value, its 95 % interval, and that of one new run with its noise (nan: unknown)."""

    mean: NDArray[np.float64]
    mean_low: NDArray[np.float64]
    mean_high: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """The two-sided t quantile."""
    from scipy.special import stdtrit  # not at the top: half of the time of a plan, which needs no t quantile

    return float(stdtrit(max(freedom, 1), (1 + level) / 2))


def interval(values: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """The central interval of draws."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
