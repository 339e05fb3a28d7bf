"""One self-contained HTML page of a sweep: its figures, its laws, what they predicted, and what was measured."""

import base64
import html
import math
from pathlib import Path
from string import Template

import numpy as np

from videoscaling.scaling.fitting.unsupported import UnsupportedFit
from videoscaling.scaling.laws import Law, LossLaw, PowerLaw, SizeLaw, constants_of
from videoscaling.scaling.reporting import error_figures, loss_figures, pair_figures, style
from videoscaling.scaling.reporting.chart import Chart
from videoscaling.scaling.reporting.measured_run import MeasuredRun
from videoscaling.scaling.reporting.sources import Sources, loss_formula, of_other_runs, rate_formula
from videoscaling.scaling.reporting.style import short
from videoscaling.utils.errors import UserError, plural
from videoscaling.utils.files import read_json, write_bytes, write_text

# In the order of the page.
FIGURES = (
    loss_figures.loss_over_flops,
    loss_figures.training_curves,
    loss_figures.isoflop,
    loss_figures.size_interval,
    pair_figures.heat_maps,
    pair_figures.hyperparameters,
    error_figures.predicted_measured,
    error_figures.residuals,
    pair_figures.fixed_pair,
)
PAGE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
IMAGES = {".gif": "image/gif", ".png": "image/png", ".mp4": "video/mp4"}
MOST_SAMPLES = 24


def draw(sources: Sources) -> tuple[list[Chart], dict[str, str]]:
    """The figures, and of those that are left out the reason by name."""
    charts, left_out = [], {}
    for figure in FIGURES:
        try:
            charts.append(figure(sources))
        except (UserError, UnsupportedFit) as reason:
            left_out[figure.__name__] = str(reason).splitlines()[0]
    return charts, left_out


def write(sources: Sources, out: Path, samples: Path | None = None, figures: Path | None = None) -> list[Chart]:
    """Write the page, and into the folder ``figures`` each figure as SVG and PNG, its points as CSV, its caption.

    Args:
        samples: a folder with sampled gif, png or mp4 files.

    Returns:
        The figures.
    """
    videos = None if samples is None else _samples(samples)
    with style.styled():
        charts, left_out = draw(sources)
        pictures = {chart.name: chart.encoded("png") for chart in charts}
        write_text(out, page(sources, charts, pictures, left_out, videos))
        for chart in charts if figures is not None else ():
            write_bytes(figures / f"{chart.name}.svg", chart.encoded("svg"))
            write_bytes(figures / f"{chart.name}.png", pictures[chart.name])
            write_text(figures / f"{chart.name}.txt", f"{chart.title}. {chart.caption}\n")
            chart.write_csv(figures / f"{chart.name}.csv")
    return charts


def page(
    sources: Sources,
    charts: list[Chart],
    pictures: dict[str, bytes],
    left_out: dict[str, str],
    videos: str | None = None,
) -> str:
    """The page as HTML; ``pictures`` are the charts as PNG, by name."""
    law, table = sources.law, sources.runs
    sections = []
    if sources.planned:
        sections.append(_section("The prediction and the run", _comparison(sources.planned)))
    warnings = list(law.fit.get("warnings") or ())
    if apart := of_other_runs(table, law):
        warnings = [f"the law is of other runs: {'; '.join(apart)}", *(f"of its fit: {text}" for text in warnings)]
    if warnings:
        sections.append(_section("Warnings", _items(warnings, "warnings")))
    for chart in charts:
        sections.append(_section(chart.title, _picture(chart, pictures[chart.name])))
    sections.append(_section("The law", _constants(law)))
    if videos is not None:
        sections.append(_section("Sampled videos", videos))
    if left_out:
        reasons = [f"{name.replace('_', ' ')}: {reason}" for name, reason in left_out.items()]
        sections.append(_section("Figures left out", _items(reasons)))
    diverged = int(np.isinf(table.loss).sum())
    sizes = np.unique(table.N)
    span = f"of {short(sizes[0])}" if len(sizes) == 1 else f"from {short(sizes[0])} to {short(sizes[-1])}"
    subtitle = (
        f"{plural(len(set(table.run_id.tolist())), 'run')}, {plural(len(table), 'milestone')}"
        f"{f', {diverged} diverged' if diverged else ''}, {plural(len(sizes), 'size')} {span} parameters."
    )
    # A file law.json gives its law no name that says more.
    title = html.escape(f"Scaling laws: {table.source if law.name == 'law' else law.name}")
    return PAGE.substitute(title=title, subtitle=subtitle, sections="\n".join(sections))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>'


