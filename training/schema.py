"""The schema: every configuration key with its default, its meaning, its range and how it enters a run's id."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videoscaling.training.keys import ALWAYS, FINITE, FRACTION, NEVER, NOT_NEGATIVE, POSITIVE, WITH_DECAY, Bound, key


@dataclass
class ModelKeys:
    size: str | None = key(
        None,
        "a named size, LAYERSxWIDTH, such as 4x128; it sets layers, width and heads",
        identity=ALWAYS,
        aliases="model model_name model_type arch depth hidden_size num_layers n_layers n_layer dim d_model n_embd",
    )
    layers: int | None = key(None, "blocks", identity=ALWAYS, bound=POSITIVE)
    width: int | None = key(None, "model width d", identity=ALWAYS, bound=POSITIVE)
    heads: int | None = key(
        None,
        "attention heads; default: of 32 channels below 12 layers and width 512, else 64",
        identity=ALWAYS,
        bound=POSITIVE,
        aliases="num_heads n_heads num_attention_heads",
    )
    patch: list[int] = key(
        [1, 1, 1],
        "latent frames, rows and columns that make one token",
        identity=ALWAYS,
        bound=Bound("a number from 1 to 1,024: frames, rows and columns", lambda value: 1 <= value <= 1024),
        aliases="patch_size",
    )
    attention: str = key(
        "auto", "attention kernels: auto, sdpa, xformers or plain (no kernel: matrices and a softmax)", identity=NEVER
    )


@dataclass
class DataKeys:
    cache: Any = key(
        "",
        "folder of cached latents, made by tools/cache_latents.py, or a list of several, which may differ in shape",
        identity=NEVER,  # data.fingerprint, which is hashed, covers the cache and the weights
        aliases="dataset data_path data_dir train_data dataset_path train_data_dir dataset_name",
        path=True,
    )
    weights: list[float] = key(
        [],
        "of several caches: each one's share of the training tokens, in any unit; by their sizes if not given",
        identity=NEVER,
        bound=POSITIVE,
    )
    seed: int | None = key(
        None,
        "seed of data order, noise, t and caption dropout, where runs are to share them; seed if not given",
        differs_in_stack=True,
    )
    fingerprint: str = key(
        "", "of the cache; filled in when a run begins, and a cache with another is refused", identity=ALWAYS
    )
    caption_dropout: float = key(
        0.1,
        "share of captions replaced by the empty prompt, for guidance",
        identity=ALWAYS,
        bound=FRACTION,
        aliases="cfg_dropout class_dropout_prob cfg_prob dropout uncond_prob",
    )


@dataclass
class DiffusionKeys:
    process: str = key(
        "rectified_flow",
        "forward process: rectified_flow, vp_linear, vp_cosine or vp_zero_snr",
        identity=ALWAYS,
        aliases="noise_schedule noise_scheduler",
    )
    target: str = key(
        "flow",
        "the model's prediction: flow, or eps, v, x0 for the vp processes",
        identity=ALWAYS,
        aliases="prediction_type pred_type parameterization",
    )
    timesteps: str = key("logit_normal", "how training draws t: logit_normal or uniform", identity=ALWAYS)
    logit_mean: float = key(0.0, "mean of logit(t) under logit_normal", identity=ALWAYS, bound=FINITE)
    logit_std: float = key(1.0, "standard deviation of logit(t) under logit_normal", identity=ALWAYS, bound=POSITIVE)


@dataclass
class OptimKeys:
    lr: float = key(
        1e-3,
        "peak learning rate of AdamW",
        identity=ALWAYS,
        bound=POSITIVE,
        differs_in_stack=True,
        aliases="lr learning_rate max_lr base_lr matrix_lr",
    )
    beta1: float = key(
        0.9, "AdamW's first beta", identity=ALWAYS, bound=FRACTION, differs_in_stack=True, aliases="betas adam_beta1"
    )
    beta2_half_life: float = key(
        5e6,
        "half-life of the second moment in tokens: beta2 = 2^(-B / half-life), within optim.beta2_range",
        identity=ALWAYS,
        bound=POSITIVE,
        differs_in_stack=True,
        aliases="beta2 adam_beta2",
    )
    beta2_range: list[float] = key(
        [0.9, 0.9999],
        "least and largest beta2; [0, 1] leaves it to the half-life alone",
        before=[0.0, 1.0],
        matters=lambda config: (
            config.optim.beta2(config.train.batch_tokens) != config.optim.free_beta2(config.train.batch_tokens)
        ),
        bound=Bound("from 0 to 1", lambda value: 0 <= value <= 1),
        differs_in_stack=True,
    )
    eps: float = key(
        1e-8, "AdamW's epsilon", identity=ALWAYS, bound=POSITIVE, differs_in_stack=True, aliases="adam_epsilon epsilon"
    )
    weight_decay: float = key(
        0.0,
        "decoupled weight decay of the matrices; 0 in every law configuration",
        identity=ALWAYS,
        bound=NOT_NEGATIVE,
        differs_in_stack=True,
        aliases="wd adam_weight_decay",
    )
    clip: float = key(
        1.0,
        "clip the gradient's global norm here",
        identity=ALWAYS,
        bound=POSITIVE,
        differs_in_stack=True,
        aliases="grad_clip max_grad_norm clip_grad_norm clip_max_norm gradient_clip_val",
    )
    schedule: str = key(
        "constant",
        "constant, cosine (to zero) or wsd (linear decay at the end), after the warm-up",
        identity=ALWAYS,
        choices=("constant", "cosine", "wsd"),
        differs_in_stack=True,
        aliases="lr_scheduler lr_schedule scheduler",
    )
    warmup_tokens: int | None = key(
        None,
        "tokens of linear warm-up; 10 % of the smallest milestone where not given",
        identity=ALWAYS,
        bound=NOT_NEGATIVE,
        differs_in_stack=True,
        aliases="warmup_steps lr_warmup_steps warmup",
    )
    decay_fraction: float = key(
        0.2, "share of the run that wsd decays over", identity=ALWAYS, bound=FRACTION, differs_in_stack=True
    )

    def free_beta2(self, batch_tokens: int) -> float:
        """The second moment's decay per step that looks back over the same tokens at every batch size."""
        return 2.0 ** (-batch_tokens / self.beta2_half_life)

    def beta2(self, batch_tokens: int) -> float:
        """AdamW's second beta at this batch: ``free_beta2`` within ``beta2_range``.

        A batch of more than 0.15 half-lives would take it below 0.9. At 0.475 the loss was 2.39 +- 0.13 % worse than
        at 0.95 (2x64, 400 steps of 16 clips, rate 4e-3, paired seeds).
        """
        low, high = self.beta2_range
        return min(max(self.free_beta2(batch_tokens), low), high)


