"""How the report's figures look: axes, ticks, colours of sizes, legends."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7ec",
    "axes.edgecolor": "#98a2b3",
    "axes.labelcolor": "#344054",
    "axes.titlesize": 9,
    "xtick.color": "#475467",
    "ytick.color": "#475467",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "report",  # the same figure gives the same file
}
ACCENT, BLUE, GREY, LINE = "#d92d20", "#175cd3", "#98a2b3", "#475467"
WIDTH = 9.6  # inches: the page's width at the size of its text


def styled() -> AbstractContextManager:
    """The style of figures, for those that are made and written within."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def figure(rows: int, columns: int, size: tuple[float, float]) -> tuple["Figure", NDArray]:
    """A figure of so many inches and its axes [rows, columns], without a display or global state."""
    # Imported here: matplotlib takes half a second that the planner must not spend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def colours(values: Iterable[float]) -> dict[float, Any]:
    """A colour for each value, dark for the smallest."""
    from matplotlib import colormaps

    values = np.unique(np.asarray(list(values), dtype=float))
    return {float(v): colormaps["viridis"](x) for v, x in zip(values, np.linspace(0.05, 0.85, len(values)))}


def line(colour: Any, label: str, **style: Any) -> "Line2D":
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, **style)


def band(axis: "Axes", x: NDArray, low: NDArray, high: NDArray, colour: Any, label: str = "") -> None:
    """An interval around a line, where it is known."""
    if np.isfinite(low).any():
        axis.fill_between(x, low, high, color=colour, alpha=0.13, lw=0, label=label)


def bars(axis: "Axes", points: dict[str, NDArray], x: str, y: str, *, of: str = "y", **style: Any) -> None:
    """Marks at columns x and y, with the interval (low, high) of one of the two where it is known."""
    value = points[y if of == "y" else x]
    error = np.abs(np.stack([value - points["low"], points["high"] - value]))
    axis.errorbar(points[x], points[y], **{f"{of}err": error, "capsize": 2, "lw": 0, "elinewidth": 1} | style)


def legend_above(axis: "Axes", handles: list | None = None, *, columns: int = 3) -> None:
    """The legend over the axes, where it covers nothing that is drawn."""
    own = {} if handles is None else {"handles": handles}
    axis.legend(**own, fontsize=7, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def limits(values: ArrayLike, ends: ArrayLike, reach: float, *, log: bool = False) -> tuple[float, float, bool]:
    """(Low, high, whether an interval is cut) of an axis that shows all ``values`` and the ``ends`` of intervals.

    An end is shown up to ``reach`` times the values' own span beyond them: one loose interval would flatten the rest.
    Where all values are one, every end is shown.
    """
    values, ends = (np.asarray(v, dtype=float).ravel() for v in (values, ends))
    if log:
        values, ends = np.log(values), np.log(ends)
    known = ends[np.isfinite(ends)]
    low, high = values.min(), values.max()
    wanted = min(low, known.min(initial=low)), max(high, known.max(initial=high))
    room = reach * (high - low) or np.inf
    shown = max(wanted[0], low - room), min(wanted[1], high + room)
    margin = 0.05 * (shown[1] - shown[0]) or 0.05 * abs(shown[0]) or 0.05
    found = np.array([shown[0] - margin, shown[1] + margin])
    cut = wanted[0] < found[0] or wanted[1] > found[1] or np.isinf(ends).any()
    return *(np.exp(found) if log else found).tolist(), bool(cut)


def log_axes(axis: "Axes", x: Callable[[float], str] | None, y: Callable[[float], str] | None) -> None:
    """Logarithmic axes with ticks at 1, 2 and 5 times powers of ten; None leaves an axis linear."""
    for name, of, form in (("x", axis.xaxis, x), ("y", axis.yaxis, y)):
        if form is not None:
            axis.set(**{f"{name}scale": "log"})
            _log_ticks(of, form)


def _log_ticks(axis: "Axis", form: Callable[[float], str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    subs = (1, 2, 3, 5, 7) if decades < 0.7 else (1, 2, 5) if decades < 1.7 else (1, 3) if decades < 3 else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axis.set_minor_locator(NullLocator())


def short(value: float) -> str:
    """A count in the reader's units: 131k, 1.05M, 2.4B."""
    value = float(f"{value:.3g}")  # 999,999 is 1M
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def flops(value: float) -> str:
    """FLOPs, to three digits: 3e12, 5.67e13."""
    digits, exponent = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def rate_text(value: float) -> str:
    """A learning rate on an axis: 1.4e-3."""
    return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