def _items(lines: list[str], kind: str = "") -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{html.escape(text)}</li>" for text in lines)}</ul>'


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return f'<div class="scroll"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _picture(chart: Chart, png: bytes) -> str:
    width = round(100 * chart.figure.get_figwidth())
    size = f"width: {width}px" if width < 1000 else ""
    tag = f'<img class="figure" alt="{chart.title}" style="{size}" src="{_data("image/png", png)}">'
    return f'<div class="scroll">{tag}</div>{_paragraph(chart.caption, "caption")}'


def _comparison(run: MeasuredRun) -> str:
    rows = []
    for m in run.milestones:
        span = "unknown" if math.isnan(m.low) else f"{m.low:.4f} to {m.high:.4f}"
        measured = f"{m.loss:.4f} ± {1.96 * m.se:.4f}"
        rows.append([short(m.T), f"{m.predicted:.4f}", span, measured, f"{m.error:+.2%}"])
    inside = (
        ""
        if math.isnan(m.low)
        else f", {'inside' if m.low <= m.loss <= m.high else 'outside'} the law's 95 % interval"
    )
    verdict = (
        f"Predicted {m.predicted:.4f}, measured {m.loss:.4f}: {m.error:+.2%} at {short(run.N)} parameters and "
        f"{short(m.T)} tokens{inside}."
    )
    header = ["tokens", "predicted loss", "95 % interval", "measured loss (± 1.96 se)", "measured over predicted"]
    note = (
        "Both the interval and the measured loss's standard error count the choice of validation clips, which the "
        "sweep and the planned run share: that part cancels between the two."
    )
    return _paragraph(verdict, "big") + _table(header, rows) + _paragraph(note)


def _constants(law: Law) -> str:
    intervals = law.fit.get("intervals") or {}

    def row(label: str, value: str, interval: str, unknown: str = "unknown") -> list[str]:
        span = intervals.get(interval)
        return [label, value, unknown if span is None else f"{span[0]:.4g} to {span[1]:.4g}"]

    rows = []
    for part in ("batch", "lr", "loss"):
        value = getattr(law, part)
        for name in constants_of(type(value)) if isinstance(value, PowerLaw | LossLaw) else ():
            unknown, key = ("assumed", "") if name in value.assumed else ("unknown", f"{part}.{name}")
            rows.append(row(f"{part}.{name}", f"{getattr(value, name):.5g}", key, unknown))
    for name in intervals if law.surface is not None else ():
        value = float(law.surface.exponent(name.removeprefix("surface.")).value)
        rows.append(row(name, f"{value:.4g}", name))
    for name, size in (law.allocation or {}).items():
        if isinstance(size, SizeLaw):
            text = f"{size.coefficient:.4g} C^{size.exponent:.4f}"
            rows.append(row(f"N_opt, {name}", text, f"allocation.{name}.exponent", ""))
    formulas = (rate_formula(law), loss_formula(law), f"intervals: {law.fit.get('method') or 'none'}")
    return _table(["constant", "value", "95 % interval"], rows) + "".join(map(_paragraph, formulas))


def _samples(folder: Path) -> str:
    """Sampled videos with their prompts, from the samples.json that sample.py writes next to its files."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in IMAGES)[:MOST_SAMPLES]
    if not files:
        raise UserError(f"{folder}: no gif, png or mp4 to show")
    path = folder / "samples.json"
    records = read_json(path, list, "a list of files and prompts, as sample.py writes it") if path.exists() else []
    if not all(isinstance(row, dict) and type(row.get("file")) is type(row.get("prompt")) is str for row in records):
        raise UserError(f"{path}: not a list of files and prompts, as sample.py writes it; remove it to show none")
    prompts, items = {row["file"]: row["prompt"] for row in records}, []
    for file in files:
        data = _data(IMAGES[file.suffix], file.read_bytes())
        video = f'<video src="{data}" autoplay loop muted></video>'
        tag = video if file.suffix == ".mp4" else f'<img alt="" src="{data}">'
        caption = html.escape(prompts.get(file.name, file.stem))
        items.append(f"<figure>{tag}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="samples">{"".join(items)}</div>'
