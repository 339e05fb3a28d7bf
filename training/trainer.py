"""The training loop: cached latents in, checkpoints and result.json out."""

import copy
import functools
import math
import time
import zlib
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from omegaconf import OmegaConf

from videoscaling.data.export import DEFAULT_FPS
from videoscaling.data.mixture import Data
from videoscaling.diffusion.loss import denoising_loss
from videoscaling.diffusion.process import Process
from videoscaling.diffusion.timesteps import draw_timesteps
from videoscaling.diffusion.validation import ValidationResult
from videoscaling.models.dit import VideoDiT
from videoscaling.training.batches import Samples, loader_of, with_text_tokens
from videoscaling.training.checkpoints import checkpoint as ckpt
from videoscaling.training.checkpoints.exported import load_initial
from videoscaling.training.checkpoints.leftovers import clean_run
from videoscaling.training.checkpoints.pieces import shapes_of
from videoscaling.training.checkpoints.writer import CheckpointWriter, finished_after_errors
from videoscaling.training.checks import check_layout
from videoscaling.training.config import CONFIG, to_dict
from videoscaling.training.data_check import DataCheck
from videoscaling.training.distributed.parallel import (
    all_reduce,
    check_together,
    from_first,
    node_count,
    sequence_shards,
    shard,
)
from videoscaling.training.logs.metrics import MetricsLog
from videoscaling.training.logs.preview import Preview
from videoscaling.training.logs.run_log import close_log, log_window, open_log
from videoscaling.training.logs.trackers import check_installed
from videoscaling.training.memory import find_micro_batch
from videoscaling.training.model import build_model, check_compiler, compile_model
from videoscaling.training.result import build_result, check_growth, recorded, result_damage, resumable_step
from videoscaling.training.run import Run
from videoscaling.training.signals import StopRequest
from videoscaling.training.step import TrainStep
from videoscaling.training.validation import RAW_SHARE, Score, few_blocks, losses_file, milestone_scores, validator_of
from videoscaling.utils.files import atomic_write, write_bytes
from videoscaling.utils.locks import check_lock
from videoscaling.utils.messages import warn
from videoscaling.utils.results import DATA_FAULT, Milestone, write_result

Scores = tuple[ValidationResult, ValidationResult]  # of the raw weights, and of the EMA


