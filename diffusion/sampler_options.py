"""The options of a sampler, without torch: commands refuse a value out of range before they import it."""

import math
from dataclasses import dataclass

from videoscaling.utils.errors import UserError, nearest, shown

# At 1000 steps a first-order solver's mean error on an exact mixture of deviations 0.15 and 0.25 is 0.001.
MAX_STEPS = 1000
# Of each family of processes; the first is the default.
SCHEDULERS = {
    "rectified_flow": ("dpm++", "unipc", "euler"),
    "vp": ("dpm++", "unipc", "ddim"),
}


@dataclass(frozen=True)
class SamplerOptions:
    """How videos are drawn.

    Attributes:
        steps: of the sampler, 1 to ``MAX_STEPS``.
        guidance: scale w of classifier-free guidance (arXiv 2207.12598): null + w (conditional - null); 1 is none.
        scheduler: one of the process's in ``SCHEDULERS``; its first if None.
        shift: s of a flow's times s t / (1 + (s - 1) t) (arXiv 2403.03206, section 5.3.2): above 1 more of the steps
            lie near the noise. 1 is equal steps.
        guidance_interval: the least and the largest t at which guidance acts (arXiv 2404.07724). Outside it the empty
            prompt is not evaluated, which halves these steps' cost.
        guidance_rescale: share phi in which a guided prediction gets the deviation of the conditional one (arXiv
            2305.08891, equation 16); 0 is none.
        negative_prompt: the prompt that guidance leads away from, ``null`` above.

    Raises:
        UserError: a number out of its range, or a scheduler of no family.
    """

    steps: int = 50
    guidance: float = 5.0
    scheduler: str | None = None
    shift: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            nearest_steps = min(max(self.steps, 1), MAX_STEPS)
            raise UserError(f"steps {self.steps}: must lie between 1 and {MAX_STEPS}; the nearest is {nearest_steps}")
        names = list(dict.fromkeys(name for family in SCHEDULERS.values() for name in family))
        if self.scheduler is not None and self.scheduler not in names:
            near = nearest(self.scheduler, names)
            raise UserError(f"scheduler {shown(self.scheduler)}: must be one of {', '.join(names)}{near}")
        if not math.isfinite(self.guidance):
            raise UserError(f"guidance {self.guidance}: must be a finite number")
        if not 0 < self.shift < math.inf:
            raise UserError(f"shift {self.shift}: must be a positive number; 1 is none")
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise UserError(f"guidance interval {low} {high}: must be two times with 0 <= LOW < HIGH <= 1")
        if not 0 <= self.guidance_rescale <= 1:
            raise UserError(f"guidance rescale {self.guidance_rescale}: must lie between 0 and 1")
        if self.negative_prompt and self.guidance == 1:
            raise UserError("negative prompt: guidance 1 reads none; give more guidance, or leave it out")

    def guides(self, t: float) -> bool:
        """Whether guidance acts at ``t``."""
        return self.guidance != 1 and self.guidance_interval[0] <= t <= self.guidance_interval[1]