@dataclass
class EmaKeys:
    width: float = key(
        0.05,
        "relative width of the weights' power-function average (EDM2, arXiv 2312.02696)",
        identity=ALWAYS,
        bound=Bound("positive and below 0.28, as a power function's relative width is", lambda v: 0 < v < 0.28),
        aliases="ema_decay ema_rate",
    )


@dataclass
class TrainKeys:
    tokens: int | None = key(
        None,
        "end of the run, in tokens; rounded up to a whole step",
        identity=WITH_DECAY,
        bound=POSITIVE,
        aliases="steps max_steps epochs num_epochs num_train_epochs max_train_steps iterations num_iterations",
    )
    flops: float | None = key(
        None,
        "end of the run, in training FLOPs by C_token; instead of train.tokens",
        identity=WITH_DECAY,
        bound=POSITIVE,
        aliases="target_flops max_flops",
    )
    milestones: list[int] = key(
        [],
        "tokens at which the run is validated; its end always is",
        identity=WITH_DECAY,
        bound=Bound("a positive number of tokens", lambda value: value > 0),
        aliases="eval_every eval_steps val_every validation_steps validation_epochs",
    )
    batch_tokens: int = key(
        0,
        "global batch B in tokens: a whole number of clips",
        identity=ALWAYS,
        aliases="batch_size global_batch_size train_batch_size batch",
    )
    micro_batch: int | None = key(
        None,
        "clips per forward pass and process; if not given, the process's whole share, on a GPU the fastest that fits",
        identity=NEVER,
        bound=POSITIVE,
        aliases="gradient_accumulation_steps accumulation_steps grad_accum micro_batch_size local_batch_size "
        "device_batch_size",
    )
    dtype: str = key(
        "float32",
        "compute dtype of the blocks: float32, bfloat16 or auto (bfloat16 if the GPU has it)",
        identity=ALWAYS,
        choices=("auto", "float32", "bfloat16"),
        aliases="precision mixed_precision fp16 bf16 amp",
    )
    max_skipped: int = key(
        10,
        "steps in a row without a finite gradient after which a run counts as diverged",
        identity=NEVER,
        bound=POSITIVE,
    )
    parallel: str = key(
        "ddp",
        "several processes: ddp (each holds all), zero1 (each a slice of AdamW and EMA), fsdp (FSDP2: each a shard of "
        "all) or hsdp (shards within each node)",
        identity=NEVER,
        choices=("ddp", "zero1", "fsdp", "hsdp"),
        aliases="strategy fsdp fsdp_type ddp deepspeed plugin",
    )
    context_parallel: int = key(
        1,
        "processes among which each clip's tokens are divided (Ulysses); with any train.parallel",
        identity=NEVER,
        bound=POSITIVE,
        aliases="cp cp_size context_parallel_size sequence_parallel sp_size ulysses_degree ulysses_size",
    )
    activation_checkpointing: Any = key(
        False,
        "recompute each block's activations in the backward pass; selective: all but the outputs of attention kernels",
        identity=NEVER,
        choices=(False, True, "selective"),
        aliases="gradient_checkpointing grad_checkpoint",
    )
    timeout_minutes: float = key(
        30.0, "minutes to wait for a process that does not answer before giving up", identity=NEVER, bound=POSITIVE
    )
    init: str = key(
        "",
        "begin with the EMA weights of a run directory, of a checkpoint, or of a folder of tools/export.py",
        aliases="init_from pretrained pretrained_path finetune_from",
        path=True,
    )
    compile: bool = key(
        False,
        "torch.compile, of up to 6 blocks as a whole (on the CPU: needs a C++ compiler)",
        identity=NEVER,
        aliases="torch_compile use_compile",
    )


