"""The figures of a report in the order of its page: how each is computed, and how it is drawn."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from videoscaling.scaling.reporting import figure_data, figures, pair_data, pair_figures
from videoscaling.scaling.reporting.figure_data import Sources
from videoscaling.scaling.reporting.plotted import LeftOut, Plotted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, tuple[Callable[[Sources], Plotted], Callable[[Plotted], "Figure"]]] = {
    name: (getattr(data, name), getattr(drawing, name))
    for data, drawing, names in (
        (figure_data, figures, ("loss_over_flops", "training_curves", "isoflop", "size_interval")),
        (pair_data, pair_figures, ("heat_maps", "hyperparameters")),
        (figure_data, figures, ("predicted_measured", "residuals")),
        (pair_data, pair_figures, ("fixed_pair",)),
    )
    for name in names
}


def compute(sources: Sources) -> tuple[dict[str, Plotted], dict[str, str]]:
    """The data of each figure by name, and of those that are left out the reason."""
    found, left_out = {}, {}
    for name, (data, _) in FIGURES.items():
        try:
            found[name] = data(sources)
        except LeftOut as reason:
            left_out[name] = str(reason)
    return found, left_out


def draw(data: Plotted) -> "Figure":
    """The figure of ``data``."""
    return FIGURES[data.name][1](data)
