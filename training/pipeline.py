"""From prompts to videos: a trained model with the encoders that its data were made with.

from videoscaling import VideoPipeline

videos = VideoPipeline.from_run("runs/x")(["a large red circle gliding left"], guidance=3)
videos = VideoPipeline.from_run()("a large red circle gliding left over black and navy gradient drifting up")
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoscaling.data.index import CacheMeta
from videoscaling.diffusion.process import Process
from videoscaling.diffusion.sampler_options import SamplerOptions
from videoscaling.diffusion.sampling import build_scheduler, sample
from videoscaling.models import dit
from videoscaling.models.text import TextEncoder, cut_warning, load_text_encoder
from videoscaling.models.vae import VideoVAE, load_vae
from videoscaling.training.batches import TEXT_STEP
from videoscaling.training.checkpoints.checkpoint import load_into
from videoscaling.training.checkpoints.exported import Trained, read_trained
from videoscaling.training.model import build_model, check_compiler, compile_model
from videoscaling.utils.devices import pick_device
from videoscaling.utils.errors import UserError, plural
from videoscaling.utils.messages import is_first_process, warn


def load_encoders(
    meta: CacheMeta,
    device: torch.device,
    *,
    vae: str | None = None,
    text: str | None = None,
    options: tuple[str, str] = ("--vae", "--text"),
) -> tuple[VideoVAE, TextEncoder]:
    """The VAE and the text encoder that a cache or checkpoint (its ``meta``) was made with.

    Args:
        vae, text: their folders; the folders recorded in ``meta`` if None.
        options: the options or keys of the two folders, for the errors.

    Raises:
        UserError: one of them is missing, or is another than it was.
    """
    loaded = []
    for kind, given, option, load in (
        ("vae", vae, options[0], load_vae),
        ("text", text, options[1], load_text_encoder),
    ):
        place, wanted = given or meta[kind], meta[f"{kind}_fingerprint"]
        try:
            encoder = load(place, device)
        except UserError as error:
            raise UserError(f"{error}; give its new folder as {_given(option)}") from None
        if encoder.fingerprint != wanted:
            raise UserError(
                f"{place}: not what the data were made with (fingerprint {encoder.fingerprint}, not {wanted}); give "
                f"the folder of the right one as {_given(option)}"
            )
        loaded.append(encoder)
    return loaded[0], loaded[1]


def _given(option: str) -> str:
    return f"{option} FOLDER" if option.startswith("-") else f"{option}=FOLDER"


class VideoDiT(dit.VideoDiT):
    """The network alone, ``models.dit.VideoDiT``, of a trained run."""

    @classmethod
    def from_run(
        cls,
        path: str | Path = "embedded",
        *,
        weights: str = "ema",
        device: str | None = None,
        dtype: str | None = None,
    ) -> "VideoDiT":
        """The trained network, in evaluation mode; the arguments and errors are ``VideoPipeline.from_run``'s."""
        return cls._of(read_trained(path, weights), pick_device(device), dtype)

    @classmethod
    def _of(cls, trained: Trained, device: torch.device, dtype: str | None) -> "VideoDiT":
        trained.config.train.dtype = dtype or trained.config.train.dtype
        trained.config.model.attention = "auto"  # the training's kernels need not be on this machine
        model = build_model(trained.config, trained.data, device, cls)
        load_into(model, trained.tensors, trained.path)
        return model.eval()


