"""One self-contained HTML page of a sweep: its figures, its laws, what they predicted, and what was measured."""

import base64
import html
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from videoscaling.scaling.checks.heldout import relative_error
from videoscaling.scaling.laws import Law, SizeLaw
from videoscaling.scaling.reporting import all_figures, law_view
from videoscaling.scaling.reporting.figure_data import Sources
from videoscaling.scaling.reporting.plotted import LeftOut, Plotted
from videoscaling.scaling.reporting.style import short
from videoscaling.scaling.runs import RunTable
from videoscaling.scaling.tables import positive
from videoscaling.utils.errors import UserError
from videoscaling.utils.files import read_json, write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 15px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; margin: 0; }}
body {{ color: #101828; background: #f9fafb; }}
main {{ max-width: 1080px; margin: 0 auto; padding: 28px 24px 60px; }}
h1 {{ font-size: 26px; margin: 0 0 4px; }} h2 {{ font-size: 18px; margin: 0 0 6px; }}
section {{ background: white; border: 1px solid #eaecf0; border-radius: 10px; padding: 18px 22px; margin: 18px 0; }}
p {{ margin: 4px 0 10px; color: #475467; max-width: 78ch; }}
img.figure {{ max-width: 100%; height: auto; display: block; margin: 0 auto; }}
.caption {{ font-size: 13px; overflow-wrap: anywhere; max-width: none; }}
@media (max-width: 700px) {{
  main {{ padding: 16px 8px 40px; }} section {{ padding: 14px 12px; }}
  img.figure {{ max-width: none; min-width: 560px; }}
}}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: 4px 14px 4px 0; border-bottom: 1px solid #f2f4f7; }}
th {{ color: #475467; font-weight: 600; }} th:first-child, td:first-child {{ text-align: left; }}
.scroll {{ overflow-x: auto; }}
.warnings li {{ color: #b42318; }} .big {{ font-size: 20px; color: #101828; }}
.samples {{ display: flex; flex-wrap: wrap; gap: 14px; }} figure {{ margin: 0; width: 150px; }}
figure img, figure video {{ width: 150px; image-rendering: pixelated; border-radius: 6px; }}
figcaption {{ font-size: 12px; color: #475467; overflow-wrap: anywhere; }}
</style></head><body><main>
<h1>{title}</h1><p>{subtitle}</p>
{sections}
</main></body></html>
"""
IMAGES = {".gif": "image/gif", ".png": "image/png", ".mp4": "video/mp4"}


@dataclass(frozen=True)
class Drawn:
    """A figure with its data, and as PNG."""

    data: Plotted
    figure: "Figure"
    png: bytes


def build(sources: Sources, samples: Path | None = None) -> tuple[str, list[Drawn]]:
    """The page, and its figures.

    Args:
        samples: a folder with sampled gif, png or mp4 files.
    """
    law, run = sources.law, sources.planned
    data, left_out = all_figures.compute(sources)
    sections = [_section("The prediction and the run", _verdict(run) + _comparison(run))] if run else []
    other = _other_runs(sources.runs, law)
    warnings = [other] * (other is not None) + list(law.fit.get("warnings") or ())
    if warnings:
        sections.append(_section("Warnings", f'<ul class="warnings">{_items(warnings)}</ul>'))
    drawn = [_draw(one) for one in data.values()]
    for one in drawn:
        caption = f'<p class="caption">{html.escape(one.data.caption)}</p>'
        sections.append(_section(one.data.title, _image(one) + caption))
    sections.append(_section("The law", _constants(law)))
    if samples is not None:
        sections.append(_section("Sampled videos", _samples(samples)))
    if left_out:
        lines = [f"{name.replace('_', ' ')}: {reason}" for name, reason in left_out.items()]
        sections.append(_section("Figures left out", f"<ul>{_items(lines)}</ul>"))
    title = html.escape(f"Scaling laws: {law.name}")
    return PAGE.format(title=title, subtitle=_subtitle(sources.runs), sections="\n".join(sections)), drawn


def write_figures(drawn: list[Drawn], folder: Path) -> None:
    """Each figure as SVG and PNG, its points as CSV, and its caption as text."""
    for one in drawn:
        name, data = one.data.name, one.data
        write_bytes(folder / f"{name}.svg", _encoded(one.figure, "svg"))
        write_bytes(folder / f"{name}.png", one.png)
        write_text(folder / f"{name}.txt", f"{data.title}. {data.caption}\n")
        data.write_csv(folder / f"{name}.csv")


def _draw(data: Plotted) -> Drawn:
    figure = all_figures.draw(data)
    return Drawn(data, figure, _encoded(figure, "png"))


def _encoded(figure: "Figure", form: str) -> bytes:
    buffer = io.BytesIO()
    # Without a date the same figure gives the same file.
    figure.savefig(buffer, format=form, dpi=144, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def _subtitle(table: RunTable) -> str:
    diverged = int((table.loss == float("inf")).sum())
    text = f"{len(set(table.run_id.tolist()))} runs, {len(table)} milestones"
    text += f", {diverged} diverged" if diverged else ""
    return f"{text}, {len(np.unique(table.N))} sizes from {short(table.N.min())} to {short(table.N.max())} parameters."


def _items(lines: list[str]) -> str:
    return "".join(f"<li>{html.escape(text)}</li>" for text in lines)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _other_runs(table: RunTable, law: Law) -> str | None:
    """Why the run table's runs are not those that the law was fitted to; None where they may be."""
    fitted = table.rows(~table.heldout)
    apart = []
    for name in ("N", "T"):
        span, values = law.domain[name], getattr(fitted, name)
        # Grids without an optimum lie outside the law's domain too, but not most of them.
        if span and len(values) and np.mean((values > 0.9 * span[0]) & (values < 1.1 * span[1])) < 0.5:
            apart.append(
                f"it was fitted on {name} {span[0]:.4g} to {span[1]:.4g}, and these have {values.min():.4g} to "
                f"{values.max():.4g}"
            )
    clips = {int(n) for n in table.n_ctx if n > 0}
    if law.n_ctx and clips - {law.n_ctx}:
        apart.append(f"it has clips of {law.n_ctx} tokens, and these {', '.join(map(str, sorted(clips)))}")
    known = {
        key for key in law.recipe.keys() & table.recipe.keys() if None not in (law.recipe[key], table.recipe[key])
    }
    if differing := sorted(key for key in known if law.recipe[key] != table.recipe[key]):
        apart.append(f"its recipe differs in {', '.join(differing)}")
    return f"the law is of other runs: {'; '.join(apart)}" if apart else None


def compare(law: Law, result: dict[str, Any]) -> dict[str, Any]:
    """Prediction against measurement at each milestone of a run, from its ``result.json``."""
    try:
        N = positive(result["N"], "the planned run's N")
        milestones = [_compare_one(law, N, milestone) for milestone in result["milestones"]]
    except LeftOut as reason:
        raise UserError(f"no loss is predicted for the planned run: {reason}") from None
    except KeyError as error:
        raise UserError(f"the planned run's result.json has no {error}") from None
    except (TypeError, AttributeError) as error:
        raise UserError(f"the planned run's result.json is no run's result ({error})") from None
    if not milestones:
        raise UserError("the planned run has no milestone to compare with")
    return {"N": N, "C": milestones[-1]["flops"], "milestones": milestones}


def _compare_one(law: Law, N: float, milestone: dict[str, Any]) -> dict[str, Any]:
    T = positive(milestone["tokens"], "the planned run's tokens")
    name = "val" if milestone.get("ema_val_loss") is None else "ema_val"
    measured = positive(milestone[f"{name}_loss"], f"the planned run's {name}_loss")
    se, flops = (
        positive(milestone[key], f"the planned run's {key}") if milestone.get(key) else None
        for key in (f"{name}_se", "flops")
    )
    predicted, low, high = (float(v) for v in law_view.losses(law, N, T)[:, 0])
    return {
        "T": T, "loss": measured, "se": se or 0.0, "predicted": predicted, "low": _known(low), "high": _known(high),
        "error": float(relative_error(measured, predicted)), "flops": flops,
    }  # fmt: skip


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _image(drawn: "Drawn") -> str:
    width = round(100 * drawn.figure.get_figwidth())
    style = f"width: {width}px" if width < 1000 else ""
    data = base64.b64encode(drawn.png).decode()
    tag = f'<img class="figure" alt="{drawn.data.title}" style="{style}" src="data:image/png;base64,{data}">'
    return f'<div class="scroll">{tag}</div>'


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _verdict(run: dict[str, Any]) -> str:
    last = run["milestones"][-1]
    inside = ""
    if last["low"] is not None:
        within = last["low"] <= last["loss"] <= last["high"]
        inside = f", {'inside' if within else 'outside'} the law's 95 % interval"
    return (
        f'<p class="big">Predicted {last["predicted"]:.4f}, measured {last["loss"]:.4f}: '
        f"{100 * last['error']:+.2f} % at {short(run['N'])} parameters and {short(last['T'])} tokens{inside}.</p>"
    )


def _comparison(run: dict[str, Any]) -> str:
    rows = []
    for m in run["milestones"]:
        span = "unknown" if m["low"] is None else f"{m['low']:.4f} to {m['high']:.4f}"
        measured = f"{m['loss']:.4f} ± {1.96 * m['se']:.4f}"
        rows.append([short(m["T"]), f"{m['predicted']:.4f}", span, measured, f"{100 * m['error']:+.2f} %"])
    header = ["tokens", "predicted loss", "95 % interval", "measured loss (± 1.96 se)", "measured over predicted"]
    note = (
        "Both the interval and the measured loss's standard error count the choice of validation clips, which the "
        "sweep and the planned run share: that part cancels between the two."
    )
    return _table(header, rows) + _paragraph(note)


def _constants(law: Law) -> str:
    rows = []
    for part in ("batch", "lr", "loss"):
        value = getattr(law, part)
        for name in value.__dataclass_fields__ if value is not None else ():
            if name in ("scale", "assumed"):
                continue
            span = "assumed" if name in value.assumed else _interval(law, f"{part}.{name}")
            rows.append([f"{part}.{name}", f"{getattr(value, name):.5g}", span])
    for name in law.fit.get("intervals") or {} if law.surface is not None else ():
        value = float(law.surface.exponent(name.removeprefix("surface.")).value)
        rows.append([name, f"{value:.4g}", _interval(law, name)])
    for name, size_law in (law.allocation or {}).items():
        if isinstance(size_law, SizeLaw):
            span = _interval(law, f"allocation.{name}.exponent", "")
            rows.append([f"N_opt, {name}", f"{size_law.coefficient:.4g} C^{size_law.exponent:.4f}", span])
    formulas = [
        law_view.rate_formula(law),
        law_view.loss_formula(law),
        f"intervals: {law.fit.get('method') or 'none'}",
    ]
    return _table(["constant", "value", "95 % interval"], rows) + "".join(map(_paragraph, formulas))


def _interval(law: Law, name: str, unknown: str = "unknown") -> str:
    span = (law.fit.get("intervals") or {}).get(name)
    return unknown if span is None else f"{span[0]:.4g} to {span[1]:.4g}"


def _samples(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.suffix in IMAGES)
    if not files:
        raise UserError(f"{folder}: no gif, png or mp4 to show")
    prompts, items = _prompts(folder), []
    for path in files[:24]:
        data = f"data:{IMAGES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
        tag = (
            f'<img alt="" src="{data}">'
            if path.suffix != ".mp4"
            else f'<video src="{data}" autoplay loop muted></video>'
        )
        items.append(
            f"<figure>{tag}<figcaption>{html.escape(prompts.get(path.name, path.stem))}</figcaption></figure>"
        )
    return f'<div class="samples">{"".join(items)}</div>'


def _prompts(folder: Path) -> dict[str, str]:
    """File name -> prompt, from the samples.json that sample.py writes next to its files."""
    path = folder / "samples.json"
    records = read_json(path, list, "a list of files and prompts, as sample.py writes it") if path.exists() else []
    if not all(isinstance(row, dict) and type(row.get("file")) is type(row.get("prompt")) is str for row in records):
        raise UserError(f"{path}: not a list of files and prompts, as sample.py writes it; remove it to show none")
    return {row["file"]: row["prompt"] for row in records}
