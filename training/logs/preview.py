"""Videos of a few fixed prompts, sampled at milestones for TensorBoard."""

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from videoscaling.data.index import CacheMeta
from videoscaling.diffusion.process import Process
from videoscaling.diffusion.sampler_options import SamplerOptions
from videoscaling.diffusion.sampling import build_scheduler, sample
from videoscaling.models.text import cut_warning
from videoscaling.training.pipeline import load_encoders
from videoscaling.training.schema import LogKeys
from videoscaling.utils.errors import first_line
from videoscaling.utils.finiteness import NotFinite
from videoscaling.utils.messages import is_first_process, warn


class Preview:
    """Samples ``keys.prompts`` with seeds 0, 1, ...; everything is loaded at once, so that a missing encoder, or
    more steps than a scheduler has, is known before training and not after it."""

    def __init__(self, keys: LogKeys, process: Process, meta: CacheMeta, device: torch.device) -> None:
        self._keys, self._process, self._warned = keys, process, False
        self._options = SamplerOptions(steps=keys.sample_steps, guidance=keys.guidance)
        build_scheduler(process, self._options, device)
        self._shape = tuple(meta["latent_shape"])
        self._vae, text = load_encoders(meta, device, vae=keys.vae, text=keys.text, options=("log.vae", "log.text"))
        if (warning := cut_warning(text, list(keys.prompts), "log.prompts")) and is_first_process():
            warn(warning)
        # The empty prompt rides along, so that it is padded as the others are.
        context, mask = text.encode([*keys.prompts, ""])
        self._context, self._mask, self._null = context[:-1], mask[:-1], (context[-1], mask[-1])

    def sample(self, model: nn.Module) -> Tensor:
        """One clip per prompt, float32 [prompts, 3, frames, height, width] in [-1, 1].

        Where they are not finite or do not fit in memory there are none, [0, 3, ...], and the first time a warning.

        Raises:
            torch.OutOfMemoryError: a sharded model's do not fit: the other processes are in the middle of theirs.
        """
        try:
            return self._sample(model)
        except (NotFinite, torch.OutOfMemoryError) as error:
            if isinstance(model, FSDPModule) and not isinstance(error, NotFinite):
                raise
            if not self._warned and is_first_process():
                warn(f"log.prompts: no videos at this milestone: {first_line(error)}")
            self._warned = True
            return torch.empty(0, 3, 1, 1, 1)

    def _sample(self, model: nn.Module) -> Tensor:
        latents = sample(
            model,
            self._process,
            context=self._context,
            mask=self._mask,
            null=self._null,
            latent_shape=self._shape,
            seeds=torch.arange(len(self._keys.prompts)),
            options=self._options,
        )
        return self._vae.decode(latents)