class VideoPipeline:
    """A model, its diffusion process and its encoders.

    Attributes:
        model: called as model(x_t, t, context, mask), such as ``VideoDiT``.
        latent_shape: (channels, frames, height, width) of a video's latents.
        fps: frames per second of the training's videos; None where it is not known.
        path: the checkpoint's, or None.
        guidable: whether the model was trained with caption dropout, without which guidance follows nothing.
        text_step: captions are padded to a multiple of so many tokens. A compiled model is compiled anew for every
            length, which takes a minute, and runs uncompiled after the eighth.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        process: Process,
        vae: VideoVAE,
        text: TextEncoder,
        latent_shape: tuple[int, ...],
        fps: float | None = None,
        guidable: bool = True,
        path: str | None = None,
        text_step: int = 1,
    ) -> None:
        self.model, self.process, self.vae, self.text = model, process, vae, text
        self.latent_shape, self.fps, self.guidable, self.path = latent_shape, fps, guidable, path
        self.text_step = text_step

    @classmethod
    def from_run(
        cls,
        path: str | Path = "embedded",
        *,
        weights: str = "ema",
        device: str | None = None,
        dtype: str | None = None,
        compiled: bool = False,
        vae: str | None = None,
        text: str | None = None,
        options: SamplerOptions | None = None,
    ) -> "VideoPipeline":
        """The pipeline of a run directory's newest checkpoint, of a checkpoint, or of a folder of tools/export.py.

        Args:
            path: "embedded" is the small model of synthetic shapes that ships here.
            weights: "ema" (averaged) or "model" (raw).
            device: "cpu" or "cuda"; cuda where there is one if None.
            dtype: "float32" or "bfloat16", what the blocks compute in; as in training if None.
            compiled: compile the model with torch.compile, which takes its time at the first step.
            vae, text: folders of the encoders, where they are no longer where they were when the latents were made.
            options: how videos are to be drawn; what the model's process cannot follow is refused before the encoders
                are loaded.

        Raises:
            UserError: no whole checkpoint with these weights, or an encoder that is missing or another, or a scheduler
                or shift of another family of processes.
        """
        on, trained = pick_device(device), read_trained(path, weights)
        config, data = trained.config, trained.data
        process = Process(config.diffusion.process, config.diffusion.target)
        if options is not None:
            build_scheduler(process, options, on)
        check_compiler(compiled, on, "--compile")
        model = VideoDiT._of(trained, on, dtype)
        own_vae, own_text = load_encoders(data, on, vae=vae, text=text)
        if compiled:
            compile_model(model, shapes=math.ceil(own_text.max_tokens / TEXT_STEP))
        return cls(
            model=model,
            process=process,
            vae=own_vae,
            text=own_text,
            latent_shape=tuple(data["latent_shape"]),
            fps=data.get("fps"),
            guidable=config.data.caption_dropout > 0,
            path=str(path) if str(path) == "embedded" else str(trained.path),
            text_step=TEXT_STEP if compiled else 1,
        )

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        """Frames, height and width of a video."""
        vae, (_, f, h, w) = self.vae, self.latent_shape
        return (f - 1) * vae.temporal + 1, h * vae.spatial, w * vae.spatial

    def resize(self, frames: int | None = None, size: tuple[int, int] | None = None) -> None:
        """Make videos of ``frames`` frames of ``size`` pixels (height, width); the training's where None.

        Rotary positions extend beyond the training's, but a model has not learned those: look at its videos.

        Raises:
            UserError: the autoencoder cannot make such videos, or the model's patches do not divide their latents.
        """
        patch, (own_frames, *own_size) = self.model.config.patch, self.clip_shape
        shape = self.vae.latent_shape(frames or own_frames, *(size or own_size))
        if any(side % p for side, p in zip(shape[1:], patch)):
            raise UserError(
                f"latents of {shape[1:]} (frames, rows, columns): the model's patches {patch} do not divide them"
            )
        self.latent_shape = shape

    def __call__(
        self, prompts: str | Sequence[str], *, seed: int | Sequence[int] = 0, batch: int = 8, **options: Any
    ) -> Tensor:
        """One video per prompt, float32 [prompts, 3, frames, height, width] in [-1, 1].

        Args:
            seed: one number for each prompt; a single number is the first prompt's, and prompt i has ``seed`` + i. A
                prompt and its seed determine a video, whatever else is in its batch.
            batch: prompts sampled at once.
            options: of ``diffusion.sampler_options.SamplerOptions``, such as steps=20 or guidance=3.

        Raises:
            UserError: no prompt, not one seed for each, an unknown scheduler, or an option out of its range; before
                anything is sampled.
            NotFinite: latents or pixels are not finite.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        seeds = list(seed) if isinstance(seed, Iterable) else [seed + number for number in range(len(prompts))]
        if not prompts:
            raise UserError("prompts: there is none; give at least one")
        if len(seeds) != len(prompts):
            raise UserError(
                f"seed: {plural(len(seeds), 'number')} for {plural(len(prompts), 'prompt')}; give one for each, or a "
                "single number, from which the prompts are counted"
            )
        return torch.cat(list(self.batches(prompts, seeds, SamplerOptions(**options), batch=batch)))

    def batches(
        self, prompts: Sequence[str], seeds: Sequence[int], options: SamplerOptions, *, batch: int = 8
    ) -> Iterator[Tensor]:
        """As ``__call__``, the videos of ``batch`` prompts at a time."""
        build_scheduler(self.process, options, next(self.model.parameters()).device)
        for warning in self._warnings(prompts, options):
            warn(warning)
        for first in range(0, len(prompts), batch):
            part = prompts[first : first + batch]
            # The negative prompt, mostly the empty one, rides along, so that it is padded as the others are.
            context, mask = self.text.encode([*part, options.negative_prompt])
            missing = -mask.shape[1] % self.text_step
            context, mask = F.pad(context, (0, 0, 0, missing)), F.pad(mask, (0, missing))
            latents = sample(
                self.model,
                self.process,
                context=context[:-1],
                mask=mask[:-1],
                null=(context[-1], mask[-1]),
                latent_shape=self.latent_shape,
                seeds=torch.tensor(seeds[first : first + len(part)]),
                options=options,
            )
            yield self.vae.decode(latents)

    def _warnings(self, prompts: Sequence[str], options: SamplerOptions) -> list[str]:
        """What a user must know of videos of these ``prompts``, a line each."""
        found, negative = [], [options.negative_prompt] if options.negative_prompt else []
        if warning := cut_warning(self.text, [*prompts, *negative], "prompts"):
            found.append(warning)
        if options.guidance != 1 and not self.guidable and is_first_process():
            found.append(
                f"guidance {options.guidance:g}: the model never saw the empty prompt, being trained with "
                "data.caption_dropout=0; guidance 1 is what it knows"
            )
        return found
