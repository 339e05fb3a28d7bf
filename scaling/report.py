"""One self-contained HTML page: what was swept, what was fitted, what was predicted, what came true."""

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scaling import figures, lines
from scaling.figures import short
from scaling.heldout import paired
from scaling.jackknife import interval
from scaling.laws import Law, SizeLaw
from scaling.optimum import WINDOW, next_cells
from scaling.planning import allocation
from scaling.points import STAND_IN, at_nominal, grid_optima
from scaling.runs import Ledger
from scaling.tables import positive
from utils.errors import UserError
from utils.files import read_json

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
img.figure {{ max-width: 100%; height: auto; display: block; }}
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


def build(
    ledger: Ledger,
    law: Law,
    cost: allocation.Cost,
    planned: dict[str, Any] | None = None,
    samples: Path | None = None,
) -> tuple[str, dict[str, "Figure"]]:
    """The page, and its figures by name.

    Args:
        ledger: the runs; held-out rows are drawn, not fitted.
        law: the law fitted to them.
        cost: training FLOPs per token as a function of N.
        planned: the ``result.json`` of a run that the law planned.
        samples: a folder with sampled gif, png or mp4 files.
    """
    if _has_grids(ledger):
        # As fits do: losses at the tokens that all runs of a grid had seen, optima by the law's own window. Held-out
        # sizes are as their check has them.
        ledger = paired(at_nominal(ledger))
        axes = tuple(name for name in lines.BOTH if name not in (law.fit.get("along") or {}))
        optima = tuple(grid_optima(ledger, law.fit.get("window", WINDOW), axes))
    else:
        optima = ()
    held = {(N, T): bool(ledger.heldout[rows].all()) for N, T, rows in ledger.grids()}
    doubts = list(law.fit.get("warnings") or ())
    stand_in = next((text for text in doubts if text.startswith(STAND_IN)), "")
    points = [
        (o.N, o.T, o.loss, held[o.N, o.T]) for o in optima if o.usable or (stand_in and o.cells and not held[o.N, o.T])
    ]
    if not optima:
        finite = ledger.rows(np.isfinite(ledger.loss))
        points = list(zip(finite.N, finite.nominal_T, finite.loss, finite.heldout))
    run = None if planned is None else compare(law, planned)
    drawn: dict[str, Figure] = {}
    sections = []
    if run:
        sections.append(_section("The prediction and the run", _verdict(run) + _comparison(run)))
    if other := _other_runs(ledger, law):
        doubts.insert(0, other)
    if doubts:
        items = "".join(f"<li>{html.escape(text)}</li>" for text in doubts)
        sections.append(_section("What to distrust", f'<ul class="warnings">{items}</ul>'))
    if asked := next_cells(o for o in optima if not held[o.N, o.T]):
        items = "".join(f"<li>{html.escape(text)}</li>" for text in asked)
        sections.append(_section("What to run next", f"<ul>{items}</ul>"))
    if law.loss is not None and points:
        drawn["losses"] = figures.losses(law, points, run)
        text = "Losses at the grids' optima, and the loss law with its 95 % interval. Hollow squares were held out."
        sections.append(_section("Loss over tokens", _paragraph(text) + _image(drawn["losses"])))
    if optima:
        drawn["surfaces"] = figures.surfaces(ledger, optima)
        outside = "A grid whose optimum is not inside enters no law"
        if stand_in:
            outside = "Where the optimum is not inside the best cell stood in"
        text = (
            "Each dot is a run, a cross a diverged one; contours are of the fitted quadratic, in per cent; the star "
            f"is its minimum with its 95 % ellipse. {outside}: red squares are the cells that would decide it."
        )
        sections.append(_section("Loss surfaces", _paragraph(text) + _image(drawn["surfaces"])))
    if optima and law.batch is not None and law.lr is not None:
        forced = "rates" in stand_in
        drawn["hyperparameters"] = figures.hyperparameters(law, optima, forced)
        text = "Best batch and rate of each grid, and the laws with 95 % intervals. Hollow marks "
        text += "are best cells, no optima, and were fitted all the same." if forced else "enter neither law."
        sections.append(_section("Hyper-parameter laws", _paragraph(text) + _image(drawn["hyperparameters"])))
    if law.loss is not None:
        budget = run["C"] if run and run["C"] else 10 * (law.domain["C"] or (1e17, 1e19))[1]
        drawn["sizes"] = figures.sizes_for_budget(law, cost, points, budget)
        text = _size_interval(law, cost, budget)
        sections.append(_section("Model size for a budget", _paragraph(text) + _image(drawn["sizes"])))
    if law.loss is not None and len(points) > 2:
        drawn["residuals"] = figures.residuals(law, points)
        text = "Measured over predicted loss, in per cent. Squares were held out."
        sections.append(_section("Residuals of the loss law", _paragraph(text) + _image(drawn["residuals"])))
    sections.append(_section("The law", _constants(law)))
    if samples is not None:
        sections.append(_section("Sampled videos", _samples(samples)))
    diverged = int((ledger.loss == float("inf")).sum())
    sizes = f"{len({float(n) for n in ledger.N})} sizes from {short(ledger.N.min())} to {short(ledger.N.max())}"
    subtitle = (
        f"{len(set(ledger.run_id.tolist()))} runs, {len(ledger)} milestones"
        + (f", {diverged} diverged" if diverged else "")
        + f", {sizes} parameters."
    )
    page = PAGE.format(title=html.escape(f"Scaling laws: {law.name}"), subtitle=subtitle, sections="\n".join(sections))
    return page, drawn