@dataclass
class ValidationKeys:
    clips: int | None = key(
        None,
        "the first so many clips of the cache's frozen list; all of them if not given",
        identity=ALWAYS,
        bound=Bound("2 or more, as a standard error needs two", lambda value: value >= 2),
    )
    timesteps: int = key(
        4,
        "stratified times per clip",
        identity=ALWAYS,
        # Each stratum is one shuffle of all clips: a number mistyped by nine zeros took hours before the first step.
        bound=Bound("from 1 to 1000", lambda value: 1 <= value <= 1000),
    )
    batch: int | None = key(
        None,
        "the most samples per forward pass, 32 or 40,960 tokens if not given; it does not change the loss",
        identity=NEVER,
        bound=POSITIVE,
    )
    seed: int = key(0, "seed of times and noise, common to all runs that are to be compared", identity=ALWAYS)


@dataclass
class CheckpointKeys:
    every_steps: int = key(
        1000,
        "steps between checkpoints; milestones, the end and SIGTERM make one too",
        identity=NEVER,
        bound=POSITIVE,
        aliases="ckpt_every save_every save_steps checkpointing_steps",
    )
    every_minutes: float | None = key(
        None,
        "a checkpoint after so many minutes too, at the next logged step",
        identity=NEVER,
        bound=POSITIVE,
    )
    keep: int = key(
        2, "checkpoints kept", identity=NEVER, bound=POSITIVE, aliases="save_total_limit checkpoints_total_limit"
    )
    final: str = key(
        "full",
        "checkpoint of a finished run: full, or ema (averaged weights only, as sweeps keep)",
        identity=NEVER,
        choices=("full", "ema"),
    )