class Trainer:
    """One training run: model, EMA, optimiser and counters, and the loop that trains them.

    Attributes:
        status: "running", and at the end "done", "diverged" or "preempted" (stopped by a signal).
        share: of this process's time that the run has; stacked runs divide it.
    """

    def __init__(self, run: Run, cache: Data) -> None:
        self.run, self.cache = run, cache
        self.config = config = run.config
        self._join_processes()
        self._check()
        self.process = Process(config.diffusion.process, config.diffusion.target)
        self.preview = None
        if config.log.prompts and (self.main or self.collective):
            self.preview = Preview(config.log, self.process, cache.meta, self.device)
        self.model, self.ema = self._build_models()
        self.train_step = TrainStep(config, self.model, self.ema, self.device)
        if config.train.compile:  # a difference in this would compile validation twice
            self.ema.requires_grad_()
        context = config.train.context_parallel  # these processes compute on the same clips
        place = (self.rank // context, self.world // context)
        self.loader = loader_of(run, cache, *place, self.device)
        self.validator = validator_of(run, cache, self.device, *place, self.collective)
        if run.shapes:
            self.train_step.clip_numbers = math.prod(cache.latent_shape)
        self.step = 0
        self.milestones: list[Milestone] = []
        self.seconds = 0.0
        self._waited = 0.0  # of the loader's seconds, those that are logged
        self.share = 1.0
        self.status = "running"
        self._stopping = False
        self.writer = CheckpointWriter(config.train.parallel, config.train.timeout_minutes)
        self._log: MetricsLog | None = None  # of the first process alone

    def _join_processes(self) -> None:
        """Join the other processes of ``torchrun``, if there are any, and choose this one's device."""
        # NCCL's watchdog aborts without a word: on GPUs the signals' flags, over gloo, are to time out before it.
        timeout = timedelta(minutes=self.config.train.timeout_minutes + torch.cuda.is_available())
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timeout)
        self.device, self.rank, self.world = state.device, state.process_index, state.num_processes
        self.main = state.is_main_process
        self.sharded = self.config.train.parallel in ("fsdp", "hsdp") and self.world > 1
        # Whether a forward pass needs other processes: all of them make it, or none.
        self.collective = self.sharded or self.config.train.context_parallel > 1
        if self.world > 1:  # one that is refused, and leaves before all have met, would look lost to the others
            dist.barrier()

    def _check(self) -> None:
        """Check everything that can be checked before anything is built; raises UserError."""
        check_layout(self.run, self.cache, self.world)
        check_together(self.cache.verify_validation, self.device)
        check_compiler(self.config.train.compile, self.device)
        check_installed(self.config)
        draw_timesteps(torch.zeros(1, dtype=torch.int64), 0, self.config.diffusion.timesteps)  # refuses unknown names

    def _build_models(self) -> tuple[VideoDiT, VideoDiT]:
        """The model and its EMA, compiled and sharded by the configuration."""
        model = build_model(self.config, self.cache.meta, self.device)
        if self.config.train.init and not resumable_step(self.config.run_dir):
            load_initial(model, self.config.train.init, self.cache.meta)
        ema = copy.deepcopy(model).requires_grad_(False).eval()
        shards = sequence_shards(self.config.train.context_parallel, self.device)
        for each in (model, ema):
            each.sequence_shards = shards
            if self.config.train.compile:
                compile_model(each, whole=not self.sharded, shapes=len(self.run.parts))
            if self.sharded:
                shard(each, node_count() if self.config.train.parallel == "hsdp" else 1)
        return model, ema

    @property
    def tokens(self) -> int:
        return self.step * self.config.train.batch_tokens

    # -- before the first step -----------------------------------------------------------------------------------

    def claim_directory(self) -> None:
        """Write this configuration into the run directory, after all checks."""
        if self.main:
            with atomic_write(self.config.run_dir / CONFIG) as tmp:
                OmegaConf.save(OmegaConf.create(to_dict(self.config)), tmp)
            (self.config.run_dir / DATA_FAULT).unlink(missing_ok=True)

    def restore(self) -> None:
        """Resume from the newest intact checkpoint, if there is one; log lines after it are removed.

        Raises:
            UserError: the run is past a milestone that was never measured, or none of its checkpoints can be read.
        """
        directory = self.config.run_dir / "checkpoints"
        path = from_first(self._newest_checkpoint)
        if path is not None:
            state = ckpt.read_state(path)
            ckpt.restore(path, self.model, self.ema, self.train_step.optimizer)
            self.train_step.share_slices()
            self.step, self.milestones, self.seconds = state["step"], state["milestones"], state["seconds"]
            self.train_step.set_counts(state["counts"])
        check_growth(self.run, self.tokens, self.milestones)
        if self.main and (damage := result_damage(self.config.run_dir)):
            again = f"the run is trained again from {path.name if path else 'its start'}"
            warn(f"{damage}; {again}")
        if self.world > 1:
            dist.barrier()
        if self.main and path is not None:
            ckpt.remove_after(directory, self.step)

    def _newest_checkpoint(self) -> Path | None:
        """The checkpoint to resume from, chosen by rank 0 for all processes: their views of a disk may differ."""
        clean_run(self.config.run_dir)
        return ckpt.resumable_checkpoint(self.config.run_dir)

    # -- the loop ------------------------------------------------------------------------------------------------

    def fit(self) -> str:
        """Train to the end, a divergence or a signal; returns the status, which result.json holds too."""
        with StopRequest(self.world, self.config.train.timeout_minutes) as stop:
            self.find_micro_batch()
            self.find_validation_batch()
            self.begin()
            with finished_after_errors([self.writer]):
                while self.status == "running":
                    # A run killed during validation saved its checkpoint first: it validates before its next step.
                    if not self.due:
                        self.train_step.run(self.next_batch(), self.tokens)
                        self.after_step(stop.agreed())
                    if self.due and self.status == "running":
                        self.after_validation(*self.validate())
                self.finish()
        return self.status

    def begin(self) -> None:
        """Open the log; the status is "running" if a milestone is left to reach, else "done"."""
        if self.main:
            self._log = open_log(
                self.run,
                self.cache,
                step=self.step,
                device=self.device,
                world=self.world,
                validates=bool(self.due),
                attention=self.model.backend,
            )
        self._check_data = DataCheck(self.loader, self.device, self.step, self.train_step.skipped_steps.item())
        self._clock = self._saved_at = time.monotonic()
        self.status = "running" if self._pending() else "done"

    def next_batch(self) -> Samples:
        """This process's share of the next step's batch.

        Raises:
            DataFault: it is damaged; of several processes all stop together later (``DataCheck``).
        """
        samples = self.loader.batch(self.step)
        if self.world == 1 and self.loader.fault is not None:
            raise self.loader.fault
        return samples

    def after_step(self, stopping: bool) -> None:
        """Count the step; log and save if due.

        Args:
            stopping: a signal came: all processes stop after this step and the validation due at it.
        """
        config = self.config
        self.writer.check()
        self.step += 1
        self._count_seconds()
        self._stopping = stopping
        last = stopping or bool(self.due)
        logging = self.step % config.log.every_steps == 0
        saving = last or self.step % config.checkpoint.every_steps == 0 or (logging and self._minutes_are_up())
        consecutive_skips = 0
        if logging or saving:
            self._check_data(self.step, self.train_step.skipped_steps.item())
            consecutive_skips = self.train_step.consecutive_skips.item()  # waits for the device
        if consecutive_skips >= config.train.max_skipped:
            self.status = "diverged"
            return
        if logging:
            waited, self._waited = self.loader.seconds - self._waited, self.loader.seconds
            log_window(self._log, self.train_step, self.run, step=self.step, share=self.share, data_seconds=waited)
        # While steps are skipped, the checkpoint before them is the one to resume from, unless the run ends here.
        if saving and (last or not consecutive_skips):
            self._save()
        if stopping and not self.due:
            self.status = "preempted"

    def validate(self) -> Scores:
        """The validation results of the raw weights and of the EMA."""
        return self._validate(self.model, RAW_SHARE), self._validate(self.ema)

    def after_validation(self, raw: ValidationResult, ema: ValidationResult) -> None:
        """Record the results for the milestones that are due; a loss that is not finite ends the run as diverged."""
        if not self._record(raw, ema):
            self.status = "diverged"
            return
        self._write_result("running")
        self._sample_videos()
        if not self._pending():
            self.status = "done"
        elif self._stopping:
            self.status = "preempted"

    def finish(self) -> None:
        """Write the result of a run that has ended with ``status``, and close its log."""
        self.writer.wait()
        self._count_seconds()
        self._write_result(self.status)
        if self.status == "done" and self.config.checkpoint.final == "ema" and self.main:
            # After the result: a death in between costs disk until the next start (clean_finished), not the run.
            ckpt.keep_final(self.config.run_dir / "checkpoints")
        if self._log is not None:
            close_log(self._log, self.run, step=self.step, status=self.status)

    def _minutes_are_up(self) -> bool:
        """Whether the last checkpoint is too old, by the first process's clock; every process must call."""
        minutes = self.config.checkpoint.every_minutes
        if minutes is None:
            return False
        late = self.main and time.monotonic() - self._saved_at >= 60 * minutes
        return bool(all_reduce(torch.full((), float(late), device=self.device), "sum").item())

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.seconds += self.share * (now - self._clock)
        self._clock = now

    def _pending(self) -> list[int]:
        measured = {m["nominal"] for m in self.milestones}
        return [m for m in self.config.train.milestones if m not in measured]

    @property
    def due(self) -> list[int]:
        """The milestones to validate before the next step."""
        return [m for m in self._pending() if m <= self.tokens]

    def find_micro_batch(self) -> None:
        """Find the micro-batch for GPU memory, once, with all of training's tensors and captions of full length."""
        if self.device.type == "cuda":  # by a clock, runs on the CPU would not resume bit for bit
            each = zip(self.loader.parts, self.run.steps_of_parts(self.step), self.cache.parts)
            samples = [with_text_tokens(loader.batch(step), cache.text_tokens) for loader, step, cache in each]
            samples.sort(key=lambda one: -one.x0[0].numel())
            find_micro_batch(
                self.train_step,
                samples[0],
                n_ctx=self.run.n_ctx,
                verbose=self.main,
                collective=self.collective,
                others=samples[1:],
            )

    def find_validation_batch(self) -> None:
        """Try one validation pass of the raw weights and of the EMA, in the memory that training leaves."""
        if self._pending():
            if self.sharded and self.config.train.context_parallel == 1:
                # Its model is freed before the sharded passes need its memory.
                self.validator.rehearse(self._score_of(few_blocks(self.model, self.device)))
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            self.validator.find_batch([self._score_of(self.model), self._score_of(self.ema)])

    def _validate(self, model: VideoDiT, share: int = 1) -> ValidationResult:
        """The loss of ``model`` on one clip in ``share`` of the frozen set."""
        return self.validator.validate(self._score_of(model), share=share)[0]

    def _score_of(self, model: VideoDiT) -> Score:
        self.train_step.gather_slices()
        return functools.partial(denoising_loss, model, self.process)

    def _record(self, raw: ValidationResult, ema: ValidationResult) -> bool:
        """Record the results for the milestones that are due; False where a loss is not finite.

        Raises:
            DataFault: it is not, as a validation clip was altered since the run began.
        """
        directory = self.config.run_dir / "checkpoints"
        self.writer.wait()
        if not (math.isfinite(raw.loss) and math.isfinite(ema.loss)):
            check_together(functools.partial(self.cache.verify_validation, again=True), self.device)
            if self.main:
                ckpt.remove_after(directory, self.step - 1)  # this step's weights are of no use
            return False
        scores = milestone_scores(raw, ema)
        losses = losses_file(raw, ema)
        measured = {"flops": self.run.flops(self.step), **scores, "losses_crc32": zlib.crc32(losses)}
        if (noise_scale := self.train_step.noise_scale.tokens(self.run.n_ctx)) is not None:
            measured["noise_scale"] = noise_scale
        self.milestones += [{"nominal": m, "tokens": self.tokens, **measured} for m in self.due]
        self.milestones.sort(key=lambda milestone: milestone["nominal"])
        if self._log is not None:
            check_lock(self.config.run_dir)
            path = self.config.run_dir / "validation" / f"{self.tokens}.npy"
            write_bytes(path, losses)
            # TensorBoard first: a run killed in between validates again, and replaces the points there.
            self._log.validation(self.tokens, scores, ema.bins)
            ckpt.update_state(directory, self.step, milestones=self.milestones)
            ckpt.prune_checkpoints(directory, self.config.checkpoint.keep)
        return True

    def _sample_videos(self) -> None:
        if self.preview is None:
            return
        for number, clip in enumerate(self.preview.sample(self.ema)):
            if self._log is not None:
                prompt = self.config.log.prompts[number]
                fps = self.cache.meta.get("fps") or DEFAULT_FPS
                self._log.video(f"samples/{number}", clip, self.tokens, prompt, fps)

    def _save(self) -> None:
        # Every process continues from the mean of the windows, as a resumed run does.
        for sums in (self.train_step.loss_sum, self.train_step.noise_scale.averages):
            sums.copy_(all_reduce(sums, "mean"))
        self._saved_at = time.monotonic()
        self.train_step.gather_slices()
        optimizer, due = self.train_step.optimizer, bool(self.due)
        tensors = self.writer.copy_run(self.model, self.ema, optimizer, main=self.main, whole_ema=due)
        state = {
            "tokens": self.tokens,
            "milestones": list(self.milestones),
            "seconds": self.seconds,
            "counts": self.train_step.counts(),
            "data": self.cache.meta,
            **({"shapes": shapes_of(self.model)} if self.writer.part else {}),
        }
        if self.main:
            check_lock(self.config.run_dir)
        if self._log is not None:
            self._log.flush()  # a resumed run logs no step before the checkpoint again
        directory, step, keep = self.config.run_dir / "checkpoints", self.step, self.config.checkpoint.keep

        def write() -> None:
            self.writer.write(directory, step, tensors, state, self.config)
            if self.main:
                ckpt.remove_after(directory, step)  # of a longer run, which this one could not continue from
            if self.main and not due:  # else the one before stays until this one's weights are validated
                ckpt.prune_checkpoints(directory, keep)

        if self.main or self.writer.part:
            self.writer.start(write)

    def _write_result(self, status: str) -> None:
        # A finished run that grows without its optimiser starts again: its measurements stay until it passes them.
        unfinished = status in ("running", "preempted")
        if not self.main or (unfinished and len(self.milestones) < len(recorded(self.run)["milestones"])):
            return
        check_lock(self.config.run_dir)
        result = build_result(
            self.run,
            self.cache.meta,
            status=status,
            step=self.step,
            skipped=self.train_step.skipped_steps.item(),
            milestones=self.milestones,
            seconds=self.seconds,
            device=self.device,
            world=self.world,
        )
        write_result(self.config.run_dir, result)