def _other_runs(ledger: Ledger, law: Law) -> str | None:
    """What tells that the ledger's runs are not those that the law was fitted to, in words."""
    fitted = ledger.rows(~ledger.heldout)
    told = []
    for name in ("N", "T"):
        span, values = law.domain[name], getattr(fitted, name)
        # Grids without an optimum lie outside the law's domain too, but not most of them.
        if span and len(values) and np.mean((values > 0.9 * span[0]) & (values < 1.1 * span[1])) < 0.5:
            told.append(
                f"it was fitted on {name} {span[0]:.4g} to {span[1]:.4g}, and these have {values.min():.4g} to "
                f"{values.max():.4g}"
            )
    clips = {int(n) for n in ledger.n_ctx if n > 0}
    if law.n_ctx and clips - {law.n_ctx}:
        told.append(f"it has clips of {law.n_ctx} tokens, and these {', '.join(map(str, sorted(clips)))}")
    known = {
        key for key in law.recipe.keys() & ledger.recipe.keys() if None not in (law.recipe[key], ledger.recipe[key])
    }
    if differing := sorted(key for key in known if law.recipe[key] != ledger.recipe[key]):
        told.append(f"its recipe differs in {', '.join(differing)}")
    return f"the law is of other runs: {'; '.join(told)}" if told else None


def compare(law: Law, result: dict[str, Any]) -> dict[str, Any]:
    """Prediction against measurement at each milestone of a run, from its ``result.json``."""
    law.require("loss")
    try:
        N = positive(result["N"], "the planned run's N")
        milestones = [_compare_one(law, N, milestone) for milestone in result["milestones"]]
    except KeyError as error:
        raise UserError(f"the planned run's result.json has no {error}") from None
    except (TypeError, AttributeError) as error:
        raise UserError(f"the planned run's result.json is no run's result ({error})") from None
    if not milestones:
        raise UserError("the planned run has no milestone to compare with")
    return {"N": N, "C": milestones[-1]["flops"], "milestones": milestones}


def _compare_one(law: Law, N: float, milestone: dict[str, Any]) -> dict[str, Any]:
    T, loss = positive(milestone["tokens"], "the planned run's tokens"), law.drawn("loss")
    name = "val" if milestone.get("ema_val_loss") is None else "ema_val"
    measured = positive(milestone[f"{name}_loss"], f"the planned run's {name}_loss")
    se, flops = (
        positive(milestone[key], f"the planned run's {key}") if milestone.get(key) else None
        for key in (f"{name}_se", "flops")
    )
    predicted = float(law.loss(N, T))
    low, high = interval(loss(N, T)) if loss is not None else (None, None)
    return {
        "T": T, "loss": measured, "se": se or 0.0, "predicted": predicted, "low": low, "high": high,
        "error": measured / predicted - 1, "flops": flops,
    }  # fmt: skip


def _size_interval(law: Law, cost: allocation.Cost, C: float) -> str:
    """In words: the best size for C FLOPs, with its interval, and those that cost little loss."""
    best, drawn = float(allocation.optimum(law.loss, C, cost)), law.drawn("loss")
    span = ""
    if drawn is not None:
        constants = np.stack([drawn.Tc, drawn.aT, drawn.Nc, drawn.aN, drawn.Linf], axis=-1)
        low, high = interval(allocation.minimise(constants, drawn.scale, C, cost))
        span = f" (95 % interval {short(low)} to {short(high)})"
    near = " to ".join(short(N) for N in allocation.within(law.loss, C, cost, figures.TOLERANCE))
    return (
        f"At {C:.2g} FLOPs the loss law is lowest at {short(best)} parameters{span}, and within "
        f"{figures.TOLERANCE:.1%} of that from {near}: a smaller model costs little loss, and less to serve."
    )


def figure_png(figure: "Figure") -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


def _has_grids(ledger: Ledger) -> bool:
    """Whether some (N, T) has several cells; rows that name no batch and no rate are points."""
    return bool(np.isfinite([ledger.B, ledger.lr]).all()) and any(len(rows) > 1 for _, _, rows in ledger.grids())


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _image(figure: "Figure") -> str:
    data = base64.b64encode(figure_png(figure)).decode()
    return f'<img class="figure" alt="figure" src="data:image/png;base64,{data}">'


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
            span = (law.fit.get("intervals") or {}).get(f"{part}.{name}")
            words = (
                "assumed"
                if name in value.assumed
                else "unknown"
                if span is None
                else f"{span[0]:.4g} to {span[1]:.4g}"
            )
            rows.append([f"{part}.{name}", f"{getattr(value, name):.5g}", words])
    for name, size_law in (law.allocation or {}).items():
        if isinstance(size_law, SizeLaw):
            span = (law.fit.get("intervals") or {}).get(f"allocation.{name}.exponent")
            words = "" if span is None else f"exponent {span[0]:.4g} to {span[1]:.4g}"
            rows.append([f"N_opt, {name}", f"{size_law.coefficient:.4g} C^{size_law.exponent:.4f}", words])
    scales = {f"{v.scale['T']:g} tokens and {v.scale['N']:g} parameters" for v in (law.batch, law.lr, law.loss) if v}
    how = f"Units: {' / '.join(sorted(scales))}. Intervals: {law.fit.get('method') or 'none'}."
    return _table(["constant", "value", "95 % interval"], rows) + _paragraph(how)


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
    """File name -> prompt, from the samples.json that sample.py leaves beside its files."""
    path = folder / "samples.json"
    records = read_json(path, list, "a list of files and prompts, as sample.py writes it") if path.exists() else []
    if not all(isinstance(row, dict) and type(row.get("file")) is type(row.get("prompt")) is str for row in records):
        raise UserError(f"{path}: not a list of files and prompts, as sample.py writes it; remove it to show none")
    return {row["file"]: row["prompt"] for row in records}