@dataclass
class LogKeys:
    every_steps: int = key(
        10,
        "steps between lines of metrics.jsonl and points of log.to; the console shows at most one in 5 s",
        identity=NEVER,
        bound=POSITIVE,
        aliases="log_every log_freq logging_steps log_interval freq",
    )
    to: list[str] = key(
        ["tensorboard"],
        "where the points go: tensorboard, wandb, trackio (installed apart; their settings are environment variables)",
        identity=NEVER,
        choices=("tensorboard", "wandb", "trackio"),
        aliases="wandb report_to use_wandb wandb_log tensorboard log_with trackers",
    )
    tensorboard_dir: str = key(
        "tensorboard",
        "folder of the TensorBoard events, in the run directory; a sweep's cells: in the sweep's, under their names",
        identity=NEVER,
        differs_in_stack=True,
        aliases="logging_dir log_dir",
        path=True,
    )
    prompts: list[str] = key(
        [],
        "prompts sampled as videos to TensorBoard at each milestone",
        identity=NEVER,
        aliases="validation_prompts sample_prompts sample_every",
    )
    sample_steps: int = key(20, "sampler steps of those videos", identity=NEVER, bound=POSITIVE)
    vae: str | None = key(
        None,
        "folder of the cache's VAE, for videos of log.prompts; its recorded folder if not given",
        identity=NEVER,
        path=True,
    )
    text: str | None = key(
        None,
        "folder of the cache's text encoder, for videos of log.prompts; its recorded folder if not given",
        identity=NEVER,
        path=True,
    )
    guidance: float = key(
        3.0, "guidance of those videos", identity=NEVER, bound=FINITE, aliases="cfg_scale guidance_scale cfg"
    )


@dataclass
class Config:
    """The configuration of a run: these keys, and the groups of keys above."""

    name: str = key(
        "run",
        "name of the run; its directory is out/name",
        identity=NEVER,
        differs_in_stack=True,
        aliases="run run_name exp_name experiment project model_tag",
    )
    out: str = key(
        "runs",
        "folder of run directories",
        identity=NEVER,
        aliases="output_dir outputs results_dir out_dir logdir save_dir dump_dir",
        path=True,
    )
    heldout: bool = key(
        False,
        "leave the run out of the fits, to check their predictions with it",
        identity=NEVER,
        differs_in_stack=True,
    )
    seed: int = key(
        0,
        "seed of initialisation; of data order, noise, t and caption dropout too (see data.seed)",
        identity=ALWAYS,
        differs_in_stack=True,
        aliases="random_seed global_seed",
    )
    model: ModelKeys = field(default_factory=ModelKeys)
    data: DataKeys = field(default_factory=DataKeys)
    diffusion: DiffusionKeys = field(default_factory=DiffusionKeys)
    optim: OptimKeys = field(default_factory=OptimKeys)
    ema: EmaKeys = field(default_factory=EmaKeys)
    train: TrainKeys = field(default_factory=TrainKeys)
    validation: ValidationKeys = field(default_factory=ValidationKeys)
    checkpoint: CheckpointKeys = field(default_factory=CheckpointKeys)
    log: LogKeys = field(default_factory=LogKeys)

    @property
    def run_dir(self) -> Path:
        return Path(self.out) / self.name

    @property
    def data_seed(self) -> int:
        """The seed of data order, noise, t and caption dropout."""
        return self.seed if self.data.seed is None else self.data.seed
