"""The training loop: cached latents in, checkpoints and result.json out."""

import contextlib
import copy
import dataclasses
import math
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from omegaconf import OmegaConf
from torch import Tensor

from data.latents import LatentCache
from diffusion.loss import denoising_loss
from diffusion.process import Process
from diffusion.timesteps import draw_timesteps
from diffusion.validation import ValidationResult, validate
from models.dit import VideoDiT
from training import checkpoint as ckpt
from training.config import Config, identity, to_dict
from training.ema import power_of_width, update_average
from training.feed import Feed, Samples
from training.metrics import MetricsLog
from training.model import build_model
from training.optim import build_optimizer, learning_rate
from training.records import build_result, finished_result
from training.resolve import Run, resolve
from training.stop import StopRequest
from utils.errors import UserError
from utils.files import exclusive, replacing, write_json

PREEMPTED = 75  # EX_TEMPFAIL, the exit status of a run that stopped on a signal: run the same command again


class Trainer:
    """One run, from its configuration to its result. ``train`` is all that the outside calls."""

    def __init__(self, run: Run, cache: LatentCache) -> None:
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.run, self.cache = run, cache
        self.config = config = run.config
        self._check_layout()
        self.process = Process(config.diffusion.process, config.diffusion.target)
        draw_timesteps(torch.zeros(1, dtype=torch.int64), 0, config.diffusion.timesteps)  # refuses unknown names now
        self._claim_directory()
        self.model = build_model(config, cache.meta, self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.weights, self.averages = list(self.model.parameters()), list(self.average.parameters())
        self.power = power_of_width(config.ema.width)
        optimizer = build_optimizer(self.model, config.optim, config.train.batch_tokens)
        self.step = 0
        self.milestones: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.window = torch.zeros((), dtype=torch.float64, device=self.device)  # loss summed since the last log line
        self.feed = Feed(run, cache, self.rank, self.world, self.device)
        self._restore(optimizer)
        if config.train.compile:
            for block in self.model.blocks:
                block.compile()
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)

    @property
    def tokens(self) -> int:
        return self.step * self.config.train.batch_tokens

    # -- before the first step -----------------------------------------------------------------------------------

    def _check_layout(self) -> None:
        clips, world = self.run.clips, self.world
        if clips % world:
            low, high = clips // world * world, -(-clips // world) * world
            n_ctx = self.run.n_ctx
            either = f"{low * n_ctx} or {high * n_ctx}" if low else f"{high * n_ctx}"
            raise UserError(
                f"train.batch_tokens={self.config.train.batch_tokens}: {clips} clips cannot be shared by {world} "
                f"processes; nearest: {either}"
            )
        wanted = self.config.validation.clips
        if self.cache.validation_size < (wanted or 1):
            raise UserError(f"validation.clips={wanted}: the cache has {self.cache.validation_size} validation clips")

    def _claim_directory(self) -> None:
        """Refuse a run directory that another configuration made; write ours where there is none."""
        path = self.config.run_dir / "config.yaml"
        if path.exists():
            before = identity(ckpt.read_config(path.parent))
            now = identity(self.config)
            changed = [f"{k}: {before.get(k)} -> {now.get(k)}" for k in sorted(now) if before.get(k) != now.get(k)]
            if changed:
                raise UserError(
                    f"{path.parent}: made by another configuration ({'; '.join(changed)}); "
                    "choose another name=... or remove it"
                )
        if self.main:
            with replacing(path) as aside:
                OmegaConf.save(OmegaConf.create(to_dict(self.config)), aside)

    def _restore(self, optimizer: torch.optim.Optimizer) -> None:
        path = ckpt.newest_checkpoint(self.config.run_dir / "checkpoints", ("model", "ema", "optimizer"))
        if path is None:
            return
        state = ckpt.read_state(path)
        ckpt.load_into(self.model, ckpt.read_tensors(path, "model"), path)
        ckpt.load_into(self.average, ckpt.read_tensors(path, "ema"), path)
        ckpt.load_optimizer(self.model, optimizer, ckpt.read_tensors(path, "optimizer"))
        self.step, self.milestones, self.seconds = state["step"], state["milestones"], state["seconds"]
        self.window.fill_(state["window"])

    # -- one step ------------------------------------------------------------------------------------------------

    def _train_step(self) -> Tensor:
        """Forward, backward, optimiser and average; returns the gradient's norm before clipping."""
        config, batch = self.config, self.config.train.batch_tokens
        rate = learning_rate(config.optim, self.tokens + batch / 2, config.train.tokens)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        samples = self.feed.step(self.step)
        local = len(samples.t)
        size = config.train.micro_batch or local
        for first in range(0, local, size):
            piece = Samples(*(value[first : first + size] for value in samples))
            # Gradients travel between processes once per step, with the last piece.
            last = first + size >= local
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss = denoising_loss(self.wrapped, self.process, *piece).sum() / local
                self.accelerator.backward(loss)
            self.window += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.weights, config.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        update_average(self.averages, self.weights, self.power, batch, self.tokens)
        return norm

    # -- between steps -------------------------------------------------------------------------------------------

    def _validate(self, model: VideoDiT) -> ValidationResult:
        keys = self.config.validation
        return validate(
            model,
            self.process,
            self.cache.validation,
            keys.clips or self.cache.validation_size,
            keys.timesteps,
            keys.seed,
            keys.batch,
            self.device,
            lambda losses: self.accelerator.reduce(losses.to(self.device), "sum").cpu(),
            self.rank,
            self.world,
        )

    def _milestone(self, reached: list[int], log: MetricsLog | None) -> bool:
        """Score the raw and the averaged weights for the milestones ``reached``; False where a loss is not finite."""
        raw, averaged = self._validate(self.model), self._validate(self.average)
        if not (math.isfinite(raw.loss) and math.isfinite(averaged.loss)):
            return False
        scores = {
            "val_loss": raw.loss,
            "val_se": raw.standard_error,
            "ema_val_loss": averaged.loss,
            "ema_val_se": averaged.standard_error,
        }
        flops = self.tokens * self.run.flops_per_token
        self.milestones += [{"nominal": m, "tokens": self.tokens, "flops": flops, **scores} for m in reached]
        if log is not None:
            path = self.config.run_dir / "validation" / f"{self.tokens}.npy"
            with replacing(path) as aside, aside.open("wb") as handle:
                np.save(handle, np.stack((raw.losses, averaged.losses)))
            log.validation(self.step, self.tokens, scores, averaged.bins)
            self._sample_videos(log)
        return True

    def _sample_videos(self, log: MetricsLog) -> None:
        keys = self.config.log
        if not keys.prompts:
            return
        from diffusion.sampling import sample
        from models.text import load_text_encoder
        from models.vae import load_vae

        encoder = load_text_encoder(self.cache.meta["text"], self.device)
        context, mask = encoder.encode([*keys.prompts, ""])
        latents = sample(
            self.average,
            self.process,
            context[:-1],
            mask[:-1],
            (context[-1], mask[-1]),
            self.cache.latent_shape,
            torch.arange(len(keys.prompts)),
            keys.sample_steps,
            keys.guidance,
        )
        clips = load_vae(self.cache.meta["vae"], self.device).decode(latents)
        for number, (clip, prompt) in enumerate(zip(clips, keys.prompts)):
            log.video(f"samples/{number}", clip, self.step, prompt)

    def _save(self, final: bool = False) -> None:
        # Every process goes on from the mean of the windows, which is what a resumed run has.
        self.window = self.accelerator.reduce(self.window, "mean")
        if not self.main:
            return
        tensors = {"ema": self.average.state_dict()}
        if not final or self.config.checkpoint.final == "full":
            tensors["model"] = self.model.state_dict()
            tensors["optimizer"] = ckpt.optimizer_tensors(self.model, self.optimizer)
        state = {
            "tokens": self.tokens,
            "milestones": self.milestones,
            "seconds": self.seconds,
            "window": self.window.item(),
            "data": self.cache.meta,
        }
        directory = self.config.run_dir / "checkpoints"
        ckpt.save_checkpoint(directory, self.step, tensors, state, self.config)
        ckpt.prune_checkpoints(directory, 1 if final else self.config.checkpoint.keep)

    # -- the loop ------------------------------------------------------------------------------------------------

    def fit(self) -> str:
        """Train to the end, a divergence or a signal; returns the status, which result.json holds too."""
        config = self.config
        log = MetricsLog(config.run_dir, self.step, self.tokens, self.device, self.world) if self.main else None
        if self.main:
            begun = f"; from step {self.step:,}" if self.step else ""
            print(
                f"{config.run_dir}: {self.run.text}; {self.device}, attention {self.model.backend}{begun}", flush=True
            )
        status = "running"
        started = time.monotonic() - self.seconds
        with StopRequest(self.world) as stop:
            while pending := self._pending():
                norm = self._train_step()
                self.seconds = time.monotonic() - started
                if self.step % config.log.every_steps == 0 and not self._log_line(norm, log):
                    status = "diverged"
                    break
                reached = [m for m in pending if m <= self.tokens]
                if reached and not self._milestone(reached, log):
                    status = "diverged"
                    break
                stopping = stop.agreed()
                if reached or stopping or self.step % config.checkpoint.every_steps == 0:
                    self._save(final=reached == pending)
                if reached:
                    self._write_result(status)
                if stopping and reached != pending:
                    status = "preempted"
                    break
            else:
                status = "done"
        self.seconds = time.monotonic() - started
        self._write_result(status)
        if log is not None:
            self._close(log, status)
        return status

    def _pending(self) -> list[int]:
        last = self.milestones[-1]["nominal"] if self.milestones else 0
        return [m for m in self.config.train.milestones if m > last]

    def _log_line(self, norm: Tensor, log: MetricsLog | None) -> bool:
        """Log the steps since the last line; False where their loss is not finite."""
        every = self.config.log.every_steps
        loss = self.accelerator.reduce(self.window, "mean").item() / every
        self.window.zero_()
        if not math.isfinite(loss):
            return False
        if log is not None:
            batch, end = self.config.train.batch_tokens, self.config.train.tokens
            rate = learning_rate(self.config.optim, self.tokens - batch / 2, end)
            log.step(self.step, self.tokens, self.run.flops_per_token, loss, rate, norm.item(), end)
        return True

    def _write_result(self, status: str) -> None:
        if self.main:
            result = build_result(
                self.run, self.cache.meta, status, self.step, self.milestones, self.seconds, self.device, self.world
            )
            write_json(self.config.run_dir / "result.json", result)

    def _close(self, log: MetricsLog, status: str) -> None:
        run, config = self.run, self.config
        if self.milestones:
            settings = {"N": run.N, "B": config.train.batch_tokens, "lr": config.optim.lr, "seed": config.seed}
            last = self.milestones[-1]
            log.hparams(settings, {"ema_val_loss": last["ema_val_loss"], "val_loss": last["val_loss"]})
        log.close()
        print(f"{config.run_dir}: {status} after {self.step:,} steps, {self.tokens:,} tokens", flush=True)


def train(config: Config) -> int:
    """Run ``config`` to its end, or to a signal; continue it where it was. A finished run is left as it is.

    Returns:
        The exit status: 0 done, or diverged, which is a result; ``PREEMPTED`` stopped on a signal.

    Raises:
        UserError: the configuration, the cache or the run directory is at fault.
    """
    cache = LatentCache(config.data.cache)
    run = resolve(_with_earlier_milestones(config), cache.meta)
    finished = finished_result(run)
    if finished is not None:
        print(f"{config.run_dir}: already {finished['status']} at {finished['tokens']:,} tokens", flush=True)
        return 0
    with exclusive(config.run_dir):
        status = Trainer(run, cache).fit()
    if dist.is_initialized():
        dist.destroy_process_group()
    return PREEMPTED if status == "preempted" else 0


def _with_earlier_milestones(config: Config) -> Config:
    """A run that grows keeps the milestones it had, and with the smallest of them its warm-up."""
    if not (config.run_dir / "config.yaml").exists() or config.optim.schedule != "constant":
        return config
    earlier = ckpt.read_config(config.run_dir).train.milestones
    train = dataclasses.replace(config.train, milestones=sorted({*config.train.milestones, *earlier}))
    return dataclasses.replace(config, train=train)
