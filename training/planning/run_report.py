"""What ``train.py --dry-run`` reports of a run, for machines and as text."""

from dataclasses import dataclass

from videoscaling.training.planning.step_account import StepAccount
from videoscaling.utils.errors import plural
from videoscaling.utils.progress import duration
from videoscaling.utils.yaml_text import Values

WARMUP_STEPS, PROBE_STEPS = 2, 10  # of the probe


@dataclass(frozen=True)
class Flops:
    """Of the training: C, C_token of one token, and the exact count."""

    C: float
    C_token: float
    exact: int


@dataclass(frozen=True)
class ValidationCost:
    """Clips and samples of one milestone, milestones, and the share of all milestones in the run's exact FLOPs."""

    clips: int
    samples: int
    milestones: int
    milestones_left: int
    flops_share: float


@dataclass(frozen=True)
class TextLengths:
    """Tokens of the captions of the sampled clips."""

    min: int
    median: int
    max: int
    padded_to: int


@dataclass(frozen=True)
class DataReport:
    """The data; latents by channel and text lengths are of the sampled clips."""

    cache: str
    fingerprint: str
    vae: str
    text: str
    training_clips: int
    training_tokens: int
    validation_clips: int
    validation_hash: str
    latent_shape: list[int]
    sampled_clips: int
    text_lengths: TextLengths
    latent_mean: list[float]
    latent_std: list[float]


@dataclass(frozen=True)
class ShapeReport:
    """One of several shapes of clips: its latents' name, its share of the run's steps, and its data."""

    latents: str
    n_ctx: int
    clips_per_step: int
    share: float
    steps: int
    C_token: float
    data: DataReport


@dataclass(frozen=True)
class Timing:
    """Measured times, and what they make of the whole run."""

    device: str
    processes: int
    seconds_per_step: float
    data_seconds_per_step: float
    tokens_per_second: float
    mfu: float | None
    validation_seconds_per_milestone: float
    training_seconds: float
    validation_seconds: float
    seconds: float
    validation_share: float
    micro_batch: int
    account: StepAccount


@dataclass(frozen=True)
class RunReport:
    """What ``--dry-run --json`` prints; ``parameters`` and ``memory`` (bytes) are by part, with their total.

    ``shapes`` is empty where all clips have one. Of several, ``n_ctx``, ``clips_per_step``, ``memory``, ``data`` and
    the step's account are the largest one's, and C_token is their mean.
    """

    config: Values
    warnings: list[str]
    status: str
    from_step: int
    N: int
    parameters: dict[str, int]
    n_ctx: int
    tokens: int
    steps: int
    clips_per_step: int
    epochs: float
    flops: Flops
    memory: dict[str, int | None]
    validation: ValidationCost
    data: DataReport
    shapes: list[ShapeReport]
    time: Timing | None = None  # before the probe


def table(rows: list[tuple[str, str]]) -> str:
    """(label, text) rows as lines, the texts aligned."""
    return "\n".join(f"{label:<12}{text}" for label, text in rows)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def described(report: RunReport) -> list[tuple[str, str]]:
    """The rows of ``table`` that are known before a step is taken."""
    config, flops, validation = report.config, report.flops, report.validation
    state = {"new": "new", "resumes": f"continues from step {report.from_step:,}"}.get(
        report.status, f"already {report.status}: there is nothing left to do"
    )
    steps = [(one.clips_per_step, one.n_ctx) for one in report.shapes] or [(report.clips_per_step, report.n_ctx)]
    clips = " or ".join(f"{plural(count, 'clip')} of {n_ctx:,} tokens" for count, n_ctx in steps)
    groups = [(name, number) for name, number in report.parameters.items() if name != "total"]
    parts = [f"{name} {_gib(size)}" for name, size in report.memory.items() if name != "total" and size]
    return [
        ("run", f"{config['out']}/{config['name']}: {state}"),
        (
            "model",
            f"{config['model']['size']}, {plural(config['model']['heads'], 'head')}, {config['train']['dtype']}",
        ),
        ("parameters", f"{report.parameters['total']:,}"),
        *(("", f"{number:>15,} {name}{' = N' if number == report.N else ''}") for name, number in groups if number),
        (
            "length",
            f"{report.tokens:,} tokens in {plural(report.steps, 'step')} of {clips}; {report.epochs:.3g} epochs",
        ),
        ("FLOPs", f"C {flops.C:.4g} (C_token {flops.C_token:.4g}); exact {flops.exact:.4g}"),
        (
            "validation",
            f"{plural(validation.milestones, 'milestone')}, {validation.samples:,} samples at each; "
            f"{validation.flops_share:.1%} of the run's FLOPs",
        ),
        *(row for shape in report.shapes for row in [_shape_row(shape), *_data_rows(shape.data)]),
        *([] if report.shapes else _data_rows(report.data)),
        ("memory", f"{_gib(report.memory['total'])} per process, estimated: {', '.join(parts)}"),
    ]


def _shape_row(shape: ShapeReport) -> tuple[str, str]:
    return (
        "shape",
        f"{shape.latents}: {plural(shape.steps, 'step')} (share {shape.share:g}) of "
        f"{plural(shape.clips_per_step, 'clip')}, C_token {shape.C_token:.4g}",
    )


def _data_rows(data: DataReport) -> list[tuple[str, str]]:
    lengths = data.text_lengths
    return [
        (
            "data",
            f"{data.cache}: {plural(data.training_clips, 'training clip')} = {data.training_tokens:,} "
            f"tokens, {plural(data.validation_clips, 'validation clip')}",
        ),
        (
            "",
            f"fingerprint {data.fingerprint}, VAE {data.vae}, text {data.text}; "
            f"captions of {lengths.min} to {lengths.max} tokens, median {lengths.median}, "
            f"padded to {lengths.padded_to}",
        ),
        (
            "",
            f"latents {'x'.join(map(str, data.latent_shape))}; by channel, of {plural(data.sampled_clips, 'clip')}:",
        ),
        ("", f"mean {_numbers(data.latent_mean)}"),
        ("", f"std  {_numbers(data.latent_std)}"),
    ]


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def probed(report: RunReport) -> list[tuple[str, str]]:
    """The rows of ``table`` with the times and the memory that the probe measured."""
    spent, measured = report.time, report.memory["measured"]
    mfu = "" if spent.mfu is None else f", MFU {spent.mfu:.1%}"
    # A process that held more memory before, such as a notebook's, shows no growth.
    grown = f"{_gib(measured)} measured" if measured else "no growth measured"
    processes = "" if spent.processes == 1 else f"{spent.processes} processes on "
    return [
        ("", f"{grown} in {(WARMUP_STEPS + PROBE_STEPS) * max(len(report.shapes), 1)} steps"),
        (
            "time",
            f"{duration(spent.seconds)} on {processes}{spent.device}: training {duration(spent.training_seconds)}, "
            f"validation {duration(spent.validation_seconds)} ({spent.validation_share:.1%})",
        ),
        (
            "",
            f"a step {1e3 * spent.seconds_per_step:.4g} ms, its data {1e3 * spent.data_seconds_per_step:.3g} "
            f"ms, mean of {PROBE_STEPS} steps; {spent.tokens_per_second:,.0f} tokens/s{mfu}",
        ),
        ("", f"a step{' of the largest clips' if report.shapes else ''} by formula: {spent.account.text()}"),
        ("", "without start, checkpoints and sampled videos"),
    ]
