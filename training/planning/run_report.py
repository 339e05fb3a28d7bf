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
    """What ``--dry-run --json`` prints; ``parameters`` and ``memory`` (bytes) are by part, with their total."""

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
    time: Timing | None = None  # before the probe


def table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"{label:<12}{text}" for label, text in rows)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def described(report: RunReport) -> list[tuple[str, str]]:
    config, data, flops, validation = report.config, report.data, report.flops, report.validation
    state = {"new": "new", "resumes": f"continues from step {report.from_step:,}"}.get(
        report.status, f"already {report.status}: there is nothing left to do"
    )
    lengths = data.text_lengths
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
            f"{report.tokens:,} tokens in {plural(report.steps, 'step')} of "
            f"{plural(report.clips_per_step, 'clip')} of {report.n_ctx:,} tokens; {report.epochs:.3g} epochs",
        ),
        ("FLOPs", f"C {flops.C:.4g} (C_token {flops.C_token:.4g}); exact {flops.exact:.4g}"),
        (
            "validation",
            f"{plural(validation.milestones, 'milestone')}, {validation.samples:,} samples at each; "
            f"{validation.flops_share:.1%} of the run's FLOPs",
        ),
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
        ("memory", f"{_gib(report.memory['total'])} per process, estimated: {', '.join(parts)}"),
    ]


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def probed(report: RunReport) -> list[tuple[str, str]]:
    spent, measured = report.time, report.memory["measured"]
    mfu = "" if spent.mfu is None else f", MFU {spent.mfu:.1%}"
    # A process that held more memory before, such as a notebook's, shows no growth.
    grown = f"{_gib(measured)} measured" if measured else "no growth measured"
    processes = "" if spent.processes == 1 else f"{spent.processes} processes on "
    return [
        ("", f"{grown} in {WARMUP_STEPS + PROBE_STEPS} steps"),
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
        ("", f"a step by formula: {spent.account.text()}"),
        ("", "without start, checkpoints and sampled videos"),
    ]
