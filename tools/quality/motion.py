"""How the frames of a clip differ over time: four numbers that see motion, which networks' features hardly do.

Over clips of 17 frames of a film, the features of TransNetV2 and EfficientNet cannot distinguish shuffled frames from
real ones (docs/quality.md): clips differ far more in what they show than a shuffle changes. Here what is shown drops
out, because only differences between frames of one clip enter.
"""

import torch
from torch import Tensor

from videoscaling.utils.errors import UserError

LAGS = (1, 2, 4, 8)  # frames
LEAST = 1 / 127.5  # one level of 255, added to each difference: equal frames are a small motion, not none


def motion_features(clips: Tensor) -> Tensor:
    """The size of the motion and how it grows with time, float32 [n, 1, numbers].

    With d(k) the root mean square over pixels of what frames k apart differ by, the numbers are log10 d(1), and log2
    of d(2) / d(1), d(4) / d(2) and d(8) / d(4), as far as the clip has frames: 1 for a steady drift of soft shapes,
    0.5 for a random walk, 0 for frames in random order.

    Args:
        clips: float32 [n, 3, F, H, W] in [-1, 1].

    Raises:
        UserError: a clip is one frame.
    """
    frames = clips.shape[2]
    if frames < 2:
        raise UserError("--features motion: clips of one frame have none; name the other features")
    apart = [clips[:, :, lag:] - clips[:, :, :-lag] for lag in LAGS if lag < frames]
    levels = torch.stack([one.square().mean((1, 2, 3, 4)).sqrt() for one in apart], dim=1) + LEAST
    return torch.cat([levels[:, :1].log10(), levels.log2().diff(dim=1)], dim=1)[:, None]
